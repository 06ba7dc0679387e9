"""What the README says of options, flags and refusals is what the code does."""

import re
from pathlib import Path

import pytest

from tokencake_sglang import compat, plugin
from tokencake_sglang.agents.errors import HTTP_STATUS
from tokencake_sglang.config import FIELD_NAMES, TokencakeConfig, descriptions

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()

SWITCHES_OF_OUR_OWN = {"--enable-tokencake", "--tokencake-config"}
VARIABLES_OF_OUR_OWN = {"TOKENCAKE_ENABLE", "TOKENCAKE_CONFIG", "TOKENCAKE_CACHE_DIR"}


def option_table() -> str:
    """The table of options that the README has to hold, made from the configuration."""
    defaults = TokencakeConfig()
    rows = ["| option | default | what it is |", "|---|---|---|"]
    for name, (description, _) in descriptions().items():
        rows.append(f"| `{name}` | {_shown(getattr(defaults, name))} | {description} |")
    return "\n".join(rows)


def mode_list() -> str:
    """The refused modes as the README has to name them, made from ``compat``."""

    def shown(name: str) -> str:
        setting, *limit = re.split("( above | other than )", name)
        return f"`{setting}`{''.join(limit)}" if name.startswith(("--", "SGLANG")) else name

    return ", ".join(shown(mode.name) for mode in compat.UNSERVED_MODES) + "."


def _shown(default: object) -> str:
    if default is None or default == () or default == {}:
        return "–"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"--(?:enable-)?tokencake(?:-[a-z-]*[a-z])?\b(?!-<)", text))


def test_the_readme_lists_every_option_with_its_default():
    assert option_table() in README, f"put this into README.md:\n\n{option_table()}\n"


def test_the_readme_names_every_refused_mode():
    assert mode_list() in " ".join(README.split()), f"put this into README.md:\n\n{mode_list()}\n"


def test_the_readme_names_the_supported_version():
    assert f"SGLang {compat.SUPPORTED_SGLANG[-1]} only" in README


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        *sorted(f"docs/{p.name}" for p in (REPOSITORY / "docs").glob("*.md")),
    ],
)
class TestDocument:
    def test_names_only_flags_that_exist(self, document):
        known = SWITCHES_OF_OUR_OWN | {"--tokencake-" + n.replace("_", "-") for n in FIELD_NAMES}
        assert flags_in((REPOSITORY / document).read_text()) <= known

    def test_names_only_variables_that_exist(self, document):
        known = VARIABLES_OF_OUR_OWN | {f"TOKENCAKE_{name.upper()}" for name in FIELD_NAMES}
        named = re.findall(r"\bTOKENCAKE_[A-Z_]*[A-Z]\b", (REPOSITORY / document).read_text())
        assert set(named) <= known

    def test_links_only_to_files_that_exist(self, document):
        path = REPOSITORY / document
        targets = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
        assert [target for target in targets if not (path.parent / target).exists()] == []


def test_the_signals_document_gives_every_error_code_its_status():
    document = (REPOSITORY / "docs" / "signals.md").read_text()
    for code, status in HTTP_STATUS.items():
        assert f"| `{code}` | {status} |" in document


def test_the_design_lists_every_hook():
    document = (REPOSITORY / "docs" / "design.md").read_text()
    for hook in plugin.hooks(TokencakeConfig(record="trace.jsonl")):
        target = hook.target.removeprefix("sglang.srt.")
        assert f"| `{target}` | {hook.how} | {hook.feeds} |" in document
