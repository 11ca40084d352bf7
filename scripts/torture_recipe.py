"""The run that the torture bench kills: small, with everything that resuming has to bring back."""

import dataclasses
from pathlib import Path

from mixdistill.data.mixture import Mixture
from mixdistill.gates import worst_token
from mixdistill.generation.drawn import ADVANTAGE
from mixdistill.generation.judges import exact_answer
from mixdistill.generation.rollouts import HeldOut, Rollouts
from mixdistill.losses import cross_entropy
from mixdistill.losses.policy_gradient import policy_gradient
from mixdistill.memory import running
from mixdistill.objective import Objective, Term
from mixdistill.optimizers import OptimizerConfig
from mixdistill.recipe import Recipe, Stage
from mixdistill.routers import acceptance
from mixdistill.signals.signal import use
from tests.resume.toy_recipes import toy


def recipe(shards: Path, processes: int = 1) -> Recipe:
    """6 train steps on one teacher, 10 on all with a router and held-out problems, 6 on rollouts; two processes
    take the first two stages, and no held-out problems."""
    source = Mixture(shards=str(shards), rows=8, length=32)
    held_out = HeldOut(shards=str(shards), judges={"answer": exact_answer}, every=3, problems=4, max_new=8)
    memory = {"refill": acceptance(every=2, floor=0.3), "seen": running("teacher/nll")}
    gated = Term(cross_entropy, gates=(use(worst_token, threshold=4.2),))
    rollouts = Rollouts(
        shards=str(shards), judges={"answer": exact_answer}, weights={"answer": 1.0}, prompts=2, samples=4,
        max_prompt=12, max_new=8, updates=2,
    )  # fmt: skip
    stages = (
        Stage("anchor", 6, dataclasses.replace(source, weights={"F": 1.0}), Objective({"nll": Term(cross_entropy)})),
        Stage("pool", 10, source, Objective({"nll": gated}, memory=memory), held_out=held_out),
        Stage("refine", 6, rollouts, Objective({"reward": Term(policy_gradient)}, fields=(ADVANTAGE,))),
    )
    return Recipe(
        name="torture",
        student=toy,  # compiled in a moment; what resuming has to bring back is the same for every student
        optimizer=OptimizerConfig(learning_rate=1e-2),
        stages=stages if processes == 1 else tuple(dataclasses.replace(s, held_out=None) for s in stages[:2]),
        mesh={"fsdp": -1},
        log_every=3,
        checkpoint_every=4,
        keep_checkpoints=2,
    )
