"""The optional patches: each applies cleanly to its SGLang, and does what it says."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PATCHES = sorted((Path(__file__).parents[2] / "patches").glob("sglang-*/*.patch"))
PROTOCOL = "sglang/srt/entrypoints/openai/protocol.py"

patch_program = pytest.mark.skipif(
    shutil.which("patch") is None and shutil.which("git") is None,
    reason="neither the patch program nor git is installed",
)


def site_packages() -> Path:
    """Where SGLang is installed; found without importing it."""
    locations = importlib.util.find_spec("sglang").submodule_search_locations
    return Path(locations[0]).parent


def installed_version() -> str:
    from importlib.metadata import version

    return version("sglang")


def apply(patch: Path, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs patch as patches/README.md says, or git where there is no patch program."""
    if shutil.which("patch"):
        command = ["patch", "-p1", "--force", "--fuzz=0", "-d", str(directory), *options]
        command += ["-i", str(patch)]
    else:
        check = ["--check"] if "--dry-run" in options else []
        reverse = ["--reverse"] if "--reverse" in options else []
        command = ["git", "-C", str(directory), "apply", "-p1", *check, *reverse, str(patch)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def copy_of_target(directory: Path, path: str) -> Path:
    """A copy of the installed file, at its place in a tree of its own."""
    copy = directory / path
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(site_packages() / path, copy)
    return copy


def is_applied(patch: Path, directory: Path) -> bool:
    return apply(patch, directory, "--reverse", "--dry-run").returncode == 0


def targets_of(patch: Path) -> list[str]:
    lines = patch.read_text().splitlines()
    return [line.removeprefix("+++ b/") for line in lines if line.startswith("+++ b/")]


def test_there_is_a_patch():
    assert PATCHES


@patch_program
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_patch_applies_to_its_sglang_and_can_be_undone(patch, tmp_path):
    made_for = patch.parent.name.removeprefix("sglang-")
    if installed_version() != made_for:
        pytest.skip(f"made for SGLang {made_for}, installed is {installed_version()}")
    copies = [copy_of_target(tmp_path, path) for path in targets_of(patch)]
    if is_applied(patch, tmp_path):
        pytest.skip("the installed SGLang is patched already")
    before = [copy.read_bytes() for copy in copies]

    dry = apply(patch, tmp_path, "--dry-run")
    assert dry.returncode == 0, dry.stdout + dry.stderr
    assert [copy.read_bytes() for copy in copies] == before

    applied = apply(patch, tmp_path)
    assert applied.returncode == 0, applied.stdout + applied.stderr
    assert "offset" not in applied.stdout, "the line numbers are not this version's"
    assert all(copy.read_bytes() != old for copy, old in zip(copies, before, strict=True))

    undone = apply(patch, tmp_path, "--reverse")
    assert undone.returncode == 0, undone.stdout + undone.stderr
    assert [copy.read_bytes() for copy in copies] == before


@patch_program
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_patch_says_what_it_adds_and_is_listed(patch):
    assert not patch.read_text().startswith("---")
    readme = (patch.parents[1] / "README.md").read_text()
    assert f"({patch.parent.name}/{patch.name})" in readme


@pytest.fixture
def patched_protocol(tmp_path):
    """SGLang's protocol module with the patch, beside the installed one."""
    patch = next(patch for patch in PATCHES if patch.stem == "responses-custom-params")
    copy = copy_of_target(tmp_path, PROTOCOL)
    if not is_applied(patch, tmp_path):
        applied = apply(patch, tmp_path)
        assert applied.returncode == 0, applied.stdout + applied.stderr
    name = "patched_protocol"
    spec = importlib.util.spec_from_file_location(name, copy)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic looks names up there
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[name]


@pytest.mark.slow
@patch_program
def test_a_patched_responses_request_carries_its_tag_to_the_sampling_params(patched_protocol):
    tag = {"tokencake": {"agent": "reviewer", "application": "build-17"}}
    request = patched_protocol.ResponsesRequest(input="hi", custom_params=tag)
    assert request.to_sampling_params()["custom_params"] == tag


@pytest.mark.slow
@patch_program
def test_a_patched_responses_request_without_custom_params_is_as_before(patched_protocol):
    from sglang.srt.entrypoints.openai import protocol

    patched = patched_protocol.ResponsesRequest(input="hi", top_k=3).to_sampling_params()
    assert patched == protocol.ResponsesRequest(input="hi", top_k=3).to_sampling_params()
    assert "custom_params" not in patched


@pytest.mark.slow
def test_stock_sglang_still_needs_the_patch():
    """When this fails, the patch for this version can go."""
    from sglang.srt.entrypoints.openai import protocol

    if "custom_params" in protocol.ResponsesRequest.model_fields:
        pytest.skip("the installed SGLang is patched already")
    request = protocol.ResponsesRequest(input="hi", custom_params={"tokencake": {"agent": "a"}})
    assert "custom_params" not in request.to_sampling_params()
