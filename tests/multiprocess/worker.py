"""One of several processes of a run: ID COUNT PORT SHARDS WORKDIR STOP_AT. Process 1 is sent SIGTERM after
train step STOP_AT; 0: while a program is compiled that never will be; negative: SIGKILL."""

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import jax


def main(process: int, count: int, port: str, shards: str, workdir: str, stop_at: int) -> None:
    where = {"num_processes": count, "process_id": process}
    jax.distributed.initialize(f"127.0.0.1:{port}", **where, heartbeat_timeout_seconds=20 if stop_at < 0 else 100)
    path = Path(__file__).parents[1] / "resume" / "toy_recipes.py"
    spec = importlib.util.spec_from_file_location("toy_recipes", path)
    recipes = importlib.util.module_from_spec(spec)
    sys.modules["toy_recipes"] = recipes
    spec.loader.exec_module(recipes)

    from mixdistill.recipe import set_all
    from mixdistill.training import loop

    recipe = set_all(recipes.steered(), [f"stages.{k}.source.shards={shards}" for k in (0, 1)])
    sent = signal.SIGTERM if stop_at > 0 else signal.SIGKILL
    hooks = [recipes.send(sent, abs(stop_at))] if process == 1 else []
    hooks.append(lambda event: time.sleep(event.kind == "train_step" and event.train_step >= stop_at > 0))
    if stop_at == 0:
        loop.compiled = lambda *_: never(process)
    outcome = loop.run(recipe, workdir, hooks=hooks)
    print(f"done: {outcome.stopped_by} {outcome.position.train_step}", file=sys.stderr, flush=True)


def never(process: int) -> None:
    if process == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(600)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6], int(sys.argv[6]))
