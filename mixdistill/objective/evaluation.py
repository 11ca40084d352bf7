"""From an objective and a batch to sums, from sums to the loss, its gradient and the tallies."""

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mixdistill.errors import UserError
from mixdistill.objective.build import Objective
from mixdistill.objective.tally import Counter, Tally
from mixdistill.signals.mean_logit import mean_logit
from mixdistill.signals.signal import Bound
from mixdistill.signals.steps import run_max, run_start, trace_run
from mixdistill.signals.vocabulary import NAMES, vocabulary_pass

if TYPE_CHECKING:
    from mixdistill.students.student import Student

# What a loss reads in place of a number under its closed gate: an ordinary log-probability, with finite derivatives.
HARMLESS = -1.0
TOP_K = 20  # DeepConf's k (arXiv:2508.15260)
ALWAYS_READ = {"valid", "segment_id", "teacher_id", "content", "label_logprob"}  # by the standard tallies


class Sums(NamedTuple):
    """What one microbatch adds: `jax.tree.map(jnp.add, a, b)` is the Sums of both."""

    loss: Float[Array, "G *K"]  # of each group (and teacher): coef x gates x loss, added over tokens, in nats
    weight: Float[Array, "G"]  # of each group: product of gates, added over tokens
    valid: Float[Array, ""]  # tokens that may be trained on
    tallies: dict[str, Tally]


def evaluate(
    objective: Objective, student: "Student", params: Any, batch: Mapping[str, Array], **context: Any
) -> tuple[Tally, dict[str, Tally]]:
    """The loss and everything that is counted. `context` as for `sums`.

    The loss is `sum / weight`, in nats per token; to differentiate it take `sums_and_gradients`. If every gate is
    closed its weight is 0 and so is its sum. Tallies: "loss", "tokens" (valid, of all places), "kept" (of the valid),
    "kept/busiest" (tokens of the device that keeps most, for which all wait, of the mean over devices),
    "loss/<term>", "gate/<term>/<gate>" (tokens open, of the valid), "invalid/<term>/<gate>" (NaN or negative gates,
    taken as closed), "fallback/<term>" (1 if its gates closed everything and it learned from the fallback teacher),
    "no_data" (1 if every gate is closed); and per teacher, `[K]`: "teacher/tokens", "teacher/nll",
    "teacher/content_nll", "teacher/kept", "teacher/traces_kept", "teacher/gate/<term>/<gate>", "teacher/nonfinite"
    (tokens with a NLL that is not finite; they are left out elsewhere), "teacher/nonfinite/<term>" (likewise for the
    loss of a term) and "teacher/<name>" for every watched signal.
    """
    return combine(objective, sums(objective, student, params, batch, **context))


def sums(
    objective: Objective,
    student: "Student",
    params: Any,
    batch: Mapping[str, Array],
    *,
    train_step: Any,
    memory: Mapping[str, Any] | None = None,
    mesh: Any = None,
    rules: Any = None,
    options: Mapping[str, Any] | None = None,
    by_teacher: bool = False,
) -> Sums:
    """Loss sums, weights and tallies of one (micro)batch. `by_teacher` splits the loss sums: `[G, K]`.

    `memory` holds the value of each of `objective.memory` (`mixdistill.memory.init_memory`). With `mesh` and `rules` a
    vocabulary that the rules split over the mesh stays split. `options` go to the vocabulary pass (backward, tiles):
    they change speed, not results.
    """
    split = _split(mesh, rules)
    made = _vocabulary(objective, student, params, batch, {**split, **(options or {})})
    devices = math.prod(mesh.shape[axis] for axis in split["token_axes"]) if split else 1
    given = {**batch, **made}
    context = {"train_step": train_step, "memory": memory, "devices": devices, "by_teacher": by_teacher}
    return sums_of_signals(objective, given, **context)


def sums_and_gradients(
    objective: Objective, student: "Student", params: Any, batch: Mapping[str, Array], **context: Any
) -> tuple[Sums, tuple[Any, ...]]:
    """`sums`, and for each group the gradient of its loss sum with respect to `params`. Both add over microbatches."""

    def losses(params):
        total = sums(objective, student, params, batch, **context)
        return total.loss, total

    loss, pull_back, total = jax.vjp(losses, params, has_aux=True)
    return total, tuple(pull_back(unit)[0] for unit in jnp.eye(len(objective.groups), dtype=loss.dtype))


def divisors(objective: Objective, total: Sums) -> Float[Array, "G"]:
    """What each group's loss sum is divided by; 1 where there is nothing at all to divide."""
    if objective.normalise == "valid":
        divisor = jnp.broadcast_to(total.valid, total.weight.shape)
    else:
        divisor = jnp.maximum(total.weight, objective.min_coverage * total.valid)
    return jnp.where(divisor > 0, divisor, 1.0)


