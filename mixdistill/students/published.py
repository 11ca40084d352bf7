"""DecoderConfig <-> the config.json of published checkpoints. What the decoder cannot compute is refused by name."""

import json
from collections.abc import Mapping
from typing import Any

from mixdistill.errors import UserError, unknown
from mixdistill.students.config import DecoderConfig, RopeScaling

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# Options whose only supported value is this one; absent means the same.
FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "attention_bias": False,
    "use_sliding_window": False,
    "pretraining_tp": 1,
}


def config_from_json(values: Mapping[str, Any], *, where: str) -> DecoderConfig:
    """`where` names the file in error messages."""
    kind = values.get("model_type")
    if kind not in ARCHITECTURES:
        raise unknown(f"model_type in {where}:", str(kind), ARCHITECTURES)
    for name, only in FIXED.items():
        if values.get(name, only) not in (only, None):
            raise UserError(f"{where}: {name} is {values[name]!r}; the decoder supports {only!r}")
    if set(values.get("layer_types") or ()) - {"full_attention"}:
        raise UserError(
            f"{where}: layer_types is {sorted(set(values['layer_types']))}; only full_attention is supported"
        )
    try:
        heads = values["num_attention_heads"]
        base, scaling = _rope(values, where)
        return DecoderConfig(
            vocab_size=values["vocab_size"],
            embed=values["hidden_size"],
            layers=values["num_hidden_layers"],
            heads=heads,
            kv_heads=values.get("num_key_value_heads") or heads,
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
            mlp=values["intermediate_size"],
            rope_base=base,
            rope_scaling=scaling,
            qk_norm=kind == "qwen3",
            qkv_bias=kind == "qwen2",
            tied=bool(values.get("tie_word_embeddings", False)),
            norm_eps=values.get("rms_norm_eps", 1e-6),
        )
    except KeyError as error:
        raise UserError(f"{where} lacks {error.args[0]!r}") from None


def _rope(values: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from `rope_parameters` or from the older `rope_theta` and `rope_scaling`."""
    given = values.get("rope_parameters") or values.get("rope_scaling") or {}
    base = float(given.get("rope_theta") or values.get("rope_theta") or 10_000.0)
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind == "default":
        return base, None
    if kind != "llama3":
        raise UserError(f"{where}: rope type is {json.dumps(kind)}; the decoder supports default and llama3")
    return base, RopeScaling(
        factor=float(given["factor"]),
        low_freq_factor=float(given["low_freq_factor"]),
        high_freq_factor=float(given["high_freq_factor"]),
        original_length=int(given["original_max_position_embeddings"]),
    )


def config_to_json(config: DecoderConfig, *, max_length: int) -> dict[str, Any]:
    """The config.json of the published architecture that computes the same; raises `UserError` if there is none."""
    base = config.rope_base
    extra = {
        f"mlp_kind={config.mlp_kind!r}": config.mlp_kind != "swiglu",
        "no position encoding": base is None,
        f"conv_width={config.conv_width}": config.conv_width > 0,
        f"soft_cap={config.soft_cap}": config.soft_cap is not None,
        "qk_norm together with qkv_bias": config.qk_norm and config.qkv_bias,
    }
    if any(extra.values()):
        names = ", ".join(name for name, has in extra.items() if has)
        raise UserError(f"no published architecture has {names}; known: {', '.join(ARCHITECTURES)}")
    kind = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_length,
        }
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": max_length,
        "attention_bias": False,
        "rope_parameters": rope,
        "rope_theta": base,  # read by transformers before version 5
        "rope_scaling": {k: v for k, v in rope.items() if k != "rope_theta"} if config.rope_scaling else None,
        "torch_dtype": config.param_dtype,
    }
