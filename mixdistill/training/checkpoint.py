"""Checkpoints: the train state, the data position, the recipe's text and the teachers, saved as one or not at all.

One small file in front of orbax. Writing goes on behind training; a process that dies while writing leaves the
checkpoint before it as the latest. Every array is checked against its checksum when it is read back, and a damaged
checkpoint gives way to the one before. A checkpoint can be restored on another number of devices or processes.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import args as ocp_args

from mixdistill.errors import UserError
from mixdistill.students.student import Params
from mixdistill.students.trees import nest
from mixdistill.training import average
from mixdistill.training.one_array import read_array
from mixdistill.training.processes import everywhere
from mixdistill.training.soundness import soundness
from mixdistill.training.state import TrainState

FOLDER, DAMAGED = "checkpoints", "damaged"  # inside a workdir
SPARE_BYTES = 2**20  # descriptions, and what a disk rounds up
CHUNK_BYTES = 2**22  # of an array: what is unpacked at a time when it is read
# Orbax's waits go by the wall clock, which may jump by hours, and a slow disk is no reason to stop a run. So they last
# for ever, and folders are made before `save` returns: waiting for them is bounded otherwise.
PATIENCE_SECONDS = 10**9


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
    checksums: dict[str, int] = dataclasses.field(default_factory=dict)  # of the arrays; empty: not known yet


class Damaged(Exception):
    """A checkpoint that is not what was saved; the message says what is wrong."""


class Checkpoints:
    """The checkpoints of one run. Use as a context manager, or `close` it: both wait for what is being written."""

    def __init__(self, workdir: Path, *, keep: int | None):
        """`keep` of them, the newest, and those that are pinned; None: all there are."""
        self._workdir, self._retention = workdir, Retention(keep)
        # The folder is made here: with `create` orbax changes the times of one that is there.
        (workdir / FOLDER).mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._retention,
            create=False,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(timeout_secs=PATIENCE_SECONDS, create_directories_asynchronously=False),
        )
        self._manager = ocp.CheckpointManager((workdir / FOLDER).absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace) -> None:
        with contextlib.nullcontext() if kind is None else contextlib.suppress(Exception):
            self.close()

    def close(self) -> None:
        """Waits for writes and frees threads. Raises `UserError` if the last one failed."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def wait(self) -> None:
        """Returns when all that was saved is durable. Raises `UserError` if it could not be written."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._forget_unfinished()
            raise UserError(
                f"a checkpoint in {self._workdir} could not be written ({_first_line(error)}); those before it are "
                "whole. Make room, and the same command goes on from there"
            ) from error

    def latest(self) -> int | None:
        """The train step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def all(self) -> list[int]:
        """The train steps of all complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, train_step: int, checkpoint: Checkpoint, *, pinned: Iterable[int] = ()) -> None:
        """Copies the arrays from the devices and returns; a train step that is saved already is left as it is.

        `pinned` train steps stay, however many come after. Raises `UserError` where there is no room, or if the save
        before this one failed: then nothing is changed, and saving may be tried again.
        """
        if train_step in self._manager.all_steps():
            return
        self.wait()
        self._check_room(checkpoint.state)
        about: dict[str, Any] = {"position": checkpoint.position, "identity": dataclasses.asdict(checkpoint.identity)}
        about["checksums"] = checkpoint.checksums or soundness(checkpoint.state).checksums
        about["sha256"] = _digest(about)
        chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), checkpoint.state)
        state = ocp_args.StandardSave(checkpoint.state, save_args=chunks)
        parts = ocp_args.Composite(state=state, about=ocp_args.JsonSave(about))
        self._retention.pinned = {*pinned, train_step}
        self._manager.save(train_step, args=parts)

    def read_identity(self, train_step: int) -> tuple[Identity, dict[str, Any]]:
        """What a checkpoint says of itself, and its position, without reading arrays. Raises `UserError` if that is
        damaged."""
        try:
            return self._identity(train_step)
        except Damaged as damage:
            raise self._useless(train_step, damage) from None

    def _identity(self, train_step: int) -> tuple[Identity, dict[str, Any]]:
        about = self._about(train_step)
        said = about["identity"]
        return Identity(**{**said, "teachers": tuple(said["teachers"])}), about["position"]

    def restore(self, train_step: int, like: TrainState, identity: Identity) -> Checkpoint:
        """The checkpoint, its arrays with the shapes and shardings of `like` (see `state.abstract`).

        Raises `UserError` if it was made with other teachers, another tokenizer or another recipe; `Damaged` if it is
        not what was saved.
        """
        saved, position = self._identity(train_step)
        check_same(saved, identity)
        state = self._read(train_step, ocp_args.StandardRestore(like))
        checksums = self._check(train_step, state)
        return Checkpoint(state, position, saved, checksums)

    def newest(
        self, like: TrainState, identity: Identity, say: Callable[[str], None], *, most: int | None = None
    ) -> Checkpoint | None:
        """The newest checkpoint (of `most` train steps at most) that is whole; None where there is none.

        Damaged ones are told to `say` and moved to damaged/. Raises `UserError` as `restore` does, and if all are
        damaged.
        """
        steps = [step for step in self.all() if most is None or step <= most]
        for step in reversed(steps):
            found, problem = None, ""
            try:
                found = self.restore(step, like, identity)
            except Damaged as damage:
                problem = str(damage)
            if everywhere(not problem):
                return found
            self.set_aside(step)
            say(f"the checkpoint of train_step {step} is damaged ({problem or 'on another process'}): set aside")
        if steps and most is None:
            raise UserError(
                f"all {len(steps)} checkpoints of {self._workdir} are damaged; they are in {self._workdir / DAMAGED}. "
                "Copy one back from elsewhere, or train again in another --workdir"
            )
        return None

    def set_aside(self, train_step: int) -> None:
        """Moves a checkpoint to damaged/, where nothing reads it."""
        if jax.process_index() == 0:
            folder = self._workdir / DAMAGED
            folder.mkdir(exist_ok=True)
            number = next(n for n in itertools.count() if not (folder / f"{train_step}.{n}").exists())
            (self._workdir / FOLDER / str(train_step)).rename(folder / f"{train_step}.{number}")
        everywhere(True)
        self._manager.reload()

    def verify(self, train_step: int) -> None:
        """Reads all of a checkpoint, as numpy arrays, whatever model it is of. Raises `Damaged`."""
        self._about(train_step)
        folder = (self._workdir / FOLDER / str(train_step) / "state").absolute()
        with _damage("its arrays"), ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(folder).item_metadata
            wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            state = reader.restore(folder, args=ocp_args.PyTreeRestore(restore_args=wanted))
        self._check(train_step, state)

    def restore_params(self, train_step: int, like: Params, *, averaged: bool = False) -> Params:
        """The parameters alone, or their running mean, with the shapes and shardings of `like`. Raises `UserError` if
        they are damaged."""
        as_saved = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), like)
        wanted: dict[str, Any] = {"memory": {average.MEMORY: as_saved}} if averaged else {"params": like}
        arguments = ocp_args.PyTreeRestore(
            item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
        )
        try:
            found = self._read(train_step, arguments)
            self._check(train_step, found)
        except Damaged as damage:
            raise self._useless(train_step, damage) from None
        if not averaged:
            return found["params"]
        return jax.tree.map(lambda x, to: x.astype(to.dtype), found["memory"][average.MEMORY], like)

    def read_array(self, train_step: int, path: tuple[str, ...]) -> np.ndarray:
        """One array of the state, in the host's memory, which holds little beside it. Raises `UserError` if it is
        damaged or not there."""
        try:
            with _damage("its arrays"):
                found = read_array(self._workdir / FOLDER / str(train_step) / "state", path)
            self._check(train_step, nest({path: found}))
        except Damaged as damage:
            raise self._useless(train_step, damage) from None
        return found

    def _useless(self, train_step: int, damage: Damaged) -> UserError:
        return UserError(
            f"the checkpoint of train_step {train_step} in {self._workdir} is damaged ({damage}); use another one, "
            f"and see `mixdistill doctor {self._workdir}`"
        )

    def _about(self, train_step: int) -> dict[str, Any]:
        parts = ocp_args.Composite(about=ocp_args.JsonRestore())
        with _damage("its description"):
            about = dict(self._manager.restore(train_step, args=parts)["about"])
            if about.pop("sha256", None) != _digest(about):
                raise Damaged("its description has another checksum")
        return about

    def _read(self, train_step: int, how: Any) -> Any:
        with _damage("its arrays"):
            return self._manager.restore(train_step, args=ocp_args.Composite(state=how))["state"]

    def _check(self, train_step: int, state: Any) -> dict[str, int]:
        """Compares the arrays that were read with the checksums of what was saved."""
        saved, found = self._about(train_step)["checksums"], soundness(state).checksums
        if changed := [path for path in found if saved.get(path) != found[path]]:
            raise Damaged(f"{changed[0]} has another checksum than when it was saved")
        return found

    def _check_room(self, state: TrainState) -> None:
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + SPARE_BYTES
        free = shutil.disk_usage(self._workdir).free
        if not everywhere(free >= needed):
            raise UserError(
                f"no room for a checkpoint: {self._workdir} has {free / 2**20:.0f} MiB free, it takes "
                f"{needed / 2**20:.0f}; make room, or lower keep_checkpoints"
            )

    def _forget_unfinished(self) -> None:
        """What a write that failed has left takes room that the next one needs."""
        if jax.process_index() == 0:
            for path in (self._workdir / FOLDER).glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)
        self._manager.reload()


class Retention:
    """Orbax's question of what stays: the newest, and what is pinned."""

    def __init__(self, keep: int | None):
        self._keep = keep
        self.pinned: set[int] = set()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any = None) -> list[bool]:
        """One answer a checkpoint, which come from old to new."""
        del context
        newest = len(checkpoints) - (len(checkpoints) if self._keep is None else self._keep)
        return [place >= newest or one.step in self.pinned for place, one in enumerate(checkpoints)]


@contextlib.contextmanager
def _damage(what: str) -> Iterator[None]:
    """Whatever a library raises on broken bytes is a damage, not a fault of ours."""
    try:
        yield
    except Damaged:
        raise
    except Exception as error:
        raise Damaged(f"{what} cannot be read: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def _digest(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


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
