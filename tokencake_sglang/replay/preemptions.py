"""Preemptions, which SGLang counts among the retractions."""

from typing import Any


class Preemptions:
    """Counts the running requests that admission gave up for a request of higher priority.

    Stands between a scheduler and its PrefillAdder, which decides; does nothing where the
    scheduler does not preempt (``--enable-priority-scheduling``).
    """

    def __init__(self, scheduler: Any) -> None:
        self.requests = 0
        if scheduler.enable_priority_preemption:
            self._adder_class = scheduler.get_prefill_adder_class
            self._counting: dict[type, type] = {}
            scheduler.get_prefill_adder_class = self._counting_adder_class

    def _counting_adder_class(self) -> type:
        base = self._adder_class()
        if base not in self._counting:
            self._counting[base] = self._subclass(base)
        return self._counting[base]

    def _subclass(self, base: Any) -> type:
        counter = self

        class CountingAdder(base):
            def preempt_to_schedule(self, req: Any) -> bool:
                before = len(self.preempt_list)
                preempted: bool = super().preempt_to_schedule(req)
                counter.requests += len(self.preempt_list) - before
                return preempted

        return CountingAdder