def mean_gradient(objective: Objective, total: Sums, gradients: tuple[Any, ...]) -> Any:
    """The gradient of the loss, from what `sums_and_gradients` gave, added over microbatches."""
    by = divisors(objective, total)
    scaled = [
        jax.tree.map(lambda x, g=g: (x.astype(jnp.float32) / by[g]).astype(x.dtype), tree)
        for g, tree in enumerate(gradients)
    ]
    return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), scaled)


def combine(objective: Objective, total: Sums) -> tuple[Tally, dict[str, Tally]]:
    """The loss as one Tally, and all tallies, from sums over everything that belongs to one train step."""
    by = divisors(objective, total)
    data = total.weight.sum() > 0
    # One group: its sum and denominator. Several: weighted so that sum / weight is still the loss that is minimised.
    weight = jnp.where(data, by.sum(), 0.0)
    loss = Tally((total.loss / by).sum() * weight, weight)
    no_data = Tally(1.0 - data.astype(jnp.float32), jnp.ones((), jnp.float32))
    return loss, {"loss": loss, "no_data": no_data, **total.tallies}


def sums_of_signals(
    objective: Objective,
    given: Mapping[str, Array],
    *,
    train_step: Any,
    memory: Mapping[str, Any] | None = None,
    devices: int = 1,
    by_teacher: bool = False,
) -> Sums:
    """`sums` from the given signals (batch fields and vocabulary signals) alone: no model needed. `devices` split the
    rows."""
    context = {"train_step": train_step, "teachers": objective.teachers}
    given = {**given, **context, **(memory or {})}
    if missing := sorted((objective.graph.roots | ALWAYS_READ) - set(given)):
        raise UserError(f"the objective reads {missing[0]!r}, which is neither in the batch nor in memory")
    values = objective.graph.compute(given)
    valid = values["valid"]
    count = Counter(values["teacher_id"], len(objective.teachers))
    loss, weight, kept = [], [], jnp.zeros_like(valid)
    for names in objective.groups:
        added = [_term(objective, name, values, count, by_teacher) for name in names]
        loss.append(jnp.stack([a.loss for a in added]).sum(axis=0))
        weight.append(jnp.stack([a.weight for a in added]).max())  # equal, but under "valid" where none is used
        kept = functools.reduce(jnp.logical_or, [a.kept for a in added], kept)
    _count_standard(values, kept, count)
    live = kept.reshape(devices, -1).sum(1, dtype=jnp.float32)
    count.tallies["kept/busiest"] = Tally(live.max(), live.mean())
    for name in objective.watched:
        count.teachers(f"teacher/{name}", values[name], valid)
    return Sums(jnp.stack(loss), jnp.stack(weight), valid.sum(dtype=jnp.float32), count.tallies)


def gate_values(
    objective: Objective,
    student: "Student",
    params: Any,
    batch: Mapping[str, Array],
    *,
    train_step: Any,
    memory: Mapping[str, Any] | None = None,
) -> dict[str, Float[Array, "B T"]]:
    """ "<term>/<gate>": what each gate says of every token, as in training: 0 where it is not finite or negative."""
    made = _vocabulary(objective, student, params, batch, {})
    context = {"train_step": train_step, "teachers": objective.teachers}
    values = objective.graph.compute({**batch, **made, **context, **(memory or {})})
    found = {}
    for name, term in objective.terms.items():
        for gate_name, gate in zip(term.gate_names, term.bound_gates, strict=True):
            found[f"{name}/{gate_name}"], _ = _factor(gate, values)
    return found


def _factor(gate: Bound, values: Mapping[str, Any]) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """What a gate says of every token, 0 where that is negative or not finite; and where it is neither."""
    factor = jax.lax.stop_gradient(_per_token("gate", gate, values))
    good = jnp.isfinite(factor) & (factor >= 0)
    return jnp.where(good, factor, 0.0), good


class _Added(NamedTuple):
    loss: Float[Array, "*K"]
    weight: Float[Array, ""]
    kept: Bool[Array, "B T"]


def _term(objective: Objective, name: str, values: Mapping[str, Any], count: Counter, by_teacher: bool) -> _Added:
    """coef x gates x loss, added over tokens. Where a gate is closed neither a value nor a gradient gets through."""
    term, valid = objective.terms[name], values["valid"]
    weight = valid.astype(jnp.float32)
    for gate_name, gate in zip(term.gate_names, term.bound_gates, strict=True):
        factor, good = _factor(gate, values)
        weight = weight * factor
        count.share(f"gate/{name}/{gate_name}", factor > 0, valid)
        count.share(f"invalid/{name}/{gate_name}", ~good, valid)
        count.teachers(f"teacher/gate/{name}/{gate_name}", factor > 0, valid)
    if objective.fallback is not None:
        weight, starved = _or_fallback(weight, values, objective.teachers.index(objective.fallback))
        count.tallies[f"fallback/{name}"] = Tally(starved.astype(jnp.float32), jnp.ones((), jnp.float32))
    kept = weight > 0
    # The double where: the loss sees harmless numbers where it is closed, so that its derivative there is finite.
    shielded = {source: _shield(values[source], kept) for source in term.bound_loss.needs.values()}
    nats = jnp.where(kept, _per_token("loss", term.bound_loss, {**values, **shielded}), 0.0)
    count.teachers(f"teacher/nonfinite/{name}", ~jnp.isfinite(nats), kept)
    total, divisor = (weight * nats).sum(), weight.sum()
    count.tallies[f"loss/{name}"] = jax.lax.stop_gradient(Tally(total, divisor))
    coef = term.coef(values["train_step"]) if callable(term.coef) else term.coef
    return _Added(coef * (count.split(weight * nats) if by_teacher else total), divisor, kept)


