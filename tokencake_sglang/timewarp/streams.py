"""HiCache's copies on virtual streams: every event completes when its stream reaches it.

Only the timing is virtual. Which tokens are copied, where to and when a copy is submitted is
SGLang's own doing; no byte moves.
"""

from dataclasses import dataclass
from typing import Any

from sglang.srt.mem_cache.l2_transfer import TransferCompletion

from tokencake_sglang.timewarp.clock import VirtualClock, VirtualEvent, VirtualStream
from tokencake_sglang.timewarp.cost import CostModel


@dataclass(slots=True)
class Copy:
    """One submitted transfer; times are virtual seconds."""

    tokens: int
    start_s: float
    end_s: float
    exposed_s: float = 0.0
    """How much longer than its computation a forward took because it waited for this load.

    Whatever load-back is started with its forward has some: the first layer's copy at least.
    """

    @property
    def late(self) -> bool:
        """Whether a forward waited."""
        return self.exposed_s > 0.0


class VirtualLayerLoading:
    """Stands for SGLang's LayerLoadingEvent: one load, layer after layer at an even pace."""

    def __init__(self, clock: VirtualClock) -> None:
        self.start_event = VirtualEvent(clock)
        self.finish_event = VirtualEvent(clock)
        self.copy: Copy | None = None

    def complete(self, layer_index: int) -> None:
        """Called by SGLang per layer as it submits; the times are known at once instead."""

    def wait(self, layer_index: int) -> None:
        """The forward pass accounts for the wait, see ``VirtualTransfers.forward_end_s``."""


