"""What can be read back from a recipe's text: plain data. Nothing that the text names is imported or called."""

import ast
import dataclasses
import typing
from typing import Any

from mixdistill.errors import UserError
from mixdistill.students.adapters import Lora
from mixdistill.students.config import DecoderConfig

Settings = dict[str, str]  # path -> text


def settings(text: str) -> Settings:
    """The lines that `show` wrote, by path."""
    return dict(line.split(" = ", 1) for line in text.splitlines() if line)


def read_student(text: str) -> DecoderConfig | None:
    """The student of the recipe, if it is a decoder; None if it is made by a function. Raises `UserError` for a text of
    another version."""
    found = settings(text)
    return _read(found, "student", DecoderConfig) if found.get("student") == _name(DecoderConfig) else None


def read_adapters(text: str) -> Lora | None:
    """The adapters of the recipe, None if it trains the student itself."""
    found = settings(text)
    return _read(found, "adapters", Lora) if found.get("adapters") == _name(Lora) else None


def read_value(text: str, path: str) -> Any:
    """The plain value at `path`; None where there is none."""
    found = settings(text)
    return ast.literal_eval(found[path]) if path in found else None


def _read(found: Settings, path: str, kind: type) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    given = {key.split(".")[-1] for key in found if key.rpartition(".")[0] == path}
    if given != names:
        difference = ", ".join(sorted(given ^ names))
        raise UserError(f"the recipe's text is of another version: its {path} differs in {difference}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _value(found, f"{path}.{name}", hints[name]) for name in names})


def _value(found: Settings, path: str, hint: Any) -> Any:
    for option in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(option) and isinstance(option, type) and found[path] == _name(option):
            return _read(found, path, option)
    return ast.literal_eval(found[path])


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"
