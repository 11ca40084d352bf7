"""A run that is small and has everything that resuming must bring back: two stages, a gate, a router that steers.

Loaded by its path, also by other processes. Set the shards of both stages.
"""

import dataclasses
import os
import signal
import sys

import jax
import jax.numpy as jnp

from mixdistill.data.mixture import Mixture
from mixdistill.gates import worst_token
from mixdistill.losses import cross_entropy
from mixdistill.memory import running
from mixdistill.objective import Objective, Term
from mixdistill.optimizers import OptimizerConfig
from mixdistill.recipe import Recipe, Stage
from mixdistill.routers import acceptance
from mixdistill.signals.signal import use
from mixdistill.students.student import Student

VOCAB, EMBED = 32, 16


def toy() -> Student:
    """Position-wise, so that it compiles fast; its axes are those of a decoder."""
    shapes = {"embed": (VOCAB, EMBED), "up": (EMBED, 32), "down": (32, EMBED), "unembed": (EMBED, VOCAB)}
    axes = {"embed": ("vocab", "embed"), "up": ("embed", "mlp"), "down": ("mlp", "embed")}

    def init(key):
        keys = jax.random.split(key, len(shapes))
        return {name: 0.3 * jax.random.normal(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}

    def hidden(params, batch):
        x = params["embed"][batch["tokens"]]
        return x + jnp.tanh(x @ params["up"]) @ params["down"]

    return Student(init, hidden, lambda params: params["unembed"], axes | {"unembed": ("embed", "vocab")}, VOCAB)


def steered() -> Recipe:
    """5 train steps on one teacher, 11 on all with a router; checkpoints after 4, 8, 12 and 16."""
    source = Mixture(shards="shards", rows=8, length=24)
    gated = Term(cross_entropy, gates=(use(worst_token, threshold=4.2),))
    memory = {"refill": acceptance(every=2, floor=0.3), "seen": running("teacher/nll")}
    return Recipe(
        name="steered",
        student=toy,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        stages=(
            Stage(
                "anchor",
                5,
                dataclasses.replace(source, weights={"F": 1.0}),
                Objective({"imitate": Term(cross_entropy)}),
            ),
            Stage("pool", 11, source, Objective({"imitate": gated}, memory=memory)),
        ),
        log_every=3,
        checkpoint_every=4,
        keep_checkpoints=9,
    )


def endless() -> Recipe:
    """Until it is told to stop."""
    stage = dataclasses.replace(steered().stages[0], num_train_steps=1_000_000)
    return dataclasses.replace(steered(), name="endless", stages=(stage,), log_every=1, checkpoint_every=1_000_000)


def send(number: int, at: int):
    """A hook that sends its own process a signal after train step `at`."""

    def hook(event) -> None:
        if event.kind == "train_step" and event.train_step == at:
            os.kill(os.getpid(), number)

    return hook


def main(shards: str, workdir: str, number: str, at: str) -> None:
    """Trains `steered` until the signal."""
    from mixdistill.recipe import set_all
    from mixdistill.training.loop import run

    recipe = set_all(steered(), [f"stages.{k}.source.shards={shards}" for k in (0, 1)])
    hook = send(signal.Signals[number], int(at))
    print(run(recipe, workdir, hooks=[hook], devices=jax.devices()[:1], quiet=True).stopped_by)


if __name__ == "__main__":
    main(*sys.argv[1:])
