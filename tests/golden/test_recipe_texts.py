"""Recipes as text: a change of a default, or of what a function holds, shows here as a difference that a reviewer sees.

Write one anew with `mixdistill show NAME > tests/golden/recipes/NAME.txt` ("." in place of ":").
"""

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import experiments
from mixdistill.cli import main
from mixdistill.recipe import Recipe

GOLDEN = Path(__file__).parent / "recipes"


def recipes() -> list[str]:
    """Every function of `experiments` that `mixdistill train` could be given."""
    found = []
    for module in pkgutil.iter_modules(experiments.__path__, "experiments."):
        for name, function in inspect.getmembers(importlib.import_module(module.name), inspect.isfunction):
            own = function.__module__ == module.name and inspect.get_annotations(function).get("return") is Recipe
            if own and all(p.default is not p.empty for p in inspect.signature(function).parameters.values()):
                found.append(f"{module.name}:{name}")
    return found


@pytest.mark.parametrize("name", recipes())
def test_the_text_is_as_it_was(name, capsys):
    path = GOLDEN / f"{name.replace(':', '.')}.txt"
    assert main(["show", name]) == 0
    assert path.is_file(), f"write it with `mixdistill show {name} > {path}`"
    assert capsys.readouterr().out == path.read_text(encoding="utf-8")


def test_no_text_is_left_of_a_recipe_that_is_gone():
    assert {path.stem for path in GOLDEN.iterdir()} == {name.replace(":", ".") for name in recipes()}
