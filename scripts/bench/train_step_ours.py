"""mixdistill's side of `train_step.py`: TASK.json."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mixdistill.data.mixture import Mixture
from mixdistill.data.placement import place
from mixdistill.gates import step_confidence
from mixdistill.losses import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.optimizers import OptimizerConfig
from mixdistill.recipe import Recipe, Stage
from mixdistill.signals.signal import use
from mixdistill.students.config import DecoderConfig
from mixdistill.training.job import build
from mixdistill.training.loop import run
from mixdistill.training.position import Position

sys.path.insert(0, str(Path(__file__).parent))
from turns import Turns

ENDLESS = 1_000_000


def student(task: dict[str, Any]) -> DecoderConfig:
    """The shapes of all sides."""
    shapes = {"embed": "embed", "mlp": "mlp", "layers": "layers", "heads": "heads", "kv_heads": "kv_heads"}
    given = {name: task[key] for name, key in shapes.items()}
    return DecoderConfig(vocab_size=task["vocab"], head_dim=task["head_dim"], tied=False, **given)


def recipe(task: dict[str, Any]) -> Recipe:
    """Cross entropy on packed rows, gated or not."""
    gates = (use(step_confidence, quantile=0.5),) if task["gated"] else ()
    source = Mixture(shards=task["shards"], rows=task["rows"], length=task["length"])
    stage = Stage("imitate", ENDLESS, source, Objective({"imitate": Term(cross_entropy, gates=gates)}))
    optimizer = OptimizerConfig(learning_rate=1e-3)
    return Recipe(
        name="bench",
        student=student(task),
        stages=(stage,),
        optimizer=optimizer,
        log_every=20,
        checkpoint_every=ENDLESS,
    )


def ragged(task: dict[str, Any], turns: Turns) -> None:
    """The whole product: reading, packing, train step, metrics."""
    seen = 0

    def hook(event) -> None:
        nonlocal seen
        if event.kind == "train_step":
            turns.trained(event.tokens - seen)
            seen = event.tokens
        if event.kind in ("start", "train_step"):
            jax.block_until_ready(event.state)
            turns()

    with tempfile.TemporaryDirectory() as workdir:
        run(recipe(task), workdir, hooks=[hook], devices=jax.devices()[:1], quiet=True)


def full(task: dict[str, Any], turns: Turns) -> None:
    """The train step on rows of one trace each, every target trained on."""
    job = build(recipe(task), jax.devices()[:1])
    state, step = job.initial_state(), job.train_step(0)
    example = next(job.pipeline(Position()))
    rows = np.load(task["full"])
    for number in range(ENDLESS):
        turns()
        tokens = rows[number % len(rows)]
        batch = place(_batch(tokens, example), job.mesh, job.recipe.rules)
        state, _ = step(state, batch)
        jax.block_until_ready(state)
        turns.trained(tokens.size)


def _batch(tokens: np.ndarray, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ones, position = np.ones_like(tokens), np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    known = {
        "tokens": tokens,
        "target": np.roll(tokens, -1, axis=1),
        "valid": ones,
        "segment_id": ones,
        "position": position,
        "step_id": 1 + position // 16,
        "content": ones,
    }
    return {name: known.get(name, np.zeros(tokens.shape)).astype(array.dtype) for name, array in like.items()}


def main() -> None:
    """Trains until its input ends."""
    task = json.loads(sys.argv[1])
    turns = Turns(task["steps"])
    (full if task["data"] == "full" else ragged)(task, turns)


if __name__ == "__main__":
    main()
