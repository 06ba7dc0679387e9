"""TokenCake as its second version publishes it (arXiv 2510.18586 v2, §3 to §5).

A stalled agent's own KV leaves the device when a waiting request can use the time (Algorithm 1),
and is brought back before the call is predicted to end. Agent types that score highest are
critical, and have memory that others cannot take (Algorithm 2).

The formulas are as published, their defects included: the dynamic priority rises with a request's
length and falls, in the end below zero, with a wait above length / e; depth times out-degree is
nothing for an application's last step; the shares of the reserve do not add up to it.

Chosen where the paper is silent: weights of one half in Eq. 1 and one second where nothing is
known; critical ratio, reserve, watermarks and period (the released code's); five steps of gradual
reservation and 0.1 s of buffer for "soon" (a third party's reading); throughput is the server's
profiled prefill speed; the gate is asked again each step while the call runs, and each waiting
request answers for one context; a context that stays is pinned while the call runs; contexts come
back one at a time, only the first in line has slots promised, and an upload is kept until the step
that follows it is admitted; requests whose context is pinned go first, for they free it, then the
queue is ordered by the hybrid score. Its baseline has no host
tier, so nothing else is copied; a tree needs a node's parents on the host as well, so a copy, not
a release, takes shared ones along.
"""

from benchmarks.rivals.tokencake_paper.policy import Paper

__all__ = ["Paper"]
