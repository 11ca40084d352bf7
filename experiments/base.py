"""Small recipes to start from: copy one, or call it and `dataclasses.replace` what differs.

mixdistill train experiments.base:smoke --set stages.0.source.shards=SHARDS
"""

from mixdistill.data.mixture import Mixture
from mixdistill.gates import worst_token
from mixdistill.losses.cross_entropy import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.optimizers import OptimizerConfig
from mixdistill.recipe import Recipe, Stage
from mixdistill.routers import acceptance
from mixdistill.students.families import tiny


def smoke(shards: str = "shards", vocab_size: int = 512) -> Recipe:
    """Plain pooled cross entropy on a student of 150 thousand parameters: seconds on a laptop. Does everything run?"""
    return Recipe(
        name="smoke",
        student=tiny(vocab_size),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        stages=(
            Stage(
                "imitate",
                num_train_steps=20,
                source=Mixture(shards=shards, rows=8, length=64, seed=0),
                objective=Objective({"imitate": Term(cross_entropy)}),
            ),
        ),
        log_every=5,
        checkpoint_every=10,
    )


def anchored(shards: str = "shards", anchor: str = "anchor", vocab_size: int = 512) -> Recipe:
    """Two stages: one teacher alone, then all of them through the worst-token gate, with refill from those it accepts.

    A safe filter: about as good as the anchor alone, whoever else is in the pool. It never merges.
    """
    gated = Term(cross_entropy, gates=(worst_token,))
    return Recipe(
        name="anchored",
        student=tiny(vocab_size),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        stages=(
            Stage(
                "anchor",
                num_train_steps=400,
                source=Mixture(shards=shards, rows=8, length=64, weights={anchor: 1.0}),
                objective=Objective({"imitate": Term(cross_entropy)}),
            ),
            Stage(
                "pool",
                num_train_steps=400,
                source=Mixture(shards=shards, rows=8, length=64),
                objective=Objective({"imitate": gated}, memory={"refill": acceptance(every=10)}),
            ),
        ),
        checkpoint_every=100,
    )
