"""When an upload must start so that it ends before its agent's request comes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UploadTiming:
    """Uploads end ``lead_s`` before the expected return, at the link's speed one way."""

    link_tokens_per_s: float
    lead_s: float

    def start_s(self, return_s: float, host_tokens: int) -> float:
        """When the upload of ``host_tokens`` must start for a return at ``return_s``."""
        return return_s - host_tokens / self.link_tokens_per_s - self.lead_s
