"""Curricula as stages made of one stage, and the baseline that they are held against. All keep the budget.

stages = anchor_first(stage, "qwen", share=0.3, gates=(worst_token,), memory={"refill": acceptance()})
stages = in_order(stage, Scores(name="summary/surprisal"), parts=3)     # easy traces first
baseline = pooled(recipe)                                               # everything at once, as many tokens
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mixdistill.data.mixture import Mixture, Scores, Within
from mixdistill.errors import UserError
from mixdistill.objective import Memory
from mixdistill.recipe.recipe import Recipe, Stage


def anchor_first(
    stage: Stage, anchor: str, *, share: float, gates: tuple[Any, ...], memory: Mapping[str, Memory] | None = None
) -> tuple[Stage, Stage]:
    """A coherent teacher alone for `share` of the stage's budget, then its whole mixture, admitted by `gates`.

    `memory` goes to the second stage: a router such as `acceptance` refills what the gates refuse.
    """
    source = _mixture(stage)
    if stage.objective is None:
        raise UserError(f"stage {stage.name!r} has no objective of its own to put gates into")
    terms = {
        name: dataclasses.replace(term, gates=(*term.gates, *gates)) for name, term in stage.objective.terms.items()
    }
    gated = dataclasses.replace(stage.objective, terms=terms, memory={**stage.objective.memory, **(memory or {})})
    first, rest = _split(stage, (share, 1 - share))
    alone = dataclasses.replace(source, weights={anchor: 1})
    first = dataclasses.replace(first, name=f"{stage.name}_anchor", source=alone)
    return first, dataclasses.replace(rest, objective=gated)


def in_order(stage: Stage, by: Scores, *, parts: int) -> tuple[Stage, ...]:
    """The stage in `parts` of equal budgets: each draws from as large a share of the traces, the lowest scores first.

    By difficulty ("summary/surprisal", "summary/ifd", "summary/length") or by compatibility, whatever the ledger holds.
    """
    if parts < 1:
        raise UserError(f"a curriculum of {parts} parts; it has at least 1")
    source = _mixture(stage)
    return tuple(
        dataclasses.replace(
            part,
            name=f"{stage.name}_{k + 1}",
            source=dataclasses.replace(source, within=Within(by=by, low=k / parts, high=(k + 1) / parts)),
            objective=stage.objective if k == 0 else None,
        )
        for k, part in enumerate(_split(stage, (1 / parts,) * parts))
    )


def pooled(recipe: Recipe) -> Recipe:
    """The baseline: all teachers at once, by what there is of each, without gates, for as long as all stages."""
    first = recipe.stages[0]
    assert first.objective is not None
    source = dataclasses.replace(
        _mixture(first), teachers=None, weights=None, within=None, select=None, turns=None, anchor=None, control=False
    )
    terms = {name: dataclasses.replace(term, gates=()) for name, term in first.objective.terms.items()}
    objective = dataclasses.replace(first.objective, terms=terms, memory={}, fallback=None)
    field = "num_tokens" if recipe.budget.unit == "tokens" else "num_train_steps"
    plain = {"branches": None, "teacher_gradients": None, "until": ()}
    stage = dataclasses.replace(first, name="pooled", source=source, objective=objective, **plain)
    stage = dataclasses.replace(stage, **{field: recipe.budget.size})
    return dataclasses.replace(recipe, name=f"{recipe.name}_pooled", stages=(stage,))


def _split(stage: Stage, shares: tuple[float, ...]) -> list[Stage]:
    """The stage over and over, with these shares of its budget, which add up to it."""
    field, size = "num_tokens" if stage.num_tokens is not None else "num_train_steps", stage.budget.size
    ends = [round(size * sum(shares[: k + 1])) for k in range(len(shares))]
    ends[-1] = size
    return [dataclasses.replace(stage, **{field: end - start}) for start, end in zip([0, *ends], ends, strict=False)]


def _mixture(stage: Stage) -> Mixture:
    if not isinstance(stage.source, Mixture):
        raise UserError(f"stage {stage.name!r} draws from the student; a curriculum is made of recorded traces")
    return stage.source
