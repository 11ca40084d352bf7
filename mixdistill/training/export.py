"""A run's student as a published checkpoint, or its adapters as PEFT reads them; one parameter in memory at a time."""

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mixdistill.errors import UserError
from mixdistill.recipe import Recipe
from mixdistill.recipe.read import read_adapters, read_value
from mixdistill.students.adapters import ADAPTERS, BASE, Lora, adapted, product, with_adapters
from mixdistill.students.config import Dtype
from mixdistill.students.safetensors_file import Spec
from mixdistill.students.student import Params, Student
from mixdistill.students.trees import at, flat, nest
from mixdistill.students.write_adapter import save_peft
from mixdistill.students.write_weights import SHARD_BYTES, write_hf
from mixdistill.traces.templates import ChatTemplate
from mixdistill.traces.tokenizer import Tokenizer
from mixdistill.training.checkpoint import Checkpoints
from mixdistill.training.workdir import PROMPT, TOKENIZER, check_run, existing, student_of


class Saved(NamedTuple):
    """A checkpoint that is read parameter by parameter."""

    student: Student  # without adapters
    lora: Lora | None
    read: Callable[[Params], Params]  # a part of the parameters' shapes -> arrays in host memory
    start: str | None


def export(
    workdir: Path,
    folder: Path,
    *,
    train_step: int | None = None,
    recipe: Recipe | None = None,
    dtype: Dtype | None = None,
    max_length: int = 32_768,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes the student of a run, adapters merged, with tokenizer and generation configuration.

    `dtype` None: as the checkpoint has it, or that of the activations where adapters are merged. Host memory holds one
    parameter (of all layers) at a time. Raises `UserError` for what is missing, or that transformers has no
    architecture for.
    """
    with _saved(workdir, train_step, recipe) as saved:
        config, shapes = saved.student.config, _shapes(saved.student)
        kept = dtype or (config.dtype if saved.lora and config else None)
        specs = {path: Spec(kept or leaf.dtype.name, leaf.shape) for path, leaf in flat(shapes).items()}
        read = functools.partial(_read_merged, saved, shapes)
        tokenizer = Tokenizer.load(workdir / TOKENIZER)
        beside = functools.partial(_write_beside, workdir, tokenizer)
        write_hf(config, specs, read, folder, max_length=max_length, shard_bytes=shard_bytes, beside=beside)


def export_adapters(
    workdir: Path, folder: Path, *, train_step: int | None = None, recipe: Recipe | None = None
) -> None:
    """Writes the adapters of a run for PEFT. Raises `UserError` for a run without."""
    with _saved(workdir, train_step, recipe) as saved:
        if saved.lora is None:
            raise UserError(f"the run at {workdir} has no adapters; export the student itself, without --adapters")
        shapes = _shapes(with_adapters(saved.student, saved.lora))
        params = saved.read({ADAPTERS: shapes[ADAPTERS]})
        save_peft(saved.student, saved.lora, params, folder, base=saved.start or "")


@contextmanager
def _saved(workdir: Path, train_step: int | None, recipe: Recipe | None) -> Iterator[Saved]:
    check_run(workdir)
    with Checkpoints(workdir, keep=None) as checkpoints:
        train_step = existing(workdir, checkpoints.all(), train_step)
        identity, _ = checkpoints.read_identity(train_step)

        def read(shapes: Params) -> Params:
            return nest({path: checkpoints.read_parameter(train_step, path) for path in flat(shapes)})

        student, lora = student_of(identity, recipe), read_adapters(identity.recipe)
        yield Saved(student, lora, read, read_value(identity.recipe, "start"))


def _shapes(student: Student) -> Params:
    return jax.eval_shape(student.init, jax.random.key(0))


def _read_merged(saved: Saved, shapes: Params, path: tuple[str, ...]) -> np.ndarray:
    if saved.lora is None:
        return np.asarray(at(saved.read(nest({path: at(shapes, path)})), path))
    whole = _shapes(with_adapters(saved.student, saved.lora))
    matrix = adapted(saved.student.axes, saved.lora).get(path)
    wanted = {(BASE, *path): at(whole[BASE], path)}
    if matrix is not None:
        wanted[(ADAPTERS, *path)] = at(whole[ADAPTERS], path)
    params = saved.read(nest(wanted))
    base = np.asarray(at(params[BASE], path))
    if matrix is None:
        return base
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        added = product(at(params[ADAPTERS], path), matrix)
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
