"""What a model costs per token, from its Hugging Face ``config.json``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """Sizes that the cost model needs. Bytes are per replica, all layers, at ``dtype_bytes``.

    ``layer_flops_per_token``: of all linear layers for one token, a multiply-add counting as two.
    ``attention_flops_per_pair``: for one query token against one key token, all layers and heads.
    ``layer_weight_bytes``: read once a forward; for a mixture of experts without the experts.
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


def load_model_profile(path: str | Path, dtype_bytes: int = 2) -> ModelProfile:
    """Reads ``config.json``, or the file itself where ``path`` is one.

    Raises:
        ValueError: naming the missing field, for a config that is not a decoder of the usual kind.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    return model_profile(json.loads(file.read_text()), file.parent.name, dtype_bytes)


def model_profile(config: dict[str, Any], name: str, dtype_bytes: int = 2) -> ModelProfile:
    """The profile of a dense or mixture-of-experts decoder with grouped-query attention."""

    def field(key: str, default: Any = None) -> Any:
        value = config.get(key, default)
        if value is None:
            raise ValueError(f"{name}: config.json has no {key!r}, which the cost model needs")
        return value

    hidden, layers = field("hidden_size"), field("num_hidden_layers")
    heads = field("num_attention_heads")
    kv_heads = field("num_key_value_heads", heads)
    head_dim = config.get("head_dim") or hidden // heads
    attention_weights = hidden * head_dim * (2 * heads + 2 * kv_heads)
    experts = config.get("num_experts") or config.get("num_local_experts") or 0
    per_token = config.get("num_experts_per_tok") or 0
    if experts:
        expert_size = config.get("moe_intermediate_size") or field("intermediate_size")
        expert_weights = 3 * hidden * expert_size
        shared = 3 * hidden * (config.get("shared_expert_intermediate_size") or 0)
        fixed_weights = attention_weights + shared + hidden * experts
        active_weights = fixed_weights + per_token * expert_weights
    else:
        expert_weights = 0
        fixed_weights = attention_weights + 3 * hidden * field("intermediate_size")
        active_weights = fixed_weights
    head_weights = hidden * field("vocab_size")
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
    )
