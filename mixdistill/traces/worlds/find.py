"""The built-in worlds by name, so that a recipe's text can say which one is meant."""

import importlib

from mixdistill.errors import unknown
from mixdistill.traces.worlds.world import World

WORLDS = {"chain": "CHAIN", "walk": "WALK", "reach": "REACH", "countdown": "COUNTDOWN"}


def find_world(name: str) -> World:
    """A built-in world. Raises `UserError` naming the nearest."""
    if name not in WORLDS:
        raise unknown("world", name, WORLDS)
    return getattr(importlib.import_module(f"mixdistill.traces.worlds.{name}"), WORLDS[name])
