"""An objective as text, and what a user has to hear about one train step."""

from collections.abc import Mapping

import numpy as np

from mixdistill.objective.build import Objective
from mixdistill.objective.tally import Tally


def explain(objective: Objective) -> str:
    """The graph as text: every term, what its gates and loss read, how each derived signal is made, and the rest."""
    graph, lines = objective.graph, []
    for name, term in objective.terms.items():
        coef = "schedule" if callable(term.coef) else term.coef
        lines.append(
            f"{name} = {' x '.join([str(coef), *(gate.label for gate in term.bound_gates), term.bound_loss.label])}"
        )
        lines += [
            f"  {bound.name} reads {', '.join(bound.needs.values())}" for bound in (*term.bound_gates, term.bound_loss)
        ]
    signals = [f"  {name} <- {', '.join(bound.needs.values())}" for name, bound in graph.order.items()]
    lines += ["signals", *signals] if signals else ["signals: none beside the vocabulary pass"]
    lines.append(f"vocabulary pass: {', '.join(objective.vocabulary_names) or 'nothing'}")
    lines.append(f"batch fields: {', '.join(objective.batch_names) or 'none'}")
    if objective.memory:
        lines.append(f"memory: {', '.join(objective.memory)}")
    lines.append(f"groups with a common denominator: {'; '.join(', '.join(group) for group in objective.groups)}")
    return "\n".join(lines)


def complaints(tallies: Mapping[str, Tally]) -> list[str]:
    """What to tell the user after a train step, from fetched tallies: broken gates, no data, a loss not finite."""
    found = []
    for name, tally in tallies.items():
        if name.startswith("invalid/") and tally.sum > 0:
            found.append(
                f"gate {name.removeprefix('invalid/')} gave NaN or a negative number at {int(tally.sum)} tokens"
            )
        if name.startswith("loss/") and not np.isfinite(tally.sum):
            found.append(f"loss {name.removeprefix('loss/')} is not finite at tokens that its gates keep")
        if name.startswith("fallback/") and tally.sum > 0:
            found.append(
                f"the gates of term {name.removeprefix('fallback/')} closed everything: it learned from the fallback "
                "teacher alone"
            )
    if "teacher/nonfinite" in tallies and (lost := int(tallies["teacher/nonfinite"].sum.sum())):
        found.append(f"the student's log-probability of {lost} tokens is not finite; no running estimate counts them")
    if tallies["no_data"].sum > 0:
        found.append("no data: every gate of every term is closed, so nothing was learned")
    return found
