"""Virtual time."""


class VirtualClock:
    """Seconds since the start of a run; moves only when told, and never back."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def advance_to(self, now_s: float) -> None:
        self.now_s = max(self.now_s, now_s)


class VirtualStream:
    """A first-in-first-out queue of work, as a CUDA stream is: one piece after the other."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.free_s = 0.0
        self.busy_s = 0.0

    def submit(self, duration_s: float, not_before_s: float = 0.0) -> tuple[float, float]:
        """Queues work that takes ``duration_s``; returns when it starts and ends."""
        start_s = max(self.clock.now_s, self.free_s, not_before_s)
        self.free_s = start_s + duration_s
        self.busy_s += duration_s
        return start_s, self.free_s


class VirtualEvent:
    """A CUDA event that completes at a known time of the virtual clock."""

    def __init__(self, clock: VirtualClock, done_s: float = 0.0) -> None:
        self.clock = clock
        self.done_s = done_s

    def query(self) -> bool:
        return self.clock.now_s >= self.done_s

    def synchronize(self) -> None:
        """Waits: time passes until the event has completed."""
        self.clock.advance_to(self.done_s)

    def record(self, *_: object) -> None:
        """Completes now; used where nothing is timed."""
        self.done_s = self.clock.now_s

    def wait(self, *_: object) -> None:
        """Streams of this model wait by times, not by events."""
