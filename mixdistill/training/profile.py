"""A profile of some train steps: what every kernel took, for xprof, TensorBoard and Perfetto."""

import re
import sys
from pathlib import Path

import jax

from mixdistill.errors import UserError
from mixdistill.training.hooks import Event, Hook


def parse(text: str) -> tuple[int, int]:
    """FIRST:LAST, train steps. Raises `UserError` for anything else."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or not int(match[1]) <= int(match[2]):
        raise UserError(f"--profile {text}: write FIRST:LAST, two numbers of train steps, say 10:13")
    return int(match[1]), int(match[2])


def profile(workdir: Path, first: int, last: int) -> Hook:
    """Records train steps `first` to `last`, counted from 1, into WORKDIR/profile; 0 records compilation too. A run
    that ends between them ends the recording."""
    folder, running = workdir / "profile", False

    def hook(event: Event) -> None:
        nonlocal running
        done = event.train_step
        if event.kind in ("start", "train_step") and first - 1 <= done < last and not running:
            jax.block_until_ready(event.state)  # nothing of the train steps before is recorded
            jax.profiler.start_trace(str(folder), create_perfetto_trace=True)
            running = True
        elif running and (done >= last or event.kind in ("end", "failed")):
            jax.block_until_ready(event.state)
            jax.profiler.stop_trace()
            running = False
            print(f"profile of train steps {first} to {done}: {folder}", file=sys.stderr)

    return hook
