"""DecoderConfig <-> the config.json of published checkpoints. What the decoder cannot compute is refused by name."""

import json
from collections.abc import Mapping
from typing import Any

from mixdistill.errors import UserError, unknown
from mixdistill.students.config import DecoderConfig, RopeScaling, Window

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
FULL, SLIDING = "full_attention", "sliding_attention"

# Options whose only supported value is this one; absent means the same.
FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_activation": "gelu_pytorch_tanh",
    "mlp_bias": False,
    "attention_bias": False,
    "pretraining_tp": 1,
    "attn_logit_softcapping": None,
    "use_bidirectional_attention": False,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
}


def config_from_json(values: Mapping[str, Any], *, where: str) -> DecoderConfig:
    """`where` names the file in error messages."""
    if not isinstance(values, dict):
        raise UserError(f"{where} holds {type(values).__name__}; a configuration is a JSON object")
    kind = values.get("model_type")
    if kind not in ARCHITECTURES:
        raise unknown(f"model_type in {where}:", str(kind), ARCHITECTURES)
    for name, only in FIXED.items():
        if values.get(name, only) not in (only, None):
            raise UserError(f"{where}: {name} is {values[name]!r}; the decoder supports {only!r}")
    gemma = kind == "gemma3_text"
    try:
        heads = values["num_attention_heads"]
        base, scaling = _rope(values, where, FULL, "rope_theta", 1e6 if gemma else 1e4)
        return DecoderConfig(
            vocab_size=values["vocab_size"],
            embed=values["hidden_size"],
            layers=values["num_hidden_layers"],
            heads=heads,
            kv_heads=values.get("num_key_value_heads") or heads,
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
            mlp=values["intermediate_size"],
            mlp_kind="geglu" if gemma else "swiglu",
            rope_base=base,
            rope_scaling=scaling,
            window=_window(values, kind, where),
            qk_norm=kind in ("qwen3", "gemma3_text"),
            qkv_bias=kind == "qwen2",
            attention_scale=values.get("query_pre_attn_scalar", 256) ** -0.5 if gemma else None,
            norms="sandwich" if gemma else "pre",
            embed_scaled=gemma,
            tied=bool(values.get("tie_word_embeddings", gemma)),
            norm_eps=values.get("rms_norm_eps", 1e-6),
            soft_cap=values.get("final_logit_softcapping"),
        )
    except KeyError as error:
        raise UserError(f"{where} lacks {error.args[0]!r}") from None
    except TypeError as error:
        raise UserError(f"{where} has a value of the wrong type: {error}") from None


def _window(values: Mapping[str, Any], kind: str, where: str) -> Window | None:
    """The sliding window, from `layer_types` or from the older ways to say which layers have one."""
    types = values.get("layer_types") or _older_layer_types(values, kind)
    strange = sorted(set(types) - {FULL, SLIDING})
    if strange or len(types) != values["num_hidden_layers"]:
        raise UserError(
            f"{where}: layer_types has {len(types)} entries, of {', '.join(sorted(set(types)))}; the decoder supports "
            f"{FULL} and {SLIDING}, one for each of {values['num_hidden_layers']} layers"
        )
    if SLIDING not in types:
        return None
    if not values.get("sliding_window"):
        raise UserError(f"{where}: layer_types names {SLIDING}, but there is no sliding_window")
    base = None
    if kind == "gemma3_text":
        base, scaling = _rope(values, where, SLIDING, "rope_local_base_freq", 1e4)
        if scaling is not None:
            raise UserError(f"{where}: the rope of {SLIDING} is stretched; the decoder supports that of {FULL} alone")
    full = tuple(index for index, name in enumerate(types) if name == FULL)
    return Window(values["sliding_window"], full, base)


def _older_layer_types(values: Mapping[str, Any], kind: str) -> list[str]:
    count = values["num_hidden_layers"]
    if kind == "gemma3_text":
        every = values.get("sliding_window_pattern") or 6
        return [SLIDING if (index + 1) % every else FULL for index in range(count)]
    if kind == "mistral" and values.get("sliding_window"):
        return [SLIDING] * count
    if kind in ("qwen2", "qwen3") and values.get("use_sliding_window") and values.get("sliding_window"):
        first = values.get("max_window_layers", 28)
        return [FULL if index < first else SLIDING for index in range(count)]
    return [FULL] * count


