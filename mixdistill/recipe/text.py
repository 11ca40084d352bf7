"""A recipe as text: one `path = value` line a setting, in the order in which it is declared.

The paths are those that `--set` takes, so the text is documentation, golden file, diff and, hashed, the run's identity.
Functions appear as module:name followed by their knobs, with defaults and the values that a closure holds.
"""

import dataclasses
import enum
import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeGuard

import numpy as np

from mixdistill.errors import UserError
from mixdistill.objective import Objective
from mixdistill.recipe.recipe import LOGGING, MACHINE, Recipe
from mixdistill.signals.signal import Bound

Line = tuple[str, str]
PLAIN = (str, int, float, bool, type(None))


def show(recipe: Recipe) -> str:
    """The whole recipe as text. Raises `UserError` for a value that no text can stand for."""
    return _text(lines(recipe))


def fingerprint(recipe: Recipe) -> str:
    """What a run is: sha256 (hex) of the text without the machine and the logging."""
    kept = [line for line in lines(recipe) if line[0].split(".")[0] not in (*MACHINE, *LOGGING)]
    return hashlib.sha256(_text(kept).encode()).hexdigest()


def diff(old: Recipe, new: Recipe) -> str:
    """The settings that differ, one line each: `path: old -> new`; empty when none does."""
    return diff_text(show(old), show(new))


def diff_text(old: str, new: str) -> str:
    """`diff` of two texts that `show` wrote."""
    before, after = (dict(line.split(" = ", 1) for line in text.splitlines() if line) for text in (old, new))
    changed = [
        path for path in (*before, *(p for p in after if p not in before)) if before.get(path) != after.get(path)
    ]
    return "\n".join(f"{path}: {before.get(path, '(absent)')} -> {after.get(path, '(absent)')}" for path in changed)


def lines(value: Any, path: str = "") -> Iterator[Line]:
    """(path, text) for everything that `value` is made of."""
    if isinstance(value, Bound):
        yield from _function(value.fn, path, {**value.knobs, **_redirected(value)})
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _header(path, type(value))
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if isinstance(value, Objective) and field.name == "signals":
                item = tuple(signal for signal in item if _signal_name(signal) in value.graph.order)  # those it reads
            yield from lines(item, _join(path, field.name))
    elif isinstance(value, Mapping):
        yield from _children(path, "{}", value.items())
    elif is_named_tuple(value):
        yield from _header(path, type(value))
        yield from _children(path, "()", zip(value._fields, value, strict=True))
    elif isinstance(value, tuple | list):
        if all(isinstance(item, PLAIN) for item in value):
            yield path, repr(tuple(value))
        else:
            yield from _children(path, "()", named(value).items())
    elif isinstance(value, functools.partial):
        yield from _function(value.func, path, {**dict(enumerate(value.args)), **value.keywords})
    elif callable(value) and not isinstance(value, type):
        yield from _function(value, path, {})
    else:
        yield path, _leaf(value, path)


def named(items: Sequence) -> dict[str, Any]:
    """The items of a tuple by the names that paths use: signals by their own, everything else by position."""
    names = [_signal_name(item) for item in items]
    plain = None in names or len(set(names)) < len(names)
    return {str(index) if plain else str(names[index]): item for index, item in enumerate(items)}


def is_named_tuple(value: Any) -> TypeGuard[Any]:
    """True for a NamedTuple, whose items have names of their own."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _signal_name(item: Any) -> str | None:
    return item.name if isinstance(item, Bound) else getattr(item, "__name__", None)


def knobs(function: Callable) -> dict[str, Any]:
    """Keyword-only parameters with their defaults: what a recipe may turn."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}


def name_of(thing: Any) -> str:
    """`module:name` of a function or class, the same whether its module was imported or run as a script."""
    module = sys.modules.get(thing.__module__)
    spec = getattr(module, "__spec__", None)
    if thing.__module__ != "__main__":
        name = thing.__module__
    else:
        name = spec.name if spec else Path(getattr(module, "__file__", "__main__")).stem
    return f"{name}:{thing.__qualname__}"


def _text(pairs) -> str:
    return "".join(f"{path} = {text}\n" for path, text in pairs)


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _header(path: str, kind: type) -> Iterator[Line]:
    if path:
        yield path, name_of(kind)


def _children(path: str, empty: str, items) -> Iterator[Line]:
    found = list(items)
    if not found:
        yield path, empty
    for name, item in found:
        yield from lines(item, _join(path, name))


def _function(function: Callable, path: str, given: Mapping) -> Iterator[Line]:
    if not hasattr(function, "__qualname__"):
        raise UserError(f"{path} is an object of {type(function).__name__}; use a function or a frozen dataclass")
    suffix = f" {_digest(function.__code__)}" if function.__name__ == "<lambda>" else ""
    yield path, name_of(function) + suffix
    held = inspect.getclosurevars(function).nonlocals if isinstance(function, FunctionType) else {}
    for name, value in {**held, **knobs(function), **given}.items():
        if value is not function:  # a recursive closure holds itself
            yield from lines(value, _join(path, name))


def _redirected(bound: Bound) -> dict[str, Any]:
    """The parameters that read a signal of another name: the function that makes it where the recipe gave one."""
    sources = {getattr(source, "name", getattr(source, "__name__", "")): source for source in bound.sources}
    return {name: sources.get(source, source) for name, source in bound.reads.items() if name != source}


def _digest(code: CodeType) -> str:
    # A lambda has no name that tells it from another: its code has to.
    constants = [c if not isinstance(c, CodeType) else _digest(c) for c in code.co_consts]
    return hashlib.sha256(repr((code.co_code.hex(), constants, code.co_names)).encode()).hexdigest()[:12]


def _leaf(value: Any, path: str) -> str:
    if isinstance(value, enum.Enum):
        return repr(value.value)
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, Path):
        return repr(str(value))
    if isinstance(value, frozenset | set):
        return repr(tuple(sorted(value)))
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, type):
        return name_of(value)
    if isinstance(value, np.generic | np.ndarray) or hasattr(value, "__array__"):
        array = np.asarray(value)
        return repr(array.item()) if array.ndim == 0 else repr(tuple(array.tolist()))
    raise UserError(f"{path} is an object of {type(value).__name__}, which has no text form; use plain values")
