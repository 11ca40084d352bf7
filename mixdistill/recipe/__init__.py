"""Recipes: what a run is, as frozen dataclasses that plain functions return; their text, identity and typed changes."""

from mixdistill.recipe.guard import Alarm, Guard
from mixdistill.recipe.load import load
from mixdistill.recipe.path import set_all, set_path
from mixdistill.recipe.recipe import Recipe, Stage
from mixdistill.recipe.text import diff, fingerprint, show

__all__ = ["Alarm", "Guard", "Recipe", "Stage", "diff", "fingerprint", "load", "set_all", "set_path", "show"]