class VirtualTransfers:
    """Replaces a cache controller's L2TransferEngine.

    Each direction has a stream of its own and its full speed, as SGLang has two copy streams and
    PCIe two sets of lanes: a load and a backup at the same time do not slow each other down. What
    they share, the host's memory, is faster than both together on servers (a DDR5 socket has some
    300 GB/s, PCIe 5 moves 2 x 55).

    Both are fenced behind every forward submitted so far, if SGLang says so: in
    ``HiCacheController.start_loading`` and ``start_writing`` it lets their copy stream wait for
    ``load_fence_stream`` / ``write_fence_stream``, which ``Scheduler`` sets to the forward stream. A
    forward in flight may still write the slots that a load is given, or the tokens that a backup
    reads; later forwards overlap with the copy. Without that fence a copy still follows the
    scheduler's own stream, which computes its indices and waits for what a forward reads of the
    scheduler's (``Scheduler._apply_war_barrier``): behind a decode in a CUDA graph that is over when
    the graph begins, behind a prefill, where there is a host tier, when all of it has ended
    (``maybe_publish_prefill_shared_read_done``).

    Args:
        forward: the stream of forward passes.

    Attributes:
        loads: every host-to-device copy, in order of submission.
        backups: every device-to-host copy, in order of submission.
    """

    def __init__(self, clock: VirtualClock, cost: CostModel, forward: VirtualStream) -> None:
        self.clock = clock
        self.cost = cost
        self.forward = forward
        self.host_to_device_stream = VirtualCopyStream(clock)
        self.device_to_host_stream = VirtualCopyStream(clock)
        self.loads: list[Copy] = []
        self.backups: list[Copy] = []
        self._scheduler_stream_s = 0.0
        self._loadings: list[VirtualLayerLoading] = []

    def attach(self, controller: Any) -> None:
        """Puts itself and virtual load events into a HiCacheController."""
        controller.l2_transfer_engine = self
        counter = controller.layer_done_counter
        counter.events = self._loadings = [
            VirtualLayerLoading(self.clock) for _ in range(counter.num_counters)
        ]

    # -- what a report reads ------------------------------------------------------------------

    @property
    def loaded_tokens(self) -> int:
        return sum(copy.tokens for copy in self.loads)

    @property
    def backed_up_tokens(self) -> int:
        return sum(copy.tokens for copy in self.backups)

    def figures(self) -> dict[str, float]:
        """Bytes, busy seconds and waits, each way; every number is a sum over the run.

        A load is late if a forward waited for it; ``exposed_wait_s`` is how long they waited.
        """
        late = [copy for copy in self.loads if copy.late]
        late_tokens = sum(copy.tokens for copy in late)
        token_bytes = self.cost.model.kv_bytes_per_token
        return {
            "to_device_copies": len(self.loads),
            "to_device_late_copies": len(late),
            "to_device_on_time_bytes": (self.loaded_tokens - late_tokens) * token_bytes,
            "to_device_late_bytes": late_tokens * token_bytes,
            "to_device_busy_s": self.host_to_device_stream.busy_s,
            "exposed_wait_s": sum(copy.exposed_s for copy in late),
            "to_host_copies": len(self.backups),
            "to_host_bytes": self.backed_up_tokens * token_bytes,
            "to_host_busy_s": self.device_to_host_stream.busy_s,
        }

    # -- what SGLang calls --------------------------------------------------------------------

    def submit_device_to_host(self, transfers: list[Any]) -> TransferCompletion:
        tokens = sum(len(transfer.host_indices) for transfer in transfers)
        copy = self._submit(self.device_to_host_stream, tokens, self.cost.backup_s(tokens))
        self.backups.append(copy)
        return self._completion(copy)

    def submit_host_to_device(
        self,
        transfers: list[Any],
        *,
        transfer_layer_id_max: int,
        start_event: Any = None,
        on_layer_done: Any = None,
    ) -> TransferCompletion:
        tokens = sum(len(transfer.host_indices) for transfer in transfers)
        copy = self._submit(self.host_to_device_stream, tokens, self.cost.load_s(tokens))
        self.loads.append(copy)
        if on_layer_done is not None:
            loading: VirtualLayerLoading = on_layer_done.__self__
            loading.copy = copy
            loading.start_event.done_s, loading.finish_event.done_s = copy.start_s, copy.end_s
        return self._completion(copy)

    # -- what a run asks and tells ------------------------------------------------------------

    def launched(self, start_s: float, end_s: float, *, extends: bool) -> None:
        """A forward was submitted; ``extends`` says whether it prefills."""
        self._scheduler_stream_s = end_s if extends else start_s

    def forward_end_s(self, start_s: float, duration_s: float, consumer_index: int) -> float:
        """When a forward ends that waits, layer by layer, for a load; notes the wait.

        Layer l of L computes for ``duration / L`` once it and its load are done; both run at an
        even pace, so the last layer's end is the latest of: no waiting at all, waiting for the
        first layer, waiting for the last.

        Args:
            consumer_index: the load's place in SGLang's LayerDoneCounter.
        """
        copy = self._loadings[consumer_index].copy
        alone_s = start_s + duration_s
        if copy is None:
            return alone_s
        layers = self.cost.model.layers
        first_layer_s = copy.start_s + (copy.end_s - copy.start_s) / layers
        end_s = max(alone_s, first_layer_s + duration_s, copy.end_s + duration_s / layers)
        copy.exposed_s += end_s - alone_s
        return end_s

    def next_completion_s(self) -> float | None:
        """When the next copy in flight ends; None when none is."""
        ends = [
            stream.free_s
            for stream in (self.host_to_device_stream, self.device_to_host_stream)
            if stream.free_s > self.clock.now_s
        ]
        return min(ends, default=None)

    def _submit(self, stream: "VirtualCopyStream", tokens: int, duration_s: float) -> Copy:
        fenced, stream.fenced = stream.fenced, False
        not_before_s = self.forward.free_s if fenced else self._scheduler_stream_s
        return Copy(tokens, *stream.submit(duration_s, not_before_s))

    def _completion(self, copy: Copy) -> TransferCompletion:
        start, end = VirtualEvent(self.clock, copy.start_s), VirtualEvent(self.clock, copy.end_s)
        return TransferCompletion(start, end, False)


class VirtualCopyStream(VirtualStream):
    """A copy stream. The one stream that SGLang lets it wait for is that of the forwards."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock)
        self.fenced = False
        """Whether the next copy waits for every forward submitted so far."""

    def wait_stream(self, _stream: Any) -> None:
        self.fenced = True

    def synchronize(self) -> None:
        self.clock.advance_to(self.free_s)
