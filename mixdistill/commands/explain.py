"""`mixdistill explain RECIPE`: what a train step computes, drawn from the functions' parameter names."""

import argparse
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixdistill.recipe import Recipe, Stage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="module:function or file.py:function")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change a setting first")


def run(args: argparse.Namespace) -> int:
    """Prints the explanation. Reads no shards, so it works before there are any."""
    from mixdistill.recipe import load, set_all

    print("\n".join(explain(set_all(load(args.recipe), args.set))))
    return 0


def explain(recipe: "Recipe") -> Iterator[str]:
    """Student, then stage by stage: budget, data, terms with gates, signals in order, vocabulary pass, memory."""
    from mixdistill.objective import explain as explain_objective

    yield from _student(recipe)
    yield f"budget: {_budget(recipe.budget)}; learning rate up to {recipe.optimizer.learning_rate:g}"
    if recipe.admission:
        yield f"admission, before the first train step: {recipe.admission}"
    for index, stage in enumerate(recipe.stages):
        source = stage.source
        places = source.rows * source.length
        yield ""
        yield f"stage {stage.name}: {_budget(stage.budget)}"
        folders = ", ".join(source.folders)
        yield f"  data: {source.rows} rows x {source.length} = {places:,} tokens a train step, from {folders}"
        yield f"  cost: {_cost(recipe, stage)}"
        if stage.branches:
            yield f"  branches: {stage.branches}, of {getattr(source, 'turns', None)} train steps each"
        if stage.verifier:
            yield f"  pilots are admitted by held_out/{stage.verifier}"
        if stage.teacher_gradients:
            yield f"  {stage.teacher_gradients}"
        yield f"  vocabulary pass here: {_backward(recipe, places)}"
        if stage.objective is None:
            yield "  objective: as in the stage before"
        else:
            yield from (f"  {line}" for line in explain_objective(recipe.objective_of(index)).splitlines())


def _student(recipe: "Recipe") -> Iterator[str]:
    import jax

    student = recipe.build_student()
    params = jax.eval_shape(student.init, jax.random.key(0))
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    copies = {"parameters": 1, "optimiser": 2, "gradient": 1}
    copies |= {"average": 1} if recipe.average else {}
    copies |= {"branches": 2} if any(stage.branches for stage in recipe.stages) else {}
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    yield f"student: {total:,} parameters, vocabulary {student.vocab_size:,}"
    yield "memory: " + ", ".join(f"{name} {n * size / 2**20:,.1f} MiB" for name, n in copies.items())
    for name, part in params.items():
        yield f"  {name}: {sum(leaf.size for leaf in jax.tree.leaves(part)):,}"


def _cost(recipe: "Recipe", stage: "Stage") -> str:
    """FLOPs of a train step whose rows are one trace each (packed rows cost less), by part, and of the stage."""
    from mixdistill.students.flops import forward_parts, learning_of

    source, student = stage.source, recipe.build_student()
    each = learning_of(student, source.length)
    times = source.rows * stage.budget.size if stage.budget.unit == "train_steps" else stage.budget.size / source.length
    parts = forward_parts(student.config, source.length) if student.config else {}
    shares = "".join(f", {name} {part / sum(parts.values()):.0%}" for name, part in parts.items())
    few = "" if stage.budget.unit == "train_steps" else ", prompts come on top"
    return f"at most {source.rows * each:.3g} FLOPs a train step{shares}; {times * each:.3g} in the stage{few}"


def _backward(recipe: "Recipe", places: int) -> str:
    """How this machine would go back through the vocabulary, on each of the devices that the recipe asks for."""
    import jax

    from mixdistill.errors import UserError
    from mixdistill.mesh import make_mesh
    from mixdistill.signals.vocabulary_choice import choose_backward

    try:
        sizes = make_mesh(recipe.mesh).shape
    except UserError:  # the recipe is for another machine: as if one device had it all
        sizes = {}
    parts = {
        name: math.prod(sizes.get(axis, 1) for axis in recipe.rules.mesh_axes(name)) for name in ("batch", "vocab")
    }
    tokens = places // recipe.num_microbatches // parts["batch"]
    columns = recipe.build_student().vocab_size // parts["vocab"]
    platform = jax.default_backend()
    backward, why = choose_backward(platform, tokens, columns)
    return f"backward {backward!r} on {platform} for {tokens:,} tokens x {columns:,} columns a device; {why}"


def _budget(budget) -> str:
    return f"{budget.size:,} {budget.unit.replace('_', ' ')}"
