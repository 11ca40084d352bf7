"""The vocabulary pass: every per-token statistic of the output distribution, without ever holding `[N, V]`.

From final hidden states and the unembedding it gives the log-sum-exp and the logits at some ids, which are
differentiable, and statistics, which are not. Losses are plain JAX on these, so the gradient of the logits is always
`g_lse * softmax + scatter(g_logit)`, recomputed tile by tile. **A token is dead iff its cotangents are exactly zero**:
whatever gate or mask was applied downstream, dead tokens are left out of the backward pass.
"""

import functools
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import checkify
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Num

from mixdistill.signals import vocabulary_choice as choice
from mixdistill.signals.vocabulary_backward import backward as gradients
from mixdistill.signals.vocabulary_choice import Backward, Implementation
from mixdistill.signals.vocabulary_forward import forward, forward_whole, merge, statistics
from mixdistill.signals.vocabulary_kernel import check_parity, forward_by_kernel
from mixdistill.signals.vocabulary_tiles import Layout, Spec, Split, Tiles, columns, first_column, logits, width


class VocabularyStats(NamedTuple):
    """Float32 statistics per token; `...` are the leading dimensions of `hidden`. Logarithms are natural (nats)."""

    logit: Float[Array, "..."]  # [..., m] at the ids; differentiable
    lse: Float[Array, "..."]  # log-sum-exp of all logits; differentiable
    entropy: Float[Array, "..."]  # nats
    confidence: Float[Array, "..."]  # mean log-probability of the top_k most likely tokens; DeepConf's C is minus this
    rank: Int[Array, "..."]  # of the first id: 1 is the most likely; saturates at max_rank
    top1: Bool[Array, "..."]  # the first id is the most likely
    tail_mass: Float[Array, "..."]  # probability outside the top_k
    max_logit: Float[Array, "..."]


# The signals that losses and gates read by name, and how each comes from the pass. What nobody reads is not computed:
# under jit XLA removes it from the tiles.
NAMES: Mapping[str, Callable[[VocabularyStats], Array]] = types.MappingProxyType(
    {
        "label_logprob": lambda s: s.logit[..., 0] - s.lse,
        "label_logit": lambda s: s.logit[..., 0],
        "label_rank": lambda s: s.rank,
        "entropy": lambda s: s.entropy,
        "confidence": lambda s: s.confidence,
        "top1": lambda s: s.top1,
        "top1_logprob": lambda s: s.max_logit - lax.stop_gradient(s.lse),
        "tail_mass": lambda s: s.tail_mass,
        "max_logit": lambda s: s.max_logit,
        "lse": lambda s: s.lse,
        "topk_logprob": lambda s: s.logit[..., 1:] - s.lse[..., None],
    }
)


def vocabulary_pass(
    hidden: Num[Array, "..."],
    unembed: Num[Array, "a b"],
    ids: Int[Array, "..."],
    *,
    valid: Bool[Array, "..."] | None = None,
    top_k: int = 20,
    max_rank: int = 100,
    soft_cap: float | None = None,
    temperature: float = 1.0,
    layout: Layout = "dv",
    num_valid_vocab: int | None = None,
    tiles: Tiles | None = None,
    backward: Backward | None = None,
    mesh: Mesh | None = None,
    token_axes: tuple[str, ...] = (),
    sequence_axes: tuple[str, ...] = (),
    embed_axes: tuple[str, ...] = (),
    vocab_axis: str | None = None,
    implementation: Implementation = "xla",
    platform: str | None = None,
) -> VocabularyStats:
    """Statistics of `hidden @ unembed` for every token.

    Args:
      hidden: `[..., D]`, bfloat16 or float32.
      unembed: `[D, V]`, or `[V, D]` with `layout="vd"` (tied embeddings); never transposed by copy.
      ids: `[..., m]` integers in [0, V). Column 0 is the target; the others may be a teacher's stored top ids. Out of
        range they have logit 0; under `jax.experimental.checkify` they are an error.
      valid: tokens masked beforehand (prompt, padding) skip the forward too; their statistics are those of nothing.
      top_k: how many tokens `confidence` and `tail_mass` are about; 0: neither is wanted.
      num_valid_vocab: columns from here on only pad the vocabulary and count as impossible.
      backward: "tiles" recomputes the logits of live tokens tile by tile, "buckets" for static prefixes of the live
        tokens, "dense" keeps all logits. None picks by platform and size, see `choose_backward`.
      mesh, token_axes, sequence_axes, embed_axes, vocab_axis: what splits the first dimension of `hidden`, its second
        one, the width of the unembedding, and the vocabulary. The unembedding is never gathered over the vocabulary,
        and over its width a vocabulary tile at a time.
      implementation: "pallas" computes the statistics in a TPU kernel; on a CPU it is interpreted, for tests.
      platform: what it will run on, if that is not the default backend.

    Raises `UserError` for shapes, dtypes, sizes or names that do not fit, before anything is compiled.
    """
    platform = platform or jax.default_backend()
    choice.check_arrays(hidden, unembed, ids, valid, layout)
    embed, num_vocab = (unembed.shape[layout.index(letter)] for letter in "dv")
    choice.check_numbers(num_vocab, top_k, max_rank, temperature, soft_cap, num_valid_vocab)
    choice.check_names(backward, implementation, platform)
    split = Split((*token_axes, *sequence_axes), tuple(embed_axes), vocab_axis)
    choice.check_mesh(mesh, split, tuple(sequence_axes), hidden, unembed, layout)
    _check_ids(ids, valid, num_valid_vocab or num_vocab)
    num_tokens = math.prod(hidden.shape[:-1]) // _parts(mesh, split.tokens)
    num_columns = num_vocab // _parts(mesh, (vocab_axis,) if vocab_axis else ())
    spec = Spec(
        top_k=top_k,
        max_rank=max_rank,
        soft_cap=soft_cap,
        temperature=float(temperature),
        layout=layout,
        num_valid_vocab=num_valid_vocab,
        tiles=tiles or choice.default_tiles(platform, num_tokens, num_columns, gathered=bool(embed_axes)),
        backward=backward or choice.choose_backward(platform, num_tokens, num_columns, implementation)[0],
        implementation=implementation,
        platform=platform,
        split=split,
    )
    if implementation == "pallas" and platform == jax.default_backend():
        check_parity(spec._replace(split=Split()), embed)
    lead = P(tuple(token_axes) or None, *((tuple(sequence_axes),) if sequence_axes else ()))
    outputs: Any = _pass(hidden, unembed, ids, valid, spec, None if mesh is None else _Mesh(mesh, lead))
    lse, logit, rest = outputs
    return VocabularyStats(logit, lse, *lax.stop_gradient(rest))


