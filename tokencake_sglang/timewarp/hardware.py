"""How fast a machine is: small TOML files with their sources."""

import json
import tomllib
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path


@dataclass(frozen=True, slots=True)
class HardwareProfile:
    """One accelerator and its link to the host. Efficiencies are what is reached of the peak.

    ``step_overhead_s``: launch and sampling of one forward beside what the model costs.
    """

    name: str
    peak_flops: float
    compute_efficiency: float
    memory_bytes_per_s: float
    memory_efficiency: float
    memory_bytes: float
    host_to_device_bytes_per_s: float
    device_to_host_bytes_per_s: float
    copy_latency_s: float
    step_overhead_s: float
    sources: tuple[str, ...] = ()


def load_hardware_profile(name: str) -> HardwareProfile:
    """A built-in profile by name, or a profile of your own by the path of its ``.toml`` file.

    Raises:
        ValueError: naming the profiles there are, or the field that does not fit.
    """
    if name.endswith(".toml"):
        text, stem = Path(name).read_text(), Path(name).stem
    else:
        file = files(__package__).joinpath("profiles", f"{name}.toml")
        if not file.is_file():
            raise ValueError(f"hardware: no profile {name!r}; there are {', '.join(profiles())}")
        text, stem = file.read_text(), name
    values = tomllib.loads(text)
    try:
        return HardwareProfile(name=stem, sources=tuple(values.pop("sources", ())), **values)
    except TypeError as error:
        raise ValueError(f"hardware profile {name}: {error}") from None


def profile_toml(profile: HardwareProfile) -> str:
    """The profile as the text of a ``.toml`` file that ``load_hardware_profile`` reads."""
    lines = ["sources = ["]
    # A JSON string is a TOML basic string, too.
    lines += [f"    {json.dumps(source, ensure_ascii=False)}," for source in profile.sources]
    lines.append("]")
    for field in fields(profile):
        if field.name not in ("name", "sources"):
            lines.append(f"{field.name} = {float(getattr(profile, field.name)):.6g}")
    return "\n".join(lines) + "\n"


def profiles() -> list[str]:
    """Names of the built-in profiles."""
    folder = files(__package__).joinpath("profiles")
    return sorted(Path(file.name).stem for file in folder.iterdir() if file.name.endswith(".toml"))
