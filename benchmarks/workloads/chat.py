"""Untagged chat as background: single requests of a Poisson process, without an application.

Lengths are log-normal around their medians, clipped; nothing is measured, every number is an
argument. Requests share the product's system prompt and nothing else.
"""

import math
import random
from statistics import NormalDist

from tokencake_sglang.replay.tokens import Span
from tokencake_sglang.replay.workload import Header, Request, Workload


def generate(
    *,
    rate: float,
    duration_s: float,
    seed: int,
    system_tokens: int = 256,
    prompt_median: int = 512,
    prompt_sigma: float = 1.0,
    output_median: int = 200,
    output_sigma: float = 0.8,
    longest: int = 8192,
) -> Workload:
    """Requests from second 0 to ``duration_s``, ``rate`` a second on average.

    ``prompt_median`` does not count the system prompt; prompt and output are each at most
    ``longest`` tokens beside it.
    """
    if not (rate > 0 and duration_s > 0 and longest > 0):
        raise ValueError(
            "rate, duration_s and longest: expected numbers above 0, "
            f"got {rate}, {duration_s} and {longest}"
        )
    generator = random.Random(f"chat/{seed}")

    def tokens(median: int, sigma: float) -> int:
        normal = NormalDist().inv_cdf(generator.random() or 0.5)
        return min(max(round(median * math.exp(sigma * normal)), 1), longest)

    requests: list[Request] = []
    now_s = -math.log(1.0 - generator.random()) / rate
    while now_s < duration_s:
        name = f"chat/{seed}/{len(requests)}"
        prompt = [Span(f"{name}/user", 0, tokens(prompt_median, prompt_sigma))]
        if system_tokens:
            prompt.insert(0, Span("chat/system", 0, system_tokens))
        requests.append(
            Request(
                request_id=name,
                arrival_s=round(now_s, 6),
                prompt=tuple(prompt),
                output=(Span(f"{name}/output", 0, tokens(output_median, output_sigma)),),
            )
        )
        now_s -= math.log(1.0 - generator.random()) / rate
    header = Header(
        name="chat",
        source="generated",
        licence="Apache-2.0",
        options={
            "rate": rate,
            "duration_s": duration_s,
            "seed": seed,
            "system_tokens": system_tokens,
            "prompt_median": prompt_median,
            "prompt_sigma": prompt_sigma,
            "output_median": output_median,
            "output_sigma": output_sigma,
            "longest": longest,
        },
    )
    return Workload(header, requests)
