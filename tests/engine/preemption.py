"""Runs on a scheduler that preempts by priority, for a process of their own."""

from pathlib import Path

from sglang.srt.managers.schedule_policy import PrefillAdder

from tests.engine.scenarios import prompt
from tests.scheduler_harness import SchedulerHarness
from tokencake_sglang.agents.identity import AgentTag

FLAGS = (
    *("--enable-tokencake", "--max-running-requests", "2", "--enable-priority-scheduling"),
    *("--priority-scheduling-preemption-threshold", "0", "--hicache-ratio", "4"),
)


def run_preempted(directory: Path, applications: tuple[str | None, ...]) -> tuple[int, list[int]]:
    """Two requests fill the places of those that run; a third has the higher priority.

    Each belongs to one of ``applications``, or is untagged. Checks tokens and books.

    Returns:
        How often SGLang preempted, and the requests in the order of their ends.
    """
    harness = SchedulerHarness(directory, *FLAGS, kv_tokens=2048)
    preempted = []
    preempt = PrefillAdder.preempt_to_schedule

    def counted(adder, req, *args, **kwargs):
        if done := preempt(adder, req, *args, **kwargs):
            preempted.append(req.rid)
        return done

    PrefillAdder.preempt_to_schedule = counted
    tags = [
        None if name is None else AgentTag(agent=f"agent-{number}", application=name)
        for number, name in enumerate(applications)
    ]
    sizes = [(900, 60), (500, 60), (800, 40)]
    prompts = [prompt(number, tokens) for number, (tokens, _) in enumerate(sizes)]
    rids = [harness.submit(prompts[n], sizes[n][1], tags[n], priority=0) for n in (0, 1)]
    harness.step(4)
    rids.append(harness.submit(prompts[2], sizes[2][1], tags[2], priority=5))
    outputs = harness.run(*rids)
    ends = sorted(range(3), key=lambda number: harness.finished_at_step[rids[number]])
    harness.finish_everything()
    harness.flush()
    for ids, (_, tokens), output in zip(prompts, sizes, outputs, strict=True):
        assert harness.generate(ids, tokens) == output
    harness.finish_everything()
    harness.check_accounting()
    assert harness.cache.pin_count == 0
    return len(preempted), ends


def run_short_beside_long(directory: Path) -> list[int]:
    """A short prompt comes while a long one is prefilled in chunks of 512, of priority 1.

    Returns:
        Where the second chunk ends: once where the short one's priority is 0, then for 1 and 2.
    """
    harness = SchedulerHarness(directory, *FLAGS, kv_tokens=2048)
    ends = []
    for priority in (0, 1, 2):
        harness.start_over()
        long = harness.submit(
            prompt(1, 1500), 4, AgentTag(agent="long", application="app"), priority=1
        )
        harness.step()
        short = harness.submit(
            prompt(2, 100), 4, AgentTag(agent="short", application="app"), priority=priority
        )
        harness.step()
        ends.append(harness.scheduler.chunked_req.extend_end)
        harness.run(long, short)
    return ends
