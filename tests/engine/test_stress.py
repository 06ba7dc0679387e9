"""Random agents on a pool far too small: whatever happens, everything finishes and adds up."""

import random

import pytest

from tests.engine.scenarios import prompt
from tests.scheduler_harness import SchedulerHarness
from tokencake_sglang.agents.events import AgentFinish, ApplicationFinish, CallFinish, CallStart
from tokencake_sglang.agents.identity import AgentTag

TURNS = 60


class RandomAgents:
    """Several applications of agents that share a head, take turns and stop at tool calls.

    Calls end early, late or never; requests are aborted; some agents are critical.
    """

    def __init__(self, harness: SchedulerHarness, seed: int) -> None:
        self.harness = harness
        self.rng = random.Random(seed)
        self.contexts: dict[AgentTag, list[int]] = {}
        self.running: dict[str, tuple[AgentTag, list[int]]] = {}
        self.ending: list[tuple[float, AgentTag, str]] = []
        self.gone: set[AgentTag] = set()
        for application in range(4):
            head = prompt(seed * 100 + application, self.rng.randrange(50, 300))
            for agent in range(3):
                tag = AgentTag(
                    agent=f"agent-{agent}",
                    application=f"application-{application}",
                    agent_type=self.rng.choice(["small", "default"]),
                    critical=self.rng.random() < 0.3,
                )
                self.contexts[tag] = list(head)

    def play(self) -> list[tuple[list[int], list[int]]]:
        """Plays all turns; returns (prompt, output) of those that were not aborted."""
        done = []
        begun = 0
        for _ in range(4000):
            if begun == TURNS and not self.running and not self.ending:
                return done
            self._end_calls()
            if begun < TURNS and self.rng.random() < 0.5:
                begun += self._begin_turn()
            self.harness.at(self.harness.now_s + self.rng.random())
            self.harness.step(self.rng.randrange(1, 4))
            self._check_residents()
            done += self._collect()
        raise AssertionError(f"stuck with {len(self.running)} requests after {begun} turns")

    def _check_residents(self) -> None:
        cache = self.harness.cache
        for resident in self.harness.planner.residents.values():
            _, host_only = cache.tokens_by_tier(resident.leaf_id)
            assert cache.host_only_tokens(resident.leaf_id) == host_only

    def _begin_turn(self) -> int:
        busy = {tag for tag, _ in self.running.values()} | {tag for _, tag, _ in self.ending}
        free = [tag for tag in self.contexts if tag not in busy]
        if not free:
            return 0
        tag = self.rng.choice(free)
        context = self.contexts[tag] + prompt(self.rng.randrange(10**6), self.rng.randrange(1, 400))
        if len(context) > 1500:
            context = context[:300]
        self.gone.discard(tag)
        rid = self.harness.submit(context, self.rng.randrange(1, 60), tag)
        self.running[rid] = (tag, context)
        return 1

    def _collect(self) -> list[tuple[list[int], list[int]]]:
        done = []
        for rid, (tag, context) in list(self.running.items()):
            if rid in self.harness.finished:
                output = self.harness.finished[rid]
                self.contexts[tag] = context + output
                done.append((context, output))
                del self.running[rid]
                self._after_turn(tag, rid)
            elif self.rng.random() < 0.01:
                self.harness.abort(rid)
                del self.running[rid]
        return done

    def _after_turn(self, tag: AgentTag, call_id: str) -> None:
        who = {"agent": tag.agent, "application": tag.application}
        chance = self.rng.random()
        if chance < 0.05:
            self.harness.send(AgentFinish(**who))
            self.gone.add(tag)
        elif chance < 0.07:
            self.harness.send(ApplicationFinish(application=tag.application))
            self.gone |= {other for other in self.contexts if other.application == tag.application}
        elif chance < 0.9 and tag not in self.gone:
            duration_s = self.rng.choice([0.1, 1.0, 5.0, 30.0])
            predicted_s = self.rng.choice([None, duration_s, 3 * duration_s, duration_s / 3])
            self.harness.send(
                CallStart(**who, call_id=call_id, tool="tool", predicted_s=predicted_s)
            )
            self.ending.append((self.harness.now_s + duration_s, tag, call_id))

    def _end_calls(self) -> None:
        for ending in list(self.ending):
            end_s, tag, call_id = ending
            if end_s > self.harness.now_s:
                continue
            self.ending.remove(ending)
            agent = self.harness.planner.table.get(tag.key)
            if agent.open_call(call_id) and self.rng.random() < 0.9:
                self.harness.send(
                    CallFinish(agent=tag.agent, application=tag.application, call_id=call_id)
                )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_everything_finishes_with_the_right_tokens(harness, seed):
    turns = RandomAgents(harness, seed).play()
    assert harness.decisions("release"), "no pressure: nothing was put to the test"
    harness.finish_everything()
    harness.flush()
    for context, output in random.Random(seed).sample(turns, 8):
        assert harness.generate(context, len(output)) == output
