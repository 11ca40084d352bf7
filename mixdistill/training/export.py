"""A run's student as a published checkpoint, or its adapters as PEFT reads them; one parameter in memory at a time."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mixdistill.errors import UserError, unknown
from mixdistill.recipe import Recipe
from mixdistill.recipe.read import read_adapters, read_value
from mixdistill.students.adapters import ADAPTERS, BASE, Lora, adapted, combined, product, widened, with_adapters
from mixdistill.students.config import Dtype
from mixdistill.students.safetensors_file import Spec
from mixdistill.students.student import Params, Student
from mixdistill.students.trees import at, flat, nest
from mixdistill.students.write_adapter import save_peft
from mixdistill.students.write_weights import SHARD_BYTES, write_hf
from mixdistill.traces.templates import ChatTemplate
from mixdistill.traces.tokenizer import Tokenizer
from mixdistill.training import branches
from mixdistill.training.checkpoint import Checkpoints
from mixdistill.training.workdir import PROMPT, TOKENIZER, check_run, existing, student_of


class Saved(NamedTuple):
    """A checkpoint that is read parameter by parameter."""

    student: Student  # without adapters
    lora: Lora | None
    read: Callable[[Params], Params]  # a part of the parameters' shapes -> arrays in host memory
    each: Callable[
        [tuple[str, ...]], np.ndarray
    ]  # an adapter's path -> that of every teacher's branch, [teachers, ...]
    teachers: tuple[str, ...]
    start: str | None


def export(
    workdir: Path,
    folder: Path,
    *,
    train_step: int | None = None,
    recipe: Recipe | None = None,
    teachers: Mapping[str, float] | None = None,
    dtype: Dtype | None = None,
    max_length: int = 32_768,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes the student of a run, adapters merged, with tokenizer and generation configuration.

    `teachers`: in place of the run's adapters, those of its last round of branches, W + sum_k weight_k scale A_k B_k.
    `dtype` None: as the checkpoint has it, or that of the activations where adapters are merged. Host memory holds one
    parameter (of all layers) at a time. Raises `UserError` for what is missing, or that transformers has no
    architecture for.
    """
    with _saved(workdir, train_step, recipe) as saved:
        config, shapes = saved.student.config, _shapes(saved.student)
        kept = dtype or (config.dtype if saved.lora and config else None)
        specs = {path: Spec(kept or leaf.dtype.name, leaf.shape) for path, leaf in flat(shapes).items()}
        read = functools.partial(_read_merged, saved, shapes, _weights(saved, workdir, teachers))
        tokenizer = Tokenizer.load(workdir / TOKENIZER)
        beside = functools.partial(_write_beside, workdir, tokenizer)
        write_hf(config, specs, read, folder, max_length=max_length, shard_bytes=shard_bytes, beside=beside)


def export_adapters(
    workdir: Path,
    folder: Path,
    *,
    train_step: int | None = None,
    recipe: Recipe | None = None,
    teachers: Mapping[str, float] | None = None,
) -> None:
    """Writes the adapters of a run for PEFT, or those of branches of `teachers`, combined exactly: their ranks add up.
    Raises `UserError` for a run without."""
    with _saved(workdir, train_step, recipe) as saved:
        if saved.lora is None:
            raise UserError(f"the run at {workdir} has no adapters; export the student itself, without --adapters")
        shapes = _shapes(with_adapters(saved.student, saved.lora))
        weights, lora = _weights(saved, workdir, teachers), saved.lora
        if weights is None:
            params = saved.read({ADAPTERS: shapes[ADAPTERS]})
        else:
            each = nest({path: saved.each(path) for path in flat(shapes[ADAPTERS])})
            chosen = [jax.tree.map(lambda a, k=k: a[k], each) for k in weights]
            params = {ADAPTERS: combined(saved.student, lora, chosen, list(weights.values()))}
            lora = widened(lora, len(weights))
        save_peft(saved.student, lora, params, folder, base=saved.start or "")


