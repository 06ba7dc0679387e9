"""What a measurement in real time has to say of the machine it was made on."""

import os
import platform
from importlib.metadata import version
from typing import Any


def description() -> dict[str, Any]:
    """Processor, load and versions, as JSON."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "python": platform.python_version(),
        **{name: version(name) for name in ("sglang", "torch", "tokencake-sglang")},
    }
