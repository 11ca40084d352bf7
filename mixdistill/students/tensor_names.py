"""How published checkpoints name and lay out our parameters.

A torch linear layer keeps [out, in]; ours keep the input dimensions first and heads as an axis of their own. So every
entry needs to know one thing beside its two names: how many of our axes are inputs.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mixdistill.students.config import DecoderConfig

Path = tuple[str, ...]
Shape = tuple[int, ...]


class Entry(NamedTuple):
    """One parameter. `{}` in the published name is the layer; then ours is stacked over layers."""

    name: str
    path: Path
    inputs: int = 0  # leading axes of ours that are inputs of a matrix; 0: the same order of axes

    @property
    def layered(self) -> bool:
        """Whether there is one tensor a layer."""
        return "{}" in self.name

    def names(self, num_layers: int) -> list[str]:
        """Of the published tensors, in the order of layers."""
        return [self.name.format(layer) for layer in range(num_layers)] if self.layered else [self.name]

    def published_shape(self, shape: Shape) -> Shape:
        """Of one published tensor, from the shape of ours (stacked if layered)."""
        shape = shape[1:] if self.layered else shape
        if self.inputs:
            return int(np.prod(shape[self.inputs :])), int(np.prod(shape[: self.inputs]))
        return (int(np.prod(shape)),) if self.name.endswith("bias") else shape

    def published(self, value: np.ndarray) -> np.ndarray:
        """A view of one layer of ours as it is published."""
        shape = self.published_shape((1, *value.shape) if self.layered else value.shape)
        return value.reshape(shape[::-1]).T if self.inputs else value.reshape(shape)


def _block(name: str, *path: str, inputs: int = 0) -> Entry:
    return Entry(f"model.layers.{{}}.{name}", ("blocks", *path), inputs)


SHARED = (
    Entry("model.embed_tokens.weight", ("embed",)),
    _block("input_layernorm.weight", "attention_norm"),
    _block("self_attn.q_proj.weight", "attention", "query", inputs=1),
    _block("self_attn.k_proj.weight", "attention", "key", inputs=1),
    _block("self_attn.v_proj.weight", "attention", "value", inputs=1),
    _block("self_attn.o_proj.weight", "attention", "out", inputs=2),
    _block("self_attn.q_proj.bias", "attention", "query_bias"),
    _block("self_attn.k_proj.bias", "attention", "key_bias"),
    _block("self_attn.v_proj.bias", "attention", "value_bias"),
    _block("self_attn.q_norm.weight", "attention", "query_norm"),
    _block("self_attn.k_norm.weight", "attention", "key_norm"),
    _block("mlp.gate_proj.weight", "mlp", "gate", inputs=1),
    _block("mlp.up_proj.weight", "mlp", "up", inputs=1),
    _block("mlp.down_proj.weight", "mlp", "down", inputs=1),
    Entry("model.norm.weight", ("norm",)),
    Entry("lm_head.weight", ("unembed",), 1),
)
PRE = (_block("post_attention_layernorm.weight", "mlp_norm"),)
SANDWICH = (
    _block("post_attention_layernorm.weight", "attention_out_norm"),
    _block("pre_feedforward_layernorm.weight", "mlp_norm"),
    _block("post_feedforward_layernorm.weight", "mlp_out_norm"),
)


def entries(config: DecoderConfig, paths) -> Iterator[Entry]:
    """Those of the parameters at `paths`, for the naming of the configuration's architecture."""
    for entry in SHARED + (SANDWICH if config.norms == "sandwich" else PRE):
        if entry.path in paths:
            yield entry
