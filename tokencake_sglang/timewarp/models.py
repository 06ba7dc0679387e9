"""What a model costs per token, from its Hugging Face ``config.json``.

``model_configs/`` holds the fields of some models' files that cost something, by name.
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

# Latent attention, and layers that differ from one another.
_NOT_COVERED = ("kv_lora_rank", "mlp_only_layers", "first_k_dense_replace", "layers_block_type")


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """Sizes that the cost model needs. Bytes are per replica, all layers, at ``dtype_bytes``.

    ``layer_flops_per_token``: of all linear layers for one token, a multiply-add counting as two.
    ``attention_flops_per_pair``: for one query token against one key token, all layers and heads.
    ``layer_weight_bytes``: read once a forward; for a mixture of experts without the experts.
    ``parameters``: of all matrices, the embedding included; norms and biases are left out, less
    than a thousandth. ``active_parameters``: those that one token meets.
    """

    name: str
    layers: int
    kv_bytes_per_token: int
    layer_flops_per_token: float
    attention_flops_per_pair: float
    layer_weight_bytes: float
    head_flops: float
    head_weight_bytes: float
    experts: int = 0
    experts_per_token: int = 0
    expert_weight_bytes: float = 0.0
    parameters: int = 0
    active_parameters: int = 0

    def weight_bytes_read(self, tokens: int) -> float:
        """Weights a forward of ``tokens`` tokens reads from memory.

        A mixture of experts reads those that at least one token was routed to; with uniform
        routing that is ``E (1 - (1 - k/E)^n)`` of them in expectation.
        """
        read = self.layer_weight_bytes + self.head_weight_bytes
        if self.experts:
            missed = (1.0 - self.experts_per_token / self.experts) ** tokens
            read += self.expert_weight_bytes * self.experts * (1.0 - missed)
        return read


def load_model_profile(name_or_path: str | Path, dtype_bytes: int = 2) -> ModelProfile:
    """The profile of a built-in model, of a ``config.json``, or of the directory that has one.

    Raises:
        ValueError: naming the models there are, or the field of the config that is missing or that
            the cost model does not cover.
    """
    file = Path(name_or_path)
    if file.is_dir():
        file = file / "config.json"
        name = file.parent.resolve().name
        if not file.is_file():
            raise ValueError(f"model: {file}: there is no such file")
    else:
        name = file.stem if file.stem != "config" else file.parent.resolve().name
    if file.is_file():
        return model_profile(json.loads(file.read_text()), name, dtype_bytes)
    return model_profile(config_of(str(name_or_path)), str(name_or_path).lower(), dtype_bytes)


def config_of(name: str) -> dict[str, Any]:
    """The fields of a built-in model's config; upper and lower case are the same.

    Raises:
        ValueError: naming the models there are.
    """
    if name.lower() not in models():
        raise ValueError(
            f"model: no {name!r}; there are {', '.join(models())}, or give the path of a config.json"
        )
    file = files(__package__).joinpath("model_configs", f"{name.lower()}.json")
    config: dict[str, Any] = json.loads(file.read_text())
    return config


def models() -> list[str]:
    """Names of the built-in models."""
    folder = files(__package__).joinpath("model_configs")
    return sorted(
        file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json")
    )


def model_profile(config: dict[str, Any], name: str, dtype_bytes: int = 2) -> ModelProfile:
    """The profile of a dense or mixture-of-experts decoder with grouped-query attention.

    Raises:
        ValueError: naming the field that is missing, or that means something else than such a
            decoder with the same layer throughout.
    """

    def field(key: str, default: Any = None) -> Any:
        value = config.get(key, default)
        if value is None:
            raise ValueError(f"{name}: config.json has no {key!r}, which the cost model needs")
        return value

    for key in _NOT_COVERED:
        if config.get(key):
            raise ValueError(
                f"{name}: config.json has {key!r}, which the cost model does not cover"
            )
    if config.get("decoder_sparse_step", 1) != 1:
        raise ValueError(
            f"{name}: decoder_sparse_step {config['decoder_sparse_step']}: expected 1, experts in "
            "every layer"
        )
    hidden, layers = field("hidden_size"), field("num_hidden_layers")
    heads = field("num_attention_heads")
    kv_heads = field("num_key_value_heads", heads)
    head_dim = config.get("head_dim") or hidden // heads
    attention_weights = hidden * head_dim * (2 * heads + 2 * kv_heads)
    experts = config.get("num_experts") or config.get("num_local_experts") or 0
    per_token = config.get("num_experts_per_tok") or 0
    if experts:
        expert_size = config.get("moe_intermediate_size") or field("intermediate_size")
        if not per_token:
            raise ValueError(f"{name}: config.json has experts but no 'num_experts_per_tok'")
        expert_weights = 3 * hidden * expert_size
        shared = 3 * hidden * (config.get("shared_expert_intermediate_size") or 0)
        fixed_weights = attention_weights + shared + hidden * experts
        active_weights = fixed_weights + per_token * expert_weights
    else:
        expert_weights = 0
        fixed_weights = attention_weights + 3 * hidden * field("intermediate_size")
        active_weights = fixed_weights
    head_weights = hidden * field("vocab_size")
    embeddings = head_weights * (1 if config.get("tie_word_embeddings") else 2)
    return ModelProfile(
        name=name,
        layers=layers,
        kv_bytes_per_token=2 * layers * kv_heads * head_dim * dtype_bytes,
        layer_flops_per_token=2.0 * layers * active_weights,
        attention_flops_per_pair=4.0 * layers * heads * head_dim,
        layer_weight_bytes=float(layers * fixed_weights * dtype_bytes),
        head_flops=2.0 * head_weights,
        head_weight_bytes=float(head_weights * dtype_bytes),
        experts=experts,
        experts_per_token=per_token,
        expert_weight_bytes=float(layers * expert_weights * dtype_bytes),
        parameters=layers * (fixed_weights + experts * expert_weights) + embeddings,
        active_parameters=layers * active_weights + embeddings,
    )
