"""Branches: stretches of train steps that all start from the same parameters, and what is made of them.

In train step i of a round the branch of number i // turns is trained. `state.memory` holds where the round began, so a
run goes on from a checkpoint in the middle of a branch, bit for bit. Branches come one after the other: each train step
costs what it always costs and counts as one, and memory holds the parameters twice more, however many branches.

Each branch has fresh optimiser moments, and its learning rate starts where the round's did, so that no branch is
favoured; the whole round is spent of the budget when it ends.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixdistill.objective import Tally
from mixdistill.optimizers import ProgressState, progress
from mixdistill.students.adapters import ADAPTERS
from mixdistill.students.student import Params
from mixdistill.training.state import TrainState

MEMORY = "branches"  # of the train state
EACH = "each"  # teacher's own adapters

Kept = dict[str, Any]


class Rule(NamedTuple):
    """What becomes of the branches. All pure."""

    init: Callable[[Params], Kept]  # at the start of a round
    stepped: Callable[[Kept, Any, Any, Mapping[str, Tally]], Kept]  # (kept, branch, its train step, tallies)
    # (kept, branch, start of the round, end of the branch, its accuracy or NaN)
    ended: Callable[[Kept, Any, Params, Params, Any], Kept]
    merged: Callable[[Kept, Params], Params]  # (kept, start) -> where the run goes on


def merging(weights: np.ndarray, scale: float) -> Rule:
    """start + scale * sum_k w_k (branch_k - start), added up in float32. `weights` `[branches]` add up to one."""
    shares = jnp.asarray(weights, jnp.float32)

    def ended(kept: Kept, branch: Any, start: Params, end: Params, accuracy: Any) -> Kept:
        del accuracy

        def add(total, a, b):
            return total + shares[branch] * (b.astype(jnp.float32) - a.astype(jnp.float32))

        return {"change": jax.tree.map(add, kept["change"], start, end)}

    def merged(kept: Kept, start: Params) -> Params:
        return jax.tree.map(lambda a, d: (a.astype(jnp.float32) + scale * d).astype(a.dtype), start, kept["change"])

    def init(params: Params) -> Kept:
        return {"change": jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)}

    return Rule(init, lambda kept, *_: kept, ended, merged)


def keeping_adapters(rule: Rule, order: tuple[int, ...], num_teachers: int) -> Rule:
    """`rule` for a student with adapters, which also keeps those that every branch ended with: "each", with an axis of
    teachers in front (zeros: no branch). `order` has the teachers' numbers in the order of the branches."""
    numbers = jnp.asarray(order)

    def init(params: Params) -> Kept:
        each = jax.tree.map(lambda p: jnp.zeros((num_teachers, *p.shape), p.dtype), params[ADAPTERS])
        return rule.init(params) | {EACH: each}

    def ended(kept: Kept, branch: Any, start: Params, end: Params, accuracy: Any) -> Kept:
        each = jax.tree.map(lambda a, b: a.at[numbers[branch]].set(b), kept[EACH], end[ADAPTERS])
        return kept | rule.ended(kept, branch, start, end, accuracy) | {EACH: each}

    return rule._replace(init=init, ended=ended)


