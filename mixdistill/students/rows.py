"""What the layers need to know about the tokens at hand: who may look at whom, how far each is turned, where a segment
ends. Made once for all layers; a layer with a window takes another view than one without."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from mixdistill.students import layers
from mixdistill.students.config import DecoderConfig
from mixdistill.students.student import TokenBatch


class View(NamedTuple):
    """What one layer sees."""

    mask: Bool[Array, "B 1 S T"]
    turn: layers.Rotation | None


class Rows(NamedTuple):
    """The same for every layer."""

    full: View
    windowed: View | None  # of the layers with a window; None: there are none
    segment_id: Int[Array, "B L"]  # with the convolution's history in front
    valid: Bool[Array, "B S"] | None  # None: padding needs no care, since its segment is its own


def view(config: DecoderConfig, rows: Rows, layer: Int[Array, ""]) -> View:
    """What `layer` sees: a window or everything. A scan has one program for all layers, so it selects."""
    if config.window is None or rows.windowed is None:
        return rows.full
    if not config.window.full_layers:
        return rows.windowed
    full = jnp.isin(layer, jnp.asarray(config.window.full_layers))
    turn = rows.full.turn
    if turn is not None and rows.windowed.turn is not None and rows.windowed.turn is not turn:
        turn = (
            jnp.where(full, turn[0], rows.windowed.turn[0]),
            jnp.where(full, turn[1], rows.windowed.turn[1]),
        )
    return View(jnp.where(full, rows.full.mask, rows.windowed.mask), turn)


def packed_rows(config: DecoderConfig, batch: TokenBatch) -> Rows:
    """Of a batch."""
    segment_id, history = batch["segment_id"], max(config.conv_width - 1, 0)
    full = View(layers.packed_mask(segment_id), _turn(config, batch["position"]))
    windowed = None
    if config.window is not None:
        mask = layers.packed_mask(segment_id, config.window.tokens)
        windowed = View(mask, _windowed_turn(config, batch["position"], full.turn))
    padded = jnp.pad(segment_id, ((0, 0), (history, 0)), constant_values=-1)
    return Rows(full, windowed, padded, valid=None)


def cached_rows(
    config: DecoderConfig, valid: Bool[Array, "B T"], filled: Int[Array, ""], position: Int[Array, "B S"]
) -> Rows:
    """Of new tokens at `position` (negative: padding) behind a cache whose first `filled` slots are taken; `valid` says
    which slots hold tokens, the new ones included. Padding stands in front of a row alone, so slots count tokens."""
    num_rows, num_tokens = position.shape
    back = (filled + jnp.arange(num_tokens))[:, None] - jnp.arange(valid.shape[1])[None, :]
    reach = back >= 0
    full = View((valid[:, None, :] & reach)[:, None], _turn(config, position))
    windowed = None
    if config.window is not None:
        mask = (valid[:, None, :] & reach & (back < config.window.tokens))[:, None]
        windowed = View(mask, _windowed_turn(config, position, full.turn))
    segment_id = jnp.ones((num_rows, max(config.conv_width - 1, 0) + num_tokens), jnp.int32)
    return Rows(full, windowed, segment_id, valid=position >= 0)


def _turn(config: DecoderConfig, position: Int[Array, "B S"]) -> layers.Rotation | None:
    if config.rope_base is None:
        return None
    return layers.rotation(position, layers.wavelengths(config.head_dim, config.rope_base, config.rope_scaling))


def _windowed_turn(
    config: DecoderConfig, position: Int[Array, "B S"], full: layers.Rotation | None
) -> layers.Rotation | None:
    if config.window is None or config.window.rope_base is None:
        return full
    return layers.rotation(position, layers.wavelengths(config.head_dim, config.window.rope_base, None))
