"""When to start an upload."""

import math

from tokencake_sglang.temporal.upload import UploadTiming

# Qwen2.5-14B over PCIe 4: 25e9 B/s / 196,608 B per token.
LINK_TOKENS_PER_S = 25e9 / 196_608


def test_an_upload_ends_its_lead_before_the_return():
    timing = UploadTiming(link_tokens_per_s=LINK_TOKENS_PER_S, lead_s=0.2)
    start_s = timing.start_s(return_s=100.0, host_tokens=127_157)  # one second of link
    assert math.isclose(start_s, 98.8, abs_tol=1e-4)