def _rope(
    values: Mapping[str, Any], where: str, layer_type: str, theta: str, default: float
) -> tuple[float, RopeScaling | None]:
    """Base and scaling of one type of layers, from `rope_parameters` or from the older `rope_theta` and
    `rope_scaling`."""
    new = values.get("rope_parameters") or {}
    if FULL in new or SLIDING in new:
        new = new.get(layer_type) or {}
    given = new or (values.get("rope_scaling") if layer_type == FULL else None) or {}
    base = float(given.get("rope_theta") or values.get(theta) or default)
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind == "default":
        return base, None
    if kind == "linear":
        return base, RopeScaling(factor=float(given["factor"]))
    if kind != "llama3":
        raise UserError(f"{where}: rope type is {json.dumps(kind)}; the decoder supports default, linear and llama3")
    return base, RopeScaling(
        factor=float(given["factor"]),
        low_freq_factor=float(given["low_freq_factor"]),
        high_freq_factor=float(given["high_freq_factor"]),
        original_length=int(given["original_max_position_embeddings"]),
    )


def config_to_json(config: DecoderConfig, *, max_length: int) -> dict[str, Any]:
    """The config.json of the published architecture that computes the same; raises `UserError` if there is none."""
    kind = _kind(config)
    described = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": max_length,
        "attention_bias": False,
        "torch_dtype": config.param_dtype,
    }
    return described | _window_to_json(config, kind) | _rope_to_json(config, kind) | _only_of(config, kind)


def _kind(config: DecoderConfig) -> str:
    gemma = config.norms == "sandwich"
    window = config.window
    extra = {
        f"mlp_kind={config.mlp_kind!r}": config.mlp_kind != ("geglu" if gemma else "swiglu"),
        "no position encoding": config.rope_base is None,
        f"conv_width={config.conv_width}": config.conv_width > 0,
        f"soft_cap={config.soft_cap} without norms='sandwich'": config.soft_cap is not None and not gemma,
        "qk_norm together with qkv_bias": config.qk_norm and config.qkv_bias,
        "norms='sandwich' without qk_norm or with qkv_bias": gemma and (not config.qk_norm or config.qkv_bias),
        "norms='sandwich' without a window": gemma and window is None,
        "embed_scaled without norms='sandwich', or the reverse": config.embed_scaled != gemma,
        "attention_scale without norms='sandwich'": config.attention_scale is not None and not gemma,
        "a window with a rope_base of its own": window is not None and window.rope_base is not None and not gemma,
        "windows in some layers, without qk_norm or qkv_bias": bool(
            window and window.full_layers and not config.qk_norm and not config.qkv_bias
        ),
    }
    if any(extra.values()):
        names = ", ".join(name for name, has in extra.items() if has)
        raise UserError(f"no published architecture has {names}; known: {', '.join(ARCHITECTURES)}")
    if gemma:
        return "gemma3_text"
    return "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "mistral" if window else "llama"


def _window_to_json(config: DecoderConfig, kind: str) -> dict[str, Any]:
    if kind == "llama":
        return {}
    if config.window is None:
        return {"sliding_window": None} if kind == "mistral" else {"use_sliding_window": False}
    types = [FULL if index in config.window.full_layers else SLIDING for index in range(config.layers)]
    return {"sliding_window": config.window.tokens} | (
        {} if kind == "mistral" else {"layer_types": types, "use_sliding_window": True}
    )


def _rope_to_json(config: DecoderConfig, kind: str) -> dict[str, Any]:
    """As new and as old versions of transformers read it."""
    scaling = _scaling_to_json(config.rope_scaling)
    full = {"rope_theta": config.rope_base, **(scaling or {"rope_type": "default"})}
    older = {"rope_theta": config.rope_base, "rope_scaling": scaling}
    if kind != "gemma3_text" or config.window is None:
        return {"rope_parameters": full, **older}
    local = config.window.rope_base or config.rope_base
    sliding = {"rope_type": "default", "rope_theta": local}
    # Given an older rope_scaling, transformers 5 would write it over rope_parameters: the same values, so it may.
    return {"rope_parameters": {FULL: full, SLIDING: sliding}, **older, "rope_local_base_freq": local}


def _scaling_to_json(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if not scaling.original_length:
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_length,
    }


def _only_of(config: DecoderConfig, kind: str) -> dict[str, Any]:
    if kind != "gemma3_text":
        return {"hidden_act": "silu"}
    scalar = (config.attention_scale or config.head_dim**-0.5) ** -2
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 * scalar else scalar,
        "final_logit_softcapping": config.soft_cap,
        "attn_logit_softcapping": None,
        "use_bidirectional_attention": False,
    }
