"""What is minimised: terms of `coef x (product of gates) x loss`, counted in (sum, weight) and divided once.

    objective = Objective({"imitate": Term(cross_entropy, gates=(worst_token,))}).with_teachers(("deepseek", "qwen"))
    loss, tallies = evaluate(objective, student, params, batch, train_step=0, memory=init_memory(objective))

`evaluate` is `combine(sums(...))`. A train step that accumulates calls `sums` on each microbatch, adds the results leaf
by leaf and combines once. Terms with the same gates share a denominator and form a *group*; `sums` gives one loss sum
for each group, because under a gate that reads the student no denominator is known before the last microbatch:

    gradient = sum over groups g of  (gradient of sums.loss[g], added over microbatches) / divisors(objective, total)[g]

With one group (the usual case) that is one backward pass a microbatch. Everything is then equal to one big batch, but
for gates marked `batch_wide` (quantiles), which are defined on the microbatch.
"""

from mixdistill.objective.build import Memory, Objective, Term, Value
from mixdistill.objective.evaluation import (
    Sums,
    combine,
    divisors,
    evaluate,
    gate_values,
    mean_gradient,
    sums,
    sums_and_gradients,
    sums_of_signals,
)
from mixdistill.objective.report import complaints, explain
from mixdistill.objective.tally import Tally

__all__ = [
    "Memory",
    "Objective",
    "Sums",
    "Tally",
    "Term",
    "Value",
    "combine",
    "complaints",
    "divisors",
    "evaluate",
    "explain",
    "gate_values",
    "mean_gradient",
    "sums",
    "sums_and_gradients",
    "sums_of_signals",
]
