"""Find a recipe by name: `module:function` or `path/to/file.py:function`. The function takes no arguments."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from mixdistill.errors import UserError, unknown
from mixdistill.recipe.recipe import Recipe


def load(name: str) -> Recipe:
    """The recipe that the named function returns.

    Raises `UserError` for a module, file or function that is not there, naming the nearest function.
    """
    recipe = find_function(name, "recipe")()
    if not isinstance(recipe, Recipe):
        raise UserError(f"{name} returned {type(recipe).__name__}, not a Recipe")
    return recipe


def find_function(name: str, kind: str) -> Callable[[], Any]:
    """The function that `name` names, which takes no arguments. Raises `UserError` as `load`."""
    function = find(name, kind)
    needs = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    if needs:
        raise UserError(f"{name} needs {', '.join(needs)}; name a {kind} function that can be called without arguments")
    return function


def find(name: str, kind: str) -> Callable[..., Any]:
    """The function that `name` names; `kind` says in errors what it is for. Raises `UserError` as `load`."""
    where, _, function_name = name.rpartition(":")
    if not where:
        raise UserError(f"a {kind} is named module:function or file.py:function, got {name!r}")
    module = _from_file(Path(where), kind) if where.endswith(".py") else _from_name(where, kind)
    function = getattr(module, function_name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        raise unknown(f"{kind} function in {where}", function_name, own)
    return function


def _from_file(path: Path, kind: str) -> ModuleType:
    if not path.is_file():
        raise UserError(f"no {kind} file {path}")
    already = sys.modules.get(path.stem)
    if already is not None and getattr(already, "__file__", None) != str(path.resolve()):
        raise UserError(f"{kind} file {path} has the name of a module that is in use, {path.stem!r}; rename the file")
    if str(path.resolve().parent) not in sys.path:  # as for a script: what lies beside it can be imported
        sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickling of its functions look the module up
    spec.loader.exec_module(module)
    return module


def _from_name(name: str, kind: str) -> ModuleType:
    # Recipes of a project live beside it, and a console script does not have the working directory on its path.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"no module {error.name!r} for {kind} {name!r}; looked along sys.path and {Path.cwd()}"
            ) from None
        raise