def piloting(order: tuple[int, ...], num_teachers: int, turns: int, limit: float, slack: float | None = None) -> Rule:
    """Admits teachers (their numbers in the `order` of the pilots) by their own content NLL over the last quarter of
    their pilots and, with a `slack`, by the accuracy of the first pilot, the control. Keeps "nll" and "accuracy"
    `[num_teachers]` (-1: no pilot, or no data), "admitted" bool `[num_teachers]` and the best one's "best"."""
    numbers, late = jnp.asarray(order), turns - max(turns // 4, 1)

    def init(params: Params) -> Kept:
        return {
            "sum": jnp.zeros(num_teachers, jnp.float32),
            "weight": jnp.zeros(num_teachers, jnp.float32),
            "nll": jnp.full(num_teachers, -1.0, jnp.float32),
            "accuracy": jnp.full(num_teachers, -1.0, jnp.float32),
            "admitted": jnp.zeros(num_teachers, bool),
            "score": jnp.float32(-jnp.inf),
            "best": params,
        }

    def stepped(kept: Kept, branch: Any, train_step: Any, tallies: Mapping[str, Tally]) -> Kept:
        who, seen = numbers[branch], tallies["teacher/content_nll"]
        counts = (train_step >= late) & jnp.isfinite(seen.sum[who])
        found = {name: jnp.where(counts, part[who], 0.0) for name, part in seen._asdict().items()}
        return kept | {name: kept[name].at[who].add(value) for name, value in found.items()}

    def ended(kept: Kept, branch: Any, start: Params, end: Params, accuracy: Any) -> Kept:
        del start
        who = numbers[branch]
        has = kept["weight"][who] > 0
        nll = jnp.where(has, kept["sum"][who] / jnp.where(has, kept["weight"][who], 1.0), -1.0)
        control, passes, score = False, has & (nll <= limit), -nll
        if slack is not None:
            least = kept["accuracy"][numbers[0]]
            control, score = branch == 0, accuracy
            passes &= (least >= 0) & (accuracy + 1e-6 >= least - slack)  # false where nothing could be verified
        better = control | (passes & (score > kept["score"]))
        return kept | {
            "nll": kept["nll"].at[who].set(nll),
            "accuracy": kept["accuracy"].at[who].set(jnp.where(jnp.isfinite(accuracy), accuracy, -1.0)),
            "admitted": kept["admitted"].at[who].set(control | passes),
            "score": jnp.where(better & ~jnp.asarray(control), score, kept["score"]),
            "best": jax.tree.map(lambda a, b: jnp.where(better, b, a), kept["best"], end),
        }

    return Rule(init, stepped, ended, lambda kept, start: kept["best"])


def initial(rule: Rule, params: Params) -> Kept:
    """The memory entry before the first round."""
    zero = jnp.zeros((), jnp.float32)
    counts = {"done": jnp.zeros((), jnp.int32), "begun": zero, "spent": zero}
    return {**counts, "start": params, "kept": rule.init(params)}


def in_branches(
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Tally]]],
    optimizer: optax.GradientTransformationExtraArgs,
    rule: Rule,
    *,
    turns: int,
    count: int,
    examined: bool = False,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Tally]]]:
    """The train step `step`, in rounds of `count` branches of `turns` train steps each.

    A train step that `step` skips is one of its branch nevertheless: the data have gone by. Where branches are
    `examined`, whoever calls it looks at the student after the last train step of a branch, and ends the branch with
    `ending`.
    """
    end = ending(optimizer, rule, turns=turns, count=count)

    def begin(state: TrainState) -> TrainState:
        entry = state.memory[MEMORY]
        first = entry["done"] == 0
        new = {"begun": progress(state.opt_state), "spent": jnp.zeros((), jnp.float32), "start": state.params}
        new |= {"kept": rule.init(state.params)}
        entry = entry | jax.tree.map(lambda a, b: jnp.where(first, a, b), new, {name: entry[name] for name in new})
        return _remember(_at(optimizer, state, entry["start"], entry["begun"]), entry)

    def branch_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Tally]]:
        done = state.memory[MEMORY]["done"]
        state = jax.lax.cond(done % turns == 0, begin, lambda s: s, state)
        state, tallies = step(state, batch)
        entry = state.memory[MEMORY]
        kept = rule.stepped(entry["kept"], done // turns, done % turns, tallies)
        state = _remember(state, entry | {"kept": kept, "done": done + 1})
        if not examined:
            state = jax.lax.cond((done + 1) % turns == 0, lambda s: end(s, jnp.float32(jnp.nan)), lambda s: s, state)
        return state, tallies | {"branch": Tally(done // turns * 1.0, jnp.ones((), jnp.float32))}

    return branch_step


def ending(
    optimizer: optax.GradientTransformationExtraArgs, rule: Rule, *, turns: int, count: int
) -> Callable[[TrainState, Any], TrainState]:
    """(state after a branch's last train step, its accuracy or NaN) -> where the next branch or the run goes on."""

    def end(state: TrainState, accuracy: Any) -> TrainState:
        entry = state.memory[MEMORY]
        kept = rule.ended(entry["kept"], entry["done"] // turns - 1, entry["start"], state.params, accuracy)
        total = entry["spent"] + progress(state.opt_state) - entry["begun"]
        over = entry["done"] == turns * count
        params = jax.tree.map(lambda a, b: jnp.where(over, a, b), rule.merged(kept, entry["start"]), state.params)
        done = jnp.where(over, entry["begun"] + total, progress(state.opt_state))
        entry = entry | {"kept": kept, "spent": total, "done": jnp.where(over, 0, entry["done"])}
        return _remember(_at(optimizer, state, params, done), entry)

    return end


def _at(optimizer: optax.GradientTransformationExtraArgs, state: TrainState, params: Params, done: Any) -> TrainState:
    """With fresh moments, and the learning rate of the share `done` of the budget."""
    return state._replace(params=params, opt_state=spent(optimizer.init(params), done))


def spent(opt_state: Any, done: Any) -> Any:
    """The optimiser's state with its schedule where the share `done` of the budget is spent."""

    def found(leaf: Any) -> bool:
        return isinstance(leaf, ProgressState)

    return jax.tree.map(lambda leaf: ProgressState(done) if found(leaf) else leaf, opt_state, is_leaf=found)


def _remember(state: TrainState, entry: Kept) -> TrainState:
    return state._replace(memory={**state.memory, MEMORY: entry})