def _or_fallback(weight: Float[Array, "B T"], values: Mapping[str, Any], teacher: int):
    """The tokens of `teacher` where `weight` is zero all over a batch that has tokens, and whether that was so."""
    starved = values["valid"].any() & ~(weight > 0).any()
    instead = (values["valid"] & (values["teacher_id"] == teacher)).astype(jnp.float32)
    return jnp.where(starved, instead, weight), starved


def _shield(value: Any, kept: Bool[Array, "B T"]) -> Any:
    if not (hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating) and value.shape[:2] == kept.shape):
        return value
    return jnp.where(kept.reshape(*kept.shape, *(1,) * (value.ndim - 2)), value, HARMLESS)


def _per_token(kind: str, bound: Bound, values: Mapping[str, Any]) -> Float[Array, "B T"]:
    result = jnp.asarray(bound(values))
    if result.shape != values["valid"].shape:
        raise UserError(f"{kind} {bound.name} gave shape {result.shape}; it has to be one number per token, [B, T]")
    return result.astype(jnp.float32)


def _count_standard(values: Mapping[str, Any], kept: Bool[Array, "B T"], count: Counter) -> None:
    """The tallies that every objective has."""
    valid, nll = values["valid"], -values["label_logprob"]
    run = trace_run(values["segment_id"])
    count.share("tokens", valid, jnp.ones_like(valid))
    count.share("kept", kept, valid)
    count.teachers("teacher/tokens", jnp.ones_like(nll), valid)
    count.teachers("teacher/nll", nll, valid)
    count.teachers("teacher/content_nll", nll, valid & values["content"])
    count.teachers("teacher/kept", kept, valid)
    count.teachers("teacher/traces_kept", run_max(kept, run), run_start(run, valid))
    count.teachers("teacher/nonfinite", ~jnp.isfinite(nll), valid)


def _vocabulary(objective, student, params, batch, options: Mapping[str, Any]) -> dict[str, Array]:
    """The vocabulary signals that the objective reads, from one vocabulary pass."""
    names = objective.vocabulary_names
    hidden, unembed = student.hidden(params, batch), student.unembed(params)
    ids = batch["target"][..., None]
    if "topk_logprob" in names:
        if "teacher_topk_ids" not in batch:
            raise UserError("the objective reads 'topk_logprob', and the batch has no 'teacher_topk_ids' to take it at")
        ids = jnp.concatenate([ids, batch["teacher_topk_ids"]], axis=-1)
    if "mesh" in options:  # a width that the devices do not divide is whole on each of them
        width = math.prod(options["mesh"].shape[axis] for axis in options["embed_axes"])
        options = options if hidden.shape[-1] % width == 0 else {**options, "embed_axes": ()}
    stats = vocabulary_pass(
        hidden,
        unembed,
        ids,
        valid=batch["valid"],
        top_k=min(TOP_K, student.vocab_size) if {"confidence", "tail_mass"} & set(names) else 0,
        soft_cap=student.soft_cap,
        layout=student.unembed_layout,
        **options,
    )
    made = {name: NAMES[name](stats) for name in names if name in NAMES}
    if "mean_logit" in names:
        made["mean_logit"] = mean_logit(hidden, unembed, layout=student.unembed_layout, soft_cap=student.soft_cap)
    return made


def _split(mesh, rules) -> dict[str, Any]:
    """How rows and vocabulary lie on the mesh, for the vocabulary pass."""
    if mesh is None or mesh.size == 1:
        return {}
    vocabulary = [axis for axis in rules.mesh_axes("vocab") if mesh.shape[axis] > 1]
    if len(vocabulary) > 1:
        raise UserError(
            f"the rules split the vocabulary over {', '.join(vocabulary)}; it can be split over one mesh axis"
        )
    tokens = rules.mesh_axes("batch")
    return {
        "mesh": mesh,
        "token_axes": tokens,
        "sequence_axes": rules.mesh_axes("sequence"),
        "embed_axes": tuple(axis for axis in rules.mesh_axes("embed") if axis in tokens and mesh.shape[axis] > 1),
        "vocab_axis": next(iter(vocabulary), None),
    }
