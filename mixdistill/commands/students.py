"""`--student`: a run's folder, a folder of published weights, or a function of yours, as something to score with."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from mixdistill.errors import UserError
from mixdistill.recipe.load import find_function
from mixdistill.students.student import Params, Student

HELP = "WORKDIR of a run, folder of published weights, or MODULE:FUNCTION that returns (Student, params)"


class Opened(NamedTuple):
    """A student to score with. `tokenizer` is the hash of the one it was trained with, None where it is not known."""

    student: Student
    params: Params
    name: str
    fingerprint: str
    tokenizer: str | None


def open_student(given: str) -> Opened:
    """Raises `UserError` for what is none of the three, naming them."""
    path = Path(given)
    if (path / "recipe.txt").is_file():
        return _of_run(path)
    if (path / "config.json").is_file():
        return _published(path)
    if ":" not in given:
        what = "holds neither recipe.txt nor config.json" if path.is_dir() else "is no folder"
        raise UserError(f"--student {given} {what}; give the {HELP}")
    return _of_function(given)


def check_tokenizer(opened: Opened, shards) -> None:
    """Raises `UserError` where the shards were made with another tokenizer than the student's."""
    made = shards.manifest["tokenizer"]
    if opened.tokenizer not in (None, made):
        raise UserError(
            f"student {opened.name} reads tokenizer {opened.tokenizer[:12]}, shards {shards.path} were made with "
            f"{made[:12]}; prepare them with --tokenizer of the student"
        )


def _of_run(workdir: Path) -> Opened:
    from mixdistill.training.workdir import open_trained

    trained = open_trained(workdir)
    about = f"{trained.identity.fingerprint} {trained.train_step} {trained.tokens}"
    name = f"{workdir.name} after train_step {trained.train_step}"
    fingerprint = hashlib.sha256(about.encode()).hexdigest()
    return Opened(trained.student, trained.params, name, fingerprint, trained.identity.tokenizer)


def _published(folder: Path) -> Opened:
    from mixdistill.students.weights import load_hf
    from mixdistill.traces.tokenizer import Tokenizer

    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    student, params = load_hf(folder)
    tokenizer = Tokenizer.load(folder).hash if (folder / "tokenizer.json").is_file() else None
    return Opened(student, params, folder.name, digest.hexdigest(), tokenizer)


def _of_function(name: str) -> Opened:
    from mixdistill.generation.scoring import fingerprint_of

    made = find_function(name, "student")()
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Student)):
        raise UserError(f"{name} returned {type(made).__name__}; a student function returns (Student, params)")
    student, params = made
    return Opened(student, params, name, fingerprint_of(student, params), None)
