"""The folder of a run: what stands in it, and how a student is read back from it without any code from it.

recipe.txt       the recipe as text
tokenizer/       the tokenizer, and in prompt.json what stands around a prompt
checkpoints/     see `checkpoint.py`
metrics.jsonl    one line a log event; tensorboard/ holds the same
"""

import functools
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import SingleDeviceSharding

from mixdistill.errors import UserError
from mixdistill.recipe import Recipe, fingerprint
from mixdistill.recipe.read import read_adapters, read_student, read_value
from mixdistill.students.adapters import merged, with_adapters
from mixdistill.students.decoder import make_student
from mixdistill.students.student import Params, Student
from mixdistill.traces.shards import Shards
from mixdistill.traces.templates import ChatTemplate
from mixdistill.traces.tokenizer import Tokenizer
from mixdistill.training.checkpoint import Checkpoints, Identity

RECIPE, TOKENIZER, PROMPT = "recipe.txt", "tokenizer", "prompt.json"


class Trained(NamedTuple):
    """A student as a run left it."""

    student: Student
    params: Params
    train_step: int
    tokens: int  # targets seen
    identity: Identity
    tokenizer: Tokenizer
    template: ChatTemplate


def make(workdir: Path) -> None:
    """Makes the folder. Raises `UserError` if it cannot be written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(
            f"workdir {workdir} cannot be written ({error.strerror}); give another one with --workdir"
        ) from None


def write_about(workdir: Path, identity: Identity, shards: Shards) -> None:
    """recipe.txt and the tokenizer; by the first process alone."""
    if jax.process_index() > 0:
        return
    (workdir / TOKENIZER).mkdir(exist_ok=True)
    shards.tokenizer.save(workdir / TOKENIZER)
    _write(workdir / TOKENIZER / PROMPT, json.dumps(shards.template._asdict(), ensure_ascii=False) + "\n")
    _write(workdir / RECIPE, identity.recipe)


def open_trained(
    workdir: Path, *, train_step: int | None = None, recipe: Recipe | None = None, averaged: bool | None = None
) -> Trained:
    """The student of a run at `train_step` (default: its last checkpoint), on one device; adapters are merged into it.

    A decoder is built from the recipe's text, which is data. Any other student is code: give the `recipe` that was
    trained. `averaged`: the running mean of the parameters (None: where the run keeps one). Raises `UserError` if there
    is no run, no such checkpoint, or if `recipe` is not that of the run.
    """
    check_run(workdir)
    with Checkpoints(workdir, keep=None) as checkpoints:
        train_step = existing(workdir, checkpoints.all(), train_step)
        identity, position = checkpoints.read_identity(train_step)
        student, lora = student_of(identity, recipe), read_adapters(identity.recipe)
        whole = with_adapters(student, lora) if lora else student
        averaged = read_value(identity.recipe, "average") is not None if averaged is None else averaged
        params = checkpoints.restore_params(train_step, _abstract_params(whole), averaged=averaged)
    if lora:
        params = jax.jit(functools.partial(merged, student, lora))(params)
    folder = workdir / TOKENIZER
    template = ChatTemplate(**json.loads((folder / PROMPT).read_text(encoding="utf-8")))
    return Trained(student, params, train_step, position["tokens"], identity, Tokenizer.load(folder), template)


def check_run(workdir: Path) -> None:
    """Raises `UserError` if no run has been in this folder."""
    if not (workdir / RECIPE).is_file():
        raise UserError(f"no run at {workdir}: it holds no {RECIPE}; give the --workdir of `mixdistill train`")


def existing(workdir: Path, saved: list[int], wanted: int | None) -> int:
    """The train step to open. Raises `UserError` if there is none, or not this one."""
    if not saved:
        raise UserError(f"the run at {workdir} has no checkpoint yet; train it first")
    if wanted is not None and wanted not in saved:
        raise UserError(f"no checkpoint of train_step {wanted} in {workdir}; known: {', '.join(map(str, saved))}")
    return saved[-1] if wanted is None else wanted


def student_of(identity: Identity, recipe: Recipe | None) -> Student:
    """The student that was trained, without adapters. Raises `UserError` if it is code and `recipe` is not that of the
    run."""
    if recipe is not None:
        if fingerprint(recipe) != identity.fingerprint:
            raise UserError(
                f"the run was not trained by recipe {recipe.name!r} as it is now; it was: {identity.command}"
            )
        return recipe.build_base()
    if (config := read_student(identity.recipe)) is not None:
        return make_student(config)
    raise UserError(
        f"the student of this run is made by a function, which is not called on the word of a file; name the recipe "
        f"with --recipe, as when it was trained: {identity.command or '(unknown)'}"
    )


def _abstract_params(student: Student) -> Params:
    here = SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(student.init, jax.random.key(0))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)


def _write(path: Path, text: str) -> None:
    """All of it or nothing, also when the process dies."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
