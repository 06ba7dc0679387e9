"""TokenCake as its authors released it, on SGLang: preservation, scheduling, and both.

Source: pku-lemonade/TokenCake, ``vllm/tokencake`` (``offload_policy.py``, ``offloading.py``,
``lifecycle.py``, ``scheduling.py``, ``config.py``) at the final defaults of its README. It differs
a lot from the paper (``tokencake_paper``): it copies the context of an agent in a tool call to the
host and frees nothing for it, brings nothing back by itself, and admits by a score.

What is different here, because the engine is SGLang's:

- A copy is of the whole path or not at all; theirs is of the longest prefix that is worth it.
- Theirs starts at 12 GB/s and takes its first measured transfer for the truth; here the link's
  measured speed is known from the beginning.
- Copies cannot be pinned on the host: SGLang evicts the least recently used there. In the
  published runs' counterpart (benchmarks/results/published_ordering.json) all that is ever copied
  is less than the host holds, so no pin would have mattered.
- SGLang loads a queued request's prefix back when it admits it, as theirs does.
- When a running request must give up its memory SGLang chooses which, not ``victim``.
- A block is in use when it is locked. Which cached blocks running requests hold is not to be seen,
  so a queued request's cached prefix counts as held when its application has a request running.
- A request is charged to shared and reserved capacity with all it may ever take, when it is
  admitted; theirs charges blocks as they are allocated.
"""

from benchmarks.rivals.tokencake_repo.policy import Both, OffloadOnly, SchedulingOnly

__all__ = ["Both", "OffloadOnly", "SchedulingOnly"]