def _weights(saved: Saved, workdir: Path, teachers: Mapping[str, float] | None) -> dict[int, float] | None:
    """By the teachers' numbers. Raises `UserError` for those that have no adapters of their own."""
    if teachers is None:
        return None
    for name in teachers:
        if name not in saved.teachers:
            raise unknown("teacher", name, saved.teachers)
    if saved.lora is None:
        raise UserError(f"the run at {workdir} has no adapters, so none of a teacher's own; leave --teachers out")
    (first, *_) = flat(_shapes(with_adapters(saved.student, saved.lora))[ADAPTERS])
    made = saved.each(first)
    for name in teachers:
        if not made[saved.teachers.index(name)].any():
            raise UserError(f"teacher {name!r} had no branch in the last round at {workdir}")
    return {saved.teachers.index(name): weight for name, weight in teachers.items()}


@contextmanager
def _saved(workdir: Path, train_step: int | None, recipe: Recipe | None) -> Iterator[Saved]:
    check_run(workdir)
    with Checkpoints(workdir, keep=None) as checkpoints:
        train_step = existing(workdir, checkpoints.all(), train_step)
        identity, _ = checkpoints.read_identity(train_step)

        def read(shapes: Params) -> Params:
            return nest({path: checkpoints.read_array(train_step, ("params", *path)) for path in flat(shapes)})

        def each(path: tuple[str, ...]) -> np.ndarray:
            try:
                return checkpoints.read_array(train_step, ("memory", branches.MEMORY, "kept", branches.EACH, *path))
            except UserError as error:
                raise UserError(
                    f"the run at {workdir} has no adapters of each teacher: a stage with branches=Merge() and "
                    f"adapters=Lora() keeps them ({error})"
                ) from None

        student, lora = student_of(identity, recipe), read_adapters(identity.recipe)
        yield Saved(student, lora, read, each, identity.teachers, read_value(identity.recipe, "start"))


def _shapes(student: Student) -> Params:
    return jax.eval_shape(student.init, jax.random.key(0))


def _read_merged(
    saved: Saved, shapes: Params, teachers: Mapping[int, float] | None, path: tuple[str, ...]
) -> np.ndarray:
    if saved.lora is None:
        return np.asarray(at(saved.read(nest({path: at(shapes, path)})), path))
    whole = _shapes(with_adapters(saved.student, saved.lora))
    matrix = adapted(saved.student.axes, saved.lora).get(path)
    wanted = {(BASE, *path): at(whole[BASE], path)}
    if matrix is not None and teachers is None:
        wanted[(ADAPTERS, *path)] = at(whole[ADAPTERS], path)
    params = saved.read(nest(wanted))
    base = np.asarray(at(params[BASE], path))
    if matrix is None:
        return base
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        if teachers is None:
            added = product(at(params[ADAPTERS], path), matrix)
        else:
            each = {part: saved.each((*path, part)) for part in ("a", "b")}
            one = {k: product({part: all_[k] for part, all_ in each.items()}, matrix) for k in teachers}
            added = sum(weight * one[k] for k, weight in teachers.items())
    return base.astype(np.float32) + np.float32(saved.lora.scale) * np.asarray(added)


def _write_beside(workdir: Path, tokenizer: Tokenizer, folder: Path) -> None:
    """The tokenizer as transformers loads it, with a chat template that writes prompts as training did."""
    tokenizer.save(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    prompt = ChatTemplate(**json.loads((workdir / TOKENIZER / PROMPT).read_text(encoding="utf-8")))
    settings.setdefault("chat_template", _jinja(prompt))
    path.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    generation = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def _jinja(prompt: ChatTemplate) -> str:
    before, after = (json.dumps(text, ensure_ascii=False) for text in prompt)
    return f"{{{{ {before} }}}}{{{{ messages[-1]['content'] }}}}{{{{ {after} }}}}"
