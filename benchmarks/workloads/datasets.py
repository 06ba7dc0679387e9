"""Where the data sets lie: whole ones beside the checkout if present, else the committed slices."""

from pathlib import Path

SLICES = Path(__file__).resolve().parent.parent / "data"
WHOLE = Path(__file__).resolve().parents[3] / "shared" / "data"


def path(whole: str, slice_: str) -> Path:
    """The file ``whole`` of ``../shared/data``, or the file ``slice_`` of ``benchmarks/data``."""
    candidate = WHOLE / whole
    return candidate if candidate.exists() else SLICES / slice_