def _check_ids(ids, valid, num_vocab: int) -> None:
    """Nothing but under `checkify`, where ids out of range are an error."""
    fine = (ids >= 0) & (ids < num_vocab)
    fine = fine if valid is None else fine | ~valid[..., None]
    checkify.debug_check(jnp.all(fine), f"ids are out of range; they are at least 0 and less than {num_vocab}")


def _parts(mesh: Mesh | None, axes: tuple[str, ...]) -> int:
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in axes)


class _Mesh(NamedTuple):
    mesh: Mesh
    lead: P  # of arrays with a row for each token: hidden, ids, valid, statistics


def _on_devices(fn: Callable[..., Any], on: _Mesh | None, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`fn` of each device's part, on whole arrays."""
    if on is None:
        return fn
    return jax.shard_map(fn, mesh=on.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _specs(spec: Spec, on: _Mesh | None) -> tuple[P, P, P]:
    """How tokens, the unembedding and logits `[N, V]` are split."""
    split = spec.split
    unembed = {"d": split.embed or None, "v": split.vocab}
    return on.lead if on else P(), P(*(unembed[letter] for letter in spec.layout)), P(split.tokens or None, split.vocab)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _pass(hidden, unembed, ids, valid, spec: Spec, on: _Mesh | None):
    """(lse, logit, statistics). The statistics get no gradient: the backward ignores their cotangents."""
    return _forward(hidden, unembed, ids, valid, spec, on)[0]


def _forward(hidden, unembed, ids, valid, spec: Spec, on: _Mesh | None):
    lead, unembed_spec, logits_spec = _specs(spec, on)
    run = functools.partial(_local_forward, spec=spec)
    run = _on_devices(run, on, (lead, unembed_spec, lead, lead), (lead, logits_spec))
    outputs, kept = run(hidden, unembed, ids, valid)
    return outputs, (hidden, unembed, ids, outputs[0], kept)


def _local_forward(hidden, unembed, ids, valid, spec: Spec):
    """One device's tokens; the logits `[N, V]` too where the backward is to have them."""
    lead = hidden.shape[:-1]
    h, i, v = _flat(hidden), _flat(ids).astype(jnp.int32), None if valid is None else valid.reshape(-1)
    kept = None
    if spec.backward == "dense":
        kept = logits(h, columns(unembed, 0, width(unembed, spec), spec), first_column(unembed, spec), spec)
        running = forward_whole(kept, unembed, h, i, v, spec)
    else:
        run = forward_by_kernel if spec.implementation == "pallas" else forward
        running = run(h, unembed, i, v, spec)
    outputs = statistics(merge(running, spec), spec)
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), outputs), kept


def _backward(spec: Spec, on: _Mesh | None, residuals, cotangents):
    hidden, unembed, ids, lse, kept = residuals
    lead, unembed_spec, logits_spec = _specs(spec, on)
    in_specs = (lead, unembed_spec, lead, lead, logits_spec, lead, lead)
    run = _on_devices(functools.partial(_local_backward, spec=spec), on, in_specs, (lead, unembed_spec))
    dh, dw = run(hidden, unembed, ids, lse, kept, *cotangents[:2])
    return dh, dw, None, None


def _local_backward(hidden, unembed, ids, lse, kept, g_lse, g_logit, spec: Spec):
    flat_ids = _flat(ids).astype(jnp.int32)
    g = g_lse.reshape(-1), _flat(g_logit)
    dh, dw = gradients(_flat(hidden), unembed, flat_ids, lse.reshape(-1), kept, *g, spec)
    return dh.astype(hidden.dtype).reshape(hidden.shape), dw


def _flat(x: Array) -> Array:
    """`[..., n]` as `[N, n]`."""
    return x.reshape(-1, x.shape[-1])


_pass.defvjp(_forward, _backward)
