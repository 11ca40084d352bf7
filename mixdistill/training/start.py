"""A run that starts from published weights."""

import dataclasses
from pathlib import Path

import jax
from jax.sharding import Mesh

from mixdistill.errors import UserError
from mixdistill.mesh import shardings
from mixdistill.recipe import Recipe
from mixdistill.students.adapters import ADAPTERS, BASE, adapted, fresh_adapters
from mixdistill.students.config import DecoderConfig
from mixdistill.students.student import Params
from mixdistill.students.weights import check_folder, load_params, read_config

# What may differ from the folder's configuration: how the student runs, not what it computes.
OF_THE_RUN = ("dtype", "param_dtype", "remat", "unroll", "embed_std", "attention")


def check_start(recipe: Recipe) -> None:
    """Raises `UserError` if the weights that the recipe starts from are not of its student."""
    folder, config = Path(str(recipe.start)), _decoder(recipe)
    published = read_config(folder)
    ours, theirs = dataclasses.asdict(config), dataclasses.asdict(published)
    differ = [name for name in ours if name not in OF_THE_RUN and ours[name] != theirs[name]]
    if differ:
        said = "; ".join(f"{name} is {ours[name]!r}, there {theirs[name]!r}" for name in differ)
        raise UserError(f"the recipe's student is not that of {folder}: {said}")
    check_folder(folder, published)


def _decoder(recipe: Recipe) -> DecoderConfig:
    assert isinstance(recipe.student, DecoderConfig)  # a Recipe with a start has no other
    return recipe.student


def starting_params(recipe: Recipe, mesh: Mesh) -> Params:
    """The weights, every device reading its own part, with fresh adapters if the recipe has any."""
    config, lora = _decoder(recipe), recipe.adapters
    if lora is not None:
        config = dataclasses.replace(config, param_dtype=lora.base_dtype)
    base = load_params(str(recipe.start), config, mesh=mesh, rules=recipe.rules)
    if lora is None:
        return base
    matrices = adapted(recipe.build_base().axes, lora)
    where = shardings(mesh, recipe.rules, recipe.build_student().axes[ADAPTERS])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), base)
    make = jax.jit(lambda key: fresh_adapters(shapes, matrices, lora, key), out_shardings=where)
    return {BASE: base, ADAPTERS: make(jax.random.key(recipe.seed))}
