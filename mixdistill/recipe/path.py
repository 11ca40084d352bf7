"""`--set path=value`: a changed copy of a recipe. The text is read as the type that the setting is declared with."""

import ast
import dataclasses
import enum
import functools
import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from mixdistill.errors import UserError, unknown
from mixdistill.recipe.recipe import Recipe
from mixdistill.recipe.text import is_named_tuple, knobs, named
from mixdistill.signals.signal import Bound, use


def set_path(recipe: Recipe, path: str, text: str) -> Recipe:
    """`recipe` with the setting at `path` (as `show` prints it) read from `text`; the copy is checked like any other.

    Raises `UserError` for an unknown path, naming the nearest, and for text that is not of the setting's type.
    """
    return _set(recipe, path.split("."), text, Recipe, path)


def set_all(recipe: Recipe, assignments: typing.Iterable[str]) -> Recipe:
    """`set_path` for each `path=value`, in order."""
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise UserError(f"--set takes path=value, got {assignment!r}")
        recipe = set_path(recipe, path.strip(), text.strip())
    return recipe


def _set(value: Any, names: list[str], text: str, hint: Any, path: str) -> Any:
    if not names:
        return _parse(text, hint, value, path)
    name, rest = names[0], names[1:]
    if isinstance(value, Bound):
        return use(value, **{name: _knob(value.fn, value.knobs, name, rest, text, path)})
    if isinstance(value, functools.partial):
        return functools.partial(value, **{name: _knob(value.func, value.keywords, name, rest, text, path)})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        _known({field.name: field for field in dataclasses.fields(value)}, name, path)
        hint = _hints(type(value)).get(name)
        return dataclasses.replace(value, **{name: _set(getattr(value, name), rest, text, hint, path)})
    if value is None and _is_mapping(hint):
        value = {}
    if isinstance(value, Mapping):
        inner = _argument(hint, -1)
        if rest or inner is None:
            _known(value, name, path)
        return {**value, name: _set(value.get(name), rest, text, inner, path)}
    if is_named_tuple(value):
        _known(value._asdict(), name, path)
        hint = _hints(type(value)).get(name)
        return value._replace(**{name: _set(getattr(value, name), rest, text, hint, path)})
    if isinstance(value, tuple):
        items = named(value)
        _known(items, name, path)
        items[name] = _set(items[name], rest, text, _argument(hint, 0), path)
        return tuple(items.values())
    if callable(value):
        # A signal reads its positional parameters from the graph; a function without any is simply called.
        wrap = functools.partial if set(inspect.signature(value).parameters) == set(knobs(value)) else use
        return _set(wrap(value), names, text, None, path)
    raise UserError(f"{path!r}: {value!r} has no setting {name!r} inside it")


def _knob(function: Any, given: Mapping[str, Any], name: str, rest: list[str], text: str, path: str) -> Any:
    known = knobs(function) | dict(given)
    if not known:
        raise UserError(f"{path!r}: {function.__name__} has no settings; change what made it, in the recipe's function")
    _known(known, name, path)
    return _set(known[name], rest, text, _hints(function).get(name), path)


def _known(known: Mapping[str, Any], name: str, path: str) -> None:
    if name not in known:
        raise unknown(f"setting in {path!r}:", name, known)


def _hints(annotated: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(annotated)
    except NameError:  # an annotation that only a type checker can resolve
        return {}


def _argument(hint: Any, index: int) -> Any:
    """The element type of a tuple or Mapping type; None when the hint does not say."""
    for option in _options(hint):
        arguments = [a for a in typing.get_args(option) if a is not Ellipsis]
        if arguments and typing.get_origin(option) is not Literal:
            return arguments[index]
    return None


def _is_mapping(hint: Any) -> bool:
    kinds = (typing.get_origin(option) or option for option in _options(hint))
    return any(isinstance(kind, type) and issubclass(kind, Mapping) for kind in kinds)


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _parse(text: str, hint: Any, now: Any, path: str) -> Any:
    hint = hint if hint is not None else type(now)
    errors: list[Exception] = []
    # Narrow types first, so that "3" is a number where both a number and a string may stand.
    order = _ORDER | {tuple: 3 if text[:1] in ("(", "[") or "," in text else 5}
    for option in sorted(_options(hint), key=lambda o: order.get(typing.get_origin(o) or o, 2)):
        try:
            return _parse_one(text, option, path)
        except (ValueError, SyntaxError, TypeError) as error:
            errors.append(error)
    shown = repr(now) if len(repr(now)) < 60 else type(now).__name__
    # A TypeError says that text cannot make this type at all: what is wrong with the text is more to the point.
    why = min(errors, key=lambda error: isinstance(error, TypeError))
    raise UserError(f"{path} cannot be {text!r}: it is declared as {_name(hint)} and is now {shown} ({why})")


_ORDER: dict[Any, int] = {types.NoneType: 0, bool: 1, int: 1, float: 2, str: 4}


def _parse_one(text: str, kind: Any, path: str) -> Any:
    origin = typing.get_origin(kind) or kind
    if origin is types.NoneType:
        return _only({"none": None}, text.lower())
    if origin is bool:
        return _only({"true": True, "false": False}, text.lower())
    if origin is Literal:
        return _only({str(choice): choice for choice in typing.get_args(kind)}, text)
    if origin in (int, float):
        return origin(text)
    if origin is str:
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        return ast.literal_eval(text) if quoted else text
    if origin is tuple or origin is list:
        bracketed = text.strip()[:1] in ("(", "[")
        items = ast.literal_eval(text) if bracketed else [item.strip() for item in text.split(",") if item.strip()]
        items = items if isinstance(items, tuple | list) else [items]
        return tuple(_parse(str(item), _argument(kind, 0) or type(item), item, path) for item in items)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        found = dict(ast.literal_eval(text))
        return {key: _parse(str(item), _argument(kind, -1) or type(item), item, path) for key, item in found.items()}
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return origin(text)
    raise TypeError("it is code, not a value; write a recipe function that returns the change")


def _only(choices: Mapping[str, Any], text: str) -> Any:
    if text not in choices:
        raise ValueError(f"known: {', '.join(choices)}")
    return choices[text]


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else re.sub(r"\w+\.(?=\w)", "", str(hint))
