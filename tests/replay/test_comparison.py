"""Figures side by side, and what is said of them."""

from tokencake_sglang.replay.comparison import table, verdict


def figures(mean=10.0, p95=20.0, makespan=30.0, wasted=1000, returning=0.5):
    """The shape that ``figures.figures`` returns, as far as the table needs it."""
    return {
        "applications": 3,
        "end_to_end_s": {"mean": mean, "p50": mean, "p95": p95, "p99": p95, "max": p95},
        "makespan_s": makespan,
        "first_token_s": {"returning": {"mean": returning, "p95": returning}},
        "prefill_tokens": {"computed": 12_345, "needed": 11_345, "wasted": wasted},
        "hits": {"device_tokens": 5, "host_tokens": 6},
        "transfers": {"to_device_bytes": 2.5e9},
        "retractions": 0,
    }


def test_every_system_is_a_column_and_every_figure_a_line():
    lines = table({"hicache": figures(), "tokencake": figures(mean=9.0)}).splitlines()
    assert lines[0].split() == ["hicache", "tokencake"]
    assert "end to end, mean                        10.0 s    9.000 s" in lines
    assert any(line.split() == ["prefill", "computed", "12,345", "12,345"] for line in lines)
    assert any(
        line.split() == ["copied", "to", "the", "device", "2.5", "GB", "2.5", "GB"]
        for line in lines
    )
    assert not any("P50" in line and "returning" in line for line in lines), "nobody has it"


def test_a_figure_that_one_run_has_not_is_a_dash():
    without = figures()
    del without["first_token_s"]["returning"]["mean"]
    line = next(
        line
        for line in table({"a": figures(), "b": without}).splitlines()
        if line.startswith("first token of a returning turn, mean")
    )
    assert line.split()[-1] == "–"


def test_the_verdict_says_who_is_best_at_what():
    said = verdict(
        {
            "hicache": figures(makespan=25.0),
            "hicache-lpm": figures(mean=8.0),
            "tokencake": figures(mean=8.05, p95=15.0, wasted=0),
        }
    )
    assert said == (
        "hicache-lpm and tokencake are best at mean end-to-end time; tokencake is best at P95 "
        "end-to-end time, P99 end-to-end time and wasted prefill; hicache is best at makespan; "
        "all are equal in mean first token of returning turns and P95 first token of returning "
        "turns (within 1% counts as equal)."
    )


def test_one_system_is_compared_with_nothing():
    assert "nothing to compare" in verdict({"hicache": figures()})
