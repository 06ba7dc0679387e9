"""Published policies of others, and an oracle, behind the same interface and on the same engine.

Each module says which formulas it takes from where, what its source is silent about and what was
chosen there.

All of them set ``reopens_admission``: most were published on engines that try to admit at every
step, and none should carry SGLang's habit of trying only when a request has ended. ``reopening`` is
the control: that alone.
"""

from tokencake_sglang.replay.systems import System


def _rival(name: str, what: str, policy: str, *flags: str) -> System:
    return System(
        name,
        what,
        flags=("--enable-tokencake", "--tokencake-policy", f"benchmarks.rivals.{policy}", *flags),
    )


# Where a source names no order of the queue, the best of SGLang's own.
_LPM = ("--schedule-policy", "lpm")

RIVALS: dict[str, System] = {
    system.name: system
    for system in (
        _rival("reopen-fcfs", "SGLang's order; admission reopens", "reopening:Reopening"),
        _rival("reopen-lpm", "SGLang's lpm; admission reopens", "reopening:Reopening", *_LPM),
        _rival("kvflow", "steps-to-execution eviction, next-step prefetch", "kvflow:KVFlow", *_LPM),
        _rival("continuum", "TTL pins, programs in order of arrival", "continuum:Continuum"),
        _rival("thunderagent", "working set of programs, with decay", "thunderagent:ThunderAgent"),
        _rival("infercept", "least waste of preserve, swap and discard", "infercept:InferCept"),
        _rival("mori", "programs ranked by idleness into tiers", "mori:Mori", *_LPM),
        _rival("tokencake-paper", "the paper's rules as published", "tokencake_paper:Paper"),
        _rival("tokencake-repo", "the authors' released code, both halves", "tokencake_repo:Both"),
        _rival("tokencake-repo-offload", "its preservation alone", "tokencake_repo:OffloadOnly"),
        _rival(
            "tokencake-repo-scheduling", "its scheduling alone", "tokencake_repo:SchedulingOnly"
        ),
        _rival("oracle-age", "every return known, applications by age", "oracle:ByAge"),
        _rival("oracle-backfill", "the same, passing over what does not fit", "oracle:Backfilling"),
        _rival("oracle-shortest", "every return known, least work first", "oracle:Shortest"),
        _rival(
            "oracle-lpm",
            "every return known, longest prefix match first",
            "oracle:ServerOrder",
            *_LPM,
        ),
        _rival("oracle-fcfs", "every return known, first come, first served", "oracle:ServerOrder"),
    )
}
