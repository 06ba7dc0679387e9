"""Models for tests that need a server but no sense in its answers."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


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


HIDDEN, INTERMEDIATE, KV, VOCABULARY, LAYERS = 64, 128, 32, 1024, 2


def seeded_llama(directory: Path) -> Path:
    """The tiny Llama with weights on disk, the same for every rank: a wrong byte of KV shows.

    Sharp attention that outweighs the token itself makes every part of the context matter.
    """
    generator = torch.Generator().manual_seed(7)

    def weight(rows: int, columns: int, scale: float) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * scale

    weights = {
        "model.embed_tokens.weight": weight(VOCABULARY, HIDDEN, 0.1),
        "lm_head.weight": weight(VOCABULARY, HIDDEN, 0.3),
        "model.norm.weight": torch.ones(HIDDEN),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.self_attn.q_proj.weight": weight(HIDDEN, HIDDEN, 1.0),
            f"{prefix}.self_attn.k_proj.weight": weight(KV, HIDDEN, 1.0),
            f"{prefix}.self_attn.v_proj.weight": weight(KV, HIDDEN, 1.0),
            f"{prefix}.self_attn.o_proj.weight": weight(HIDDEN, HIDDEN, 1.0),
            f"{prefix}.mlp.gate_proj.weight": weight(INTERMEDIATE, HIDDEN, 0.3),
            f"{prefix}.mlp.up_proj.weight": weight(INTERMEDIATE, HIDDEN, 0.3),
            f"{prefix}.mlp.down_proj.weight": weight(HIDDEN, INTERMEDIATE, 0.3),
            f"{prefix}.input_layernorm.weight": torch.ones(HIDDEN),
            f"{prefix}.post_attention_layernorm.weight": torch.ones(HIDDEN),
        }
    tiny_llama(directory, tie_word_embeddings=False)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
