"""Models for tests that need a server but no sense in its answers."""

import json
from pathlib import Path


def tiny_llama(directory: Path, **overrides) -> Path:
    """Write the config of a two-layer Llama into `directory`, and return `directory`.

    There are no weights and no tokenizer: serve it with `--load-format dummy --skip-tokenizer-init`.
    KV cache: 512 bytes per token in float32. `overrides` are fields of the Hugging Face config.
    """
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
        "max_position_embeddings": 32768,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config | overrides, indent=2))
    return directory
