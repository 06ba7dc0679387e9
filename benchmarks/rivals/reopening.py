"""SGLang's own order with one thing changed: admission is tried again as soon as anything changed.

No rival but a control: what of the other policies' gains is owed to this alone.
"""

from tokencake_sglang.policy import Policy


class Reopening(Policy):
    """Decides nothing else."""

    reopens_admission = True
