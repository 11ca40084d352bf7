"""How the vocabulary pass is run on a platform and size, and which arguments fit together: before anything compiles."""

import math
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
from jax.sharding import Mesh

from mixdistill.errors import UserError, unknown
from mixdistill.signals.vocabulary_tiles import Split, Tiles

Backward = Literal["tiles", "buckets", "dense"]
Implementation = Literal["xla", "pallas"]
BACKWARDS = ("tiles", "buckets", "dense")
IMPLEMENTATIONS = ("xla", "pallas")

# Up to this many bytes of float32 logits a device, a CPU keeps them: recomputing takes longer (docs/benchmarks.md).
DENSE_BYTES = 2**29


def choose_backward(
    platform: str, num_tokens: int, num_vocab: int, implementation: Implementation = "xla"
) -> tuple[Backward, str]:
    """The backward for so many tokens and columns on a device, and why, in words."""
    size = 4 * num_tokens * num_vocab
    mib = f"{size / 2**20:,.0f} MiB of logits"
    if platform == "cpu" and size <= DENSE_BYTES and implementation == "xla":
        return "dense", f"{mib} are kept: recomputing them would take longer"
    if platform in ("gpu", "cuda", "rocm"):
        return "buckets", f"{mib} are recomputed for as many eighths of the tokens as are live"
    return "tiles", f"{mib} are recomputed for tiles of live tokens"


def default_tiles(platform: str, num_tokens: int, num_vocab: int, *, gathered: bool = False) -> Tiles:
    """Tile sizes for so many tokens and columns on a device.

    Backward token tiles are at most an eighth of the tokens, or what the gates save is rounded away. An unembedding
    whose width is split is `gathered` a vocabulary tile at a time, in the forward too.
    """
    tiles = _default_tiles(platform, num_tokens, num_vocab)
    return tiles._replace(forward_vocab=tiles.backward_vocab) if gathered else tiles


def _default_tiles(platform: str, num_tokens: int, num_vocab: int) -> Tiles:
    eighth = max(-(-num_tokens // 8), 1)
    if platform == "cpu":
        return Tiles(256, None, min(256, max(eighth, 32)), 4096 if num_vocab < 2**16 else 8192)
    if platform == "tpu":
        return Tiles(1024, 8192, min(1024, max(eighth, 128)), 8192)
    tokens = max(128, min(4096, 3 * 2**29 // (4 * num_vocab)))  # a tile of float32 logits is at most 1.5 GiB
    return Tiles(tokens, None, min(2048, max(eighth, 128)), 16384)


def check_arrays(hidden, unembed, ids, valid, layout: str) -> None:
    """Raises `UserError` for ranks, shapes and dtypes that do not fit."""
    if layout not in ("dv", "vd"):
        raise unknown("layout", str(layout), ("dv", "vd"))
    if hidden.ndim < 2 or unembed.ndim != 2 or 0 in hidden.shape:
        raise UserError(
            f"hidden is [..., D] with at least one token and unembed has two dimensions; "
            f"given {hidden.shape} and {unembed.shape}"
        )
    embed = unembed.shape[layout.index("d")]
    if hidden.shape[-1] != embed:
        raise UserError(f"hidden has width {hidden.shape[-1]}, unembed (layout {layout!r}) has {embed}")
    for name, x in (("hidden", hidden), ("unembed", unembed)):
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            raise UserError(f"{name} is {x.dtype}; it is float32 or bfloat16")
    lead = hidden.shape[:-1]
    if ids.ndim != hidden.ndim or ids.shape[:-1] != lead or ids.shape[-1] < 1:
        raise UserError(f"ids are [..., m] with the leading dimensions of hidden, {lead}; given {ids.shape}")
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise UserError(f"ids are {ids.dtype}; they are integers")
    if valid is not None and (valid.shape != lead or valid.dtype != jnp.bool_):
        raise UserError(f"valid is bool {lead}; given {valid.dtype} {valid.shape}")


def check_numbers(num_vocab: int, top_k: int, max_rank: int, temperature, soft_cap, num_valid_vocab) -> None:
    """Raises `UserError` for numbers out of their range."""
    if not 0 <= top_k <= num_vocab:
        raise UserError(f"top_k is {top_k}; it is between 0 and the vocabulary's {num_vocab}")
    if max_rank < 1:
        raise UserError(f"max_rank is {max_rank}; it is at least 1")
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}; it is positive")
    if soft_cap is not None and not soft_cap > 0:
        raise UserError(f"soft_cap is {soft_cap}; it is positive, or None for no cap")
    if num_valid_vocab is not None and not max(top_k, 1) <= num_valid_vocab <= num_vocab:
        raise UserError(f"num_valid_vocab is {num_valid_vocab}; it is between {max(top_k, 1)} and {num_vocab}")


def check_names(backward: str | None, implementation: str, platform: str) -> None:
    """Raises `UserError` for a way to run the pass that does not exist."""
    if backward is not None and backward not in BACKWARDS:
        raise unknown("backward", str(backward), BACKWARDS)
    if implementation not in IMPLEMENTATIONS:
        raise unknown("implementation", str(implementation), IMPLEMENTATIONS)
    if implementation == "pallas" and platform not in ("tpu", "cpu"):
        raise UserError(f"implementation 'pallas' is a kernel for TPUs; on {platform} use 'xla'")
    if implementation == "pallas" and backward == "dense":
        raise UserError("backward 'dense' keeps all logits, and implementation 'pallas' never has them; use 'tiles'")


def check_mesh(mesh: Mesh | None, split: Split, sequence: tuple[str, ...], hidden, unembed, layout: str) -> None:
    """Raises `UserError` for mesh axes that do not exist, stand twice or do not divide."""
    vocab = (split.vocab,) if split.vocab else ()
    axes = (*split.tokens, *vocab)
    if mesh is None:
        if axes or split.embed:
            raise UserError(f"mesh axes {', '.join(axes + split.embed)} are named, but no mesh is given")
        return
    for axis in (*axes, *split.embed):
        if axis not in mesh.shape:
            raise unknown("mesh axis", axis, mesh.shape)
    if len(set(axes)) != len(axes):
        raise UserError(f"a mesh axis splits one thing only; given {', '.join(axes)}")
    if other := [axis for axis in split.embed if axis not in split.tokens]:
        raise UserError(f"embed_axes are some of the axes that split the tokens; {other[0]!r} is none of them")
    if sequence and hidden.ndim < 3:
        raise UserError(f"sequence_axes split the second of at least three dimensions; hidden is {hidden.shape}")
    rows = tuple(axis for axis in split.tokens if axis not in sequence)
    _divides(mesh.shape, "token_axes", rows, "rows of hidden", hidden.shape[0])
    _divides(mesh.shape, "sequence_axes", sequence, "columns of hidden", hidden.shape[1])
    _divides(mesh.shape, "embed_axes", split.embed, "width of unembed", unembed.shape[layout.index("d")])
    num_vocab = unembed.shape[layout.index("v")]
    advice = f"; pad the vocabulary to a multiple and give num_valid_vocab={num_vocab}"
    _divides(mesh.shape, "vocab_axis", vocab, "columns of unembed", num_vocab, advice)


def _divides(sizes: Mapping[str, int], name: str, axes, what: str, given: int, advice: str = "") -> None:
    parts = math.prod(sizes[axis] for axis in axes)
    if given % parts:
        raise UserError(
            f"{name} {', '.join(axes)} split the {what}, {given}, into {parts}, which does not divide{advice}"
        )
