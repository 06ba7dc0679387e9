"""A real SGLang Scheduler in this process, with the extension loaded as a server loads it.

One scheduler per process: SGLang publishes its settings process-wide. The model is a tiny Llama
with seeded random weights, large enough that a wrong byte of KV changes the greedy tokens.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.models import tiny_llama
from tokencake_sglang.agents.events import AnyEvent, RequestBegin, RequestEnd, Tick
from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.plugin import RESOLVED_VARIABLE
from tokencake_sglang.temporal.duration import DurationModel
from tokencake_sglang.timewarp.scheduler import start_scheduler, tokenized

os.environ.setdefault("OMP_NUM_THREADS", "1")


def _number(rid: str) -> str:
    """A front door's number of a request, which is not SGLang's rid."""
    return f"number of {rid}"


class SchedulerHarness:
    """Drives a Scheduler step by step with requests and events.

    The clock is whatever stamps the events carry: ``at(seconds)`` moves it.

    Args:
        directory: gets the model's config.
        flags: SGLang's; they win over those given here, ``--device cuda`` among them.
        model: fields of the model's Hugging Face config, in place of the tiny one's.
    """

    def __init__(
        self,
        directory: Path,
        *flags: str,
        kv_tokens: int = 2048,
        page_size: int = 1,
        model: Mapping[str, Any] | None = None,
    ):
        model_path = tiny_llama(directory, **{"tie_word_embeddings": False, **(model or {})})
        self.scheduler = start_scheduler(
            [
                *("--model-path", str(model_path)),
                *("--load-format", "dummy", "--skip-tokenizer-init", "--device", "cpu"),
                *("--dtype", "float32", "--attention-backend", "torch_native"),
                *("--max-total-tokens", str(kv_tokens), "--page-size", str(page_size)),
                *("--max-running-requests", "16", "--chunked-prefill-size", "512"),
                *("--enable-hierarchical-cache", "--hicache-io-backend", "direct"),
                *("--hicache-mem-layout", "layer_first", "--disable-overlap-schedule"),
                *("--log-level", "error", "--random-seed", "0"),
                *flags,
            ]
        )
        # It is for this process's children as a server has them; a test's are no such children.
        os.environ.pop(RESOLVED_VARIABLE, None)
        self._seed_weights()
        self.now_s = 100.0
        self.finished: dict[str, list[int]] = {}
        self.cached_tokens: dict[str, int] = {}
        self.finished_at_step: dict[str, int] = {}
        self.retractions = 0
        self.steps = 0
        self._inbox: list[Any] = []
        self._submitted: set[str] = set()
        self._tagged: set[str] = set()
        self._sequence = itertools.count(1)
        self._rids = itertools.count()
        harness = self
        # Frozen dataclasses: their classes are patched, once per process like the scheduler.
        receiver = type(self.scheduler.request_receiver)
        receiver.recv_requests = lambda _self, local_reqs=None: harness._take_inbox()
        streamer = type(self.scheduler.output_streamer)
        streamer.stream_output = lambda _self, reqs, *_, **__: harness._collect(reqs)
        sender = self.scheduler.ipc_channels.send_to_tokenizer
        self.replies: list[Any] = []
        sender.send_output = lambda output, request=None: self._reply(output, request)

    # -- what the test does -------------------------------------------------------------------

    @property
    def cache(self):
        return self.scheduler.tree_cache

    @property
    def planner(self):
        from tokencake_sglang.engine.scheduler_hooks import planner_of

        return planner_of(self.scheduler)

    def at(self, now_s: float) -> None:
        """Moves the clock and tells the ranks."""
        self.now_s = now_s
        self.send(Tick())

    def send(self, event: AnyEvent) -> None:
        """Delivers an event as the main process would, after what was sent before it."""
        from tokencake_sglang.engine.messages import TokencakeEvent

        self._inbox.append(TokencakeEvent.of(next(self._sequence), self.now_s, event))

    def submit(
        self,
        ids: Sequence[int],
        new_tokens: int,
        tag: AgentTag | None = None,
        *,
        priority: int | None = None,
    ) -> str:
        """Queues a greedy request of exactly ``new_tokens`` output tokens; returns its rid."""
        rid = f"r{next(self._rids)}"
        if tag is not None:
            self.send(RequestBegin(rid=_number(rid), tag=tag))
        self._inbox.append(tokenized(rid, ids, new_tokens, tag=tag, priority=priority))
        self._submitted.add(rid)
        if tag is not None:
            self._tagged.add(rid)
        return rid

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.steps += 1
            scheduler = self.scheduler
            scheduler.ingest_requests()
            plan = scheduler.get_next_batch_to_run(
                running_batch=scheduler.running_batch, last_batch=scheduler.last_batch
            )
            scheduler.running_batch, batch = plan.running_batch, plan.batch_to_run
            if batch:
                scheduler.process_batch_result(batch, scheduler.run_batch(batch))
            scheduler.last_batch = batch

    def run(self, *rids: str, limit: int = 2000) -> list[list[int]]:
        """Steps until the requests have finished; returns their output tokens."""
        for _ in range(limit):
            if all(rid in self.finished for rid in rids):
                return [self.finished[rid] for rid in rids]
            self.step()
        raise AssertionError(f"not finished after {limit} steps: {set(rids) - set(self.finished)}")

    def generate(
        self, ids: Sequence[int], new_tokens: int, tag: AgentTag | None = None
    ) -> list[int]:
        return self.run(self.submit(ids, new_tokens, tag))[0]

    def settle(self, steps: int = 4) -> None:
        """Steps without new input, so that transfers are reaped."""
        self.step(steps)

    def flush(self) -> None:
        self.settle()
        assert self.scheduler.flush_cache(), "flush_cache refused: the scheduler is not idle"

    def check_accounting(self) -> None:
        """SGLang's own leak check: every slot is free, cached or protected exactly once."""
        self.settle()
        self.scheduler.on_idle()

    def start_over(self) -> None:
        """An empty cache and nobody known."""
        self.retractions = 0
        self.finish_everything()
        self.flush()
        self.planner.log.recent.clear()
        self.planner.log.counts.clear()
        self.planner.log.tokens.clear()
        if (temporal := getattr(self.planner, "temporal", None)) is not None:
            temporal.durations_known(DurationModel(temporal.returns.durations.default_s))
            temporal.step_gap.longest_s = temporal.step_gap.forward_s = (
                0.0  # of the last test's steps
            )

    def finish_everything(self) -> None:
        """Ends all requests and forgets all agents, as time would."""
        unfinished = [rid for rid in self._submitted if rid not in self.finished]
        for rid in unfinished:
            self.abort(rid)
        self.settle(8)
        for _ in range(2):  # open calls lapse first, then their agents are forgotten
            self.at(self.now_s + 1_000_000)
            self.settle()
        assert len(self.planner.table) == 0, "an agent outlived its time"

    def abort(self, rid: str) -> None:
        """As a client that disconnects: SGLang's abort, and the main process's request_end."""
        from sglang.srt.managers.io_struct import AbortReq

        self._inbox.append(AbortReq(rid=rid))
        if rid in self._tagged:
            self.send(RequestEnd(rid=_number(rid)))
        self._submitted.discard(rid)

    def decisions(self, action: str) -> list[tuple[str, str]]:
        """(agent, reason) of the recent decisions of one kind."""
        return [(d.agent, d.reason) for d in self.planner.log.recent if d.action == action]

    # -- inside -------------------------------------------------------------------------------

    def _take_inbox(self) -> list[Any]:
        taken, self._inbox = self._inbox, []
        return taken

    def _reply(self, output: Any, request: Any) -> None:
        from sglang.srt.managers.io_struct import AbortReq

        if isinstance(output, AbortReq) and output.rid in self._submitted:
            raise AssertionError(f"SGLang gave up {output.rid}: {output.finished_reason}")
        self.replies.append(output)

    def _collect(self, reqs: Sequence[Any]) -> None:
        for req in reqs:
            if req.finished() and req.rid not in self.finished:
                self.finished[req.rid] = list(req.output_ids)
                self.cached_tokens[req.rid] = req.cached_tokens
                self.finished_at_step[req.rid] = self.steps
                self.retractions += req.retraction_count
                if req.rid in self._tagged:
                    self.send(RequestEnd(rid=_number(req.rid)))

    def _seed_weights(self) -> None:
        import torch

        model = self.scheduler.tp_worker.model_runner.model
        parameters = sorted(model.named_parameters())
        device = parameters[0][1].device
        generator = torch.Generator(device).manual_seed(7)
        with torch.no_grad():
            for name, parameter in parameters:
                if parameter.dim() > 1:
                    noise = torch.randn(parameter.shape, generator=generator, device=device)
                    parameter.copy_(noise.mul_(self._weight_scale(name, parameter.shape[-1])))

    @staticmethod
    def _weight_scale(name: str, fan_in: int) -> float:
        """Sharp attention that outweighs the token itself: every part of the context matters.

        The factors are for the tiny model's width; wider ones get the same activations.
        """
        if "embed" in name:
            return 0.1
        narrowing = math.sqrt((128 if "down_proj" in name else 64) / fan_in)
        return narrowing * (1.0 if "qkv" in name or "o_proj" in name else 0.3)
