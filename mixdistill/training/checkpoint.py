"""Checkpoints: the train state, the data position, the recipe's text and the teachers, saved as one or not at all.

One small file in front of orbax. Writing goes on behind training; a process that dies while writing leaves the
checkpoint before it as the latest. A checkpoint can be restored on another number of devices or processes.
"""

import dataclasses
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import args as ocp_args

from mixdistill.errors import UserError
from mixdistill.students.student import Params
from mixdistill.training.state import TrainState

FOLDER = "checkpoints"  # inside a workdir


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a run must have in common with a checkpoint to go on from it."""

    recipe: str  # the text that `recipe.show` writes
    fingerprint: str
    teachers: tuple[str, ...]  # in the order of teacher_id
    tokenizer: str  # hash
    command: str = ""  # how the recipe was named, for people


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """`position` is the host's part: a JSON dict that the loop writes and reads."""

    state: TrainState
    position: dict[str, Any]
    identity: Identity


class Checkpoints:
    """The checkpoints of one run. Use as a context manager, or `close` it: both wait for what is being written."""

    def __init__(self, workdir: Path, *, keep: int | None):
        """`keep` of them, the newest; None: all there are."""
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager((workdir / FOLDER).absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for writes and frees threads."""
        self._manager.wait_until_finished()
        self._manager.close()

    def wait(self) -> None:
        """Returns when all that was saved is durable."""
        self._manager.wait_until_finished()

    def latest(self) -> int | None:
        """The train step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def all(self) -> list[int]:
        """The train steps of all complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, train_step: int, checkpoint: Checkpoint) -> None:
        """Copies the arrays from the devices and returns; a train step that is saved already is left as it is."""
        if train_step in self._manager.all_steps():
            return
        about = {"position": checkpoint.position, "identity": dataclasses.asdict(checkpoint.identity)}
        parts = ocp_args.Composite(state=ocp_args.StandardSave(checkpoint.state), about=ocp_args.JsonSave(about))
        self._manager.save(train_step, args=parts)

    def read_identity(self, train_step: int) -> tuple[Identity, dict[str, Any]]:
        """What a checkpoint says of itself, and its position, without reading arrays."""
        about = self._manager.restore(train_step, args=ocp_args.Composite(about=ocp_args.JsonRestore()))["about"]
        said = about["identity"]
        return Identity(**{**said, "teachers": tuple(said["teachers"])}), about["position"]

    def restore(self, train_step: int, like: TrainState, identity: Identity) -> Checkpoint:
        """The checkpoint, its arrays with the shapes and shardings of `like` (see `state.abstract`).

        Raises `UserError` if it was made with other teachers, another tokenizer or another recipe.
        """
        saved, position = self.read_identity(train_step)
        check_same(saved, identity)
        state = self._manager.restore(train_step, args=ocp_args.Composite(state=ocp_args.StandardRestore(like)))
        return Checkpoint(state["state"], position, saved)

    def restore_params(self, train_step: int, like: Params) -> Params:
        """The parameters alone, with the shapes and shardings of `like`."""
        wanted = {"params": like}
        arguments = ocp_args.PyTreeRestore(
            item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
        )
        return self._manager.restore(train_step, args=ocp_args.Composite(state=arguments))["state"]["params"]


def saved_train_steps(workdir: Path) -> list[int]:
    """As `Checkpoints.all`, by names alone: cheap, and safe beside a run that writes."""
    names = [path.name for path in (workdir / FOLDER).glob("*")]
    return sorted(int(name) for name in names if name.isdecimal())  # one that is being written has a longer name


def check_same(saved: Identity, now: Identity) -> None:
    """Raises `UserError`, naming the difference, if a run `now` may not go on from a checkpoint of `saved`."""
    # Imported here: text of recipes is needed only for the message.
    from mixdistill.recipe.text import diff_text

    if saved.teachers != now.teachers:
        raise UserError(
            f"the checkpoint has learned from teachers {', '.join(saved.teachers)}; the shards now have "
            f"{', '.join(now.teachers)}. Use the shards it was made with, or another --workdir"
        )
    if saved.tokenizer != now.tokenizer:
        raise UserError(
            f"the checkpoint was made with tokenizer {saved.tokenizer[:12]}, the shards now have {now.tokenizer[:12]}. "
            "Use the shards it was made with, or another --workdir"
        )
    if saved.fingerprint != now.fingerprint:
        changed = "; ".join(diff_text(saved.recipe, now.recipe).splitlines()[:5]) or "its code"
        raise UserError(
            f"the workdir holds a run of another recipe ({changed}). Undo the change, or use another --workdir"
        )
