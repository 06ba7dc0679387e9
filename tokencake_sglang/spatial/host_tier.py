"""Whether the host tier is large enough for the agents that are to work at once."""


def host_shortage(
    *, agents: int, context_tokens: int, host_tokens: int, pool_tokens: int
) -> str | None:
    """What to tell the operator at start; None where all contexts find room in the host tier.

    Args:
        agents: how many are expected to work at once.
        context_tokens: the length of one agent's context.
        host_tokens: size of the host tier.
        pool_tokens: size of the KV pool on the device.
    """
    needed_tokens = agents * context_tokens
    if needed_tokens <= host_tokens:
        return None
    return (
        f"the host tier holds {host_tokens:,} tokens, {agents:,} agents of {context_tokens:,} have "
        f"{needed_tokens:,}: what does not fit is computed again at each turn. "
        f"--hicache-ratio {needed_tokens / pool_tokens + 0.05:.1f} would hold them all, "
        f"this one holds {host_tokens // context_tokens:,}"
    )
