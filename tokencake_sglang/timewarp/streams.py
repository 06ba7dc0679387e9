"""HiCache's copies on virtual streams: every event completes when its stream reaches it.

Only the timing is virtual. Which tokens are copied, where to and when a copy is submitted is
SGLang's own doing; no byte moves.
"""

from typing import Any

from sglang.srt.mem_cache.l2_transfer import TransferCompletion

from tokencake_sglang.timewarp.clock import VirtualClock, VirtualEvent, VirtualStream
from tokencake_sglang.timewarp.cost import CostModel


class VirtualLayerLoading:
    """Stands for SGLang's LayerLoadingEvent: one load, layer after layer at an even pace."""

    def __init__(self, clock: VirtualClock) -> None:
        self.start_event = VirtualEvent(clock)
        self.finish_event = VirtualEvent(clock)

    def complete(self, layer_index: int) -> None:
        """Called by SGLang per layer as it submits; the times are known at once instead."""

    def wait(self, layer_index: int) -> None:
        """The forward pass accounts for the wait, see ``VirtualTransfers.forward_end_s``."""


class VirtualTransfers:
    """Replaces a cache controller's L2TransferEngine.

    Args:
        forward: the stream of forward passes; loads are fenced behind it as SGLang does, because
            a forward in flight may still write the slots that a load is given.
    """

    def __init__(self, clock: VirtualClock, cost: CostModel, forward: VirtualStream) -> None:
        self.clock = clock
        self.cost = cost
        self.forward = forward
        self.host_to_device_stream = VirtualCopyStream(clock)
        self.device_to_host_stream = VirtualCopyStream(clock)
        self.loaded_tokens = 0
        self.backed_up_tokens = 0

    def attach(self, controller: Any) -> None:
        """Puts itself and virtual load events into a HiCacheController."""
        controller.l2_transfer_engine = self
        counter = controller.layer_done_counter
        counter.events = [VirtualLayerLoading(self.clock) for _ in range(counter.num_counters)]

    def submit_device_to_host(self, transfers: list[Any]) -> TransferCompletion:
        tokens = sum(len(transfer.host_indices) for transfer in transfers)
        self.backed_up_tokens += tokens
        start_s, end_s = self.device_to_host_stream.submit(
            self.cost.backup_s(tokens), self.forward.free_s
        )
        return self._completion(start_s, end_s)

    def submit_host_to_device(
        self,
        transfers: list[Any],
        *,
        transfer_layer_id_max: int,
        start_event: Any = None,
        on_layer_done: Any = None,
    ) -> TransferCompletion:
        tokens = sum(len(transfer.host_indices) for transfer in transfers)
        self.loaded_tokens += tokens
        start_s, end_s = self.host_to_device_stream.submit(
            self.cost.load_s(tokens), self.forward.free_s
        )
        if on_layer_done is not None:
            loading: VirtualLayerLoading = on_layer_done.__self__
            loading.start_event.done_s, loading.finish_event.done_s = start_s, end_s
        return self._completion(start_s, end_s)

    def forward_end_s(
        self, start_s: float, duration_s: float, loading: VirtualLayerLoading
    ) -> float:
        """When a forward ends that waits, layer by layer, for a load.

        Layer l of L computes for ``duration / L`` once it and its load are done; both run at an
        even pace, so the last layer's end is the latest of: no waiting at all, waiting for the
        first layer, waiting for the last.
        """
        layers = self.cost.model.layers
        load_start_s, load_end_s = loading.start_event.done_s, loading.finish_event.done_s
        first_layer_s = load_start_s + (load_end_s - load_start_s) / layers
        return max(
            start_s + duration_s, first_layer_s + duration_s, load_end_s + duration_s / layers
        )

    def next_completion_s(self) -> float | None:
        """When the next copy in flight ends; None when none is."""
        ends = [
            stream.free_s
            for stream in (self.host_to_device_stream, self.device_to_host_stream)
            if stream.free_s > self.clock.now_s
        ]
        return min(ends, default=None)

    def _completion(self, start_s: float, end_s: float) -> TransferCompletion:
        return TransferCompletion(
            VirtualEvent(self.clock, start_s), VirtualEvent(self.clock, end_s), False
        )


class VirtualCopyStream(VirtualStream):
    """A copy stream; SGLang fences it by ``wait_stream``, which ``submit`` has accounted for."""

    def wait_stream(self, _stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        self.clock.advance_to(self.free_s)
