"""The most that agents' contexts hold at once: what counts, what counts once, and when it ends."""

from benchmarks.workloads.working_set import TOKEN_S, peak_tokens
from tests.replay.builders import request, workload
from tokencake_sglang.replay.tokens import Span

FIVE_TOKENS_S = 5 * TOKEN_S


def test_an_agent_counts_with_its_latest_context_through_its_calls():
    first = request("a/0", agent="a", tool_s=60.0, prompt=(Span("a", 0, 100),))
    second = request("a/1", agent="a", after="a/0", prompt=(Span("a", 0, 40), Span("b", 0, 10)))
    beside = request("b/0", agent="b", arrival_s=30.0, prompt=(Span("c", 0, 200),))
    # At 30 s the first agent is in its call, with 100 tokens and 5 of output.
    assert peak_tokens(workload(first, second, beside)) == 105 + 205
    assert peak_tokens(workload(first, second)) == 105


def test_what_contexts_share_counts_once():
    same = (Span("head", 0, 100),)
    both = workload(request("a", prompt=same), request("b", prompt=same))
    assert peak_tokens(both) == 100 + 5 + 5


def test_an_agent_that_has_ended_counts_no_more():
    first = request("a", prompt=(Span("a", 0, 100),))
    later = request("b", prompt=(Span("b", 0, 100),), arrival_s=FIVE_TOKENS_S)
    assert peak_tokens(workload(first, later)) == 105
    sooner = request("b", prompt=(Span("b", 0, 100),), arrival_s=FIVE_TOKENS_S / 2)
    assert peak_tokens(workload(first, sooner)) == 210
