"""`mixdistill eval WORKDIR`: a trained student on what it was not trained on.

On the shards of its run: negative log-likelihood on the folds that were not trained on, teacher by teacher, and exact
answers to their problems. With --world: exact answers to a built-in world's problems.
"""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixdistill.commands import trained
from mixdistill.errors import UserError

if TYPE_CHECKING:
    from mixdistill.evaluation.tasks import Task
    from mixdistill.traces.shards import Shards
    from mixdistill.training.workdir import Trained


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    trained.add_arguments(parser)
    trained.add_tag(parser)
    parser.add_argument("--shards", type=Path, help="other shards than the run's")
    parser.add_argument("--fold", action="append", help="may be repeated (default: those not trained on)")
    parser.add_argument("--world", help="a built-in world in place of shards: chain, walk, reach, countdown")
    parser.add_argument("--split", default="test", help="of the world (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the world's problems (default: %(default)s)")
    parser.add_argument("--count", type=int, default=500, help="problems at most (default: %(default)s)")
    parser.add_argument("--max-new", type=int, default=512, help="tokens of a completion (default: %(default)s)")
    parser.add_argument("--no-answers", action="store_true", help="the likelihood alone: no decoding, no grading")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the numbers as JSON, too")


def run(args: argparse.Namespace) -> int:
    """Prints the numbers; 0."""
    if args.count < 1:
        raise UserError(f"--count {args.count} must be at least 1")
    found = trained.open_student(args)
    print(f"{args.workdir}: train_step {found.train_step}, {found.tokens:,} tokens seen")
    result = _on_world(args, found) if args.world else _on_shards(args, found)
    if args.out:
        about = {"train_step": found.train_step, "tokens": found.tokens, "fingerprint": found.identity.fingerprint}
        _write(args.out, {**about, **result})
    return 0


def _on_world(args: argparse.Namespace, found: "Trained") -> dict[str, Any]:
    from mixdistill.evaluation.tasks import world_task
    from mixdistill.traces.worlds.find import find_world

    world = find_world(args.world)
    if strange := sorted(set(world.words) - set(found.tokenizer.inner.get_vocab())):
        raise UserError(
            f"the student's tokenizer has no {strange[0]!r}, a word of world {args.world}; it learned others"
        )
    return {"answers": _answers(args, found, world_task(world, args.split, args.count, seed=args.seed))}


def _on_shards(args: argparse.Namespace, found: "Trained") -> dict[str, Any]:
    from mixdistill.evaluation.tasks import shards_task
    from mixdistill.traces.shards import Shards

    shards = Shards.open(args.shards or _trained_shards(found), tokenizer_hash=found.identity.tokenizer)
    folds = tuple(args.fold) if args.fold else _untouched(args, found, shards)
    result: dict[str, Any] = {"shards": str(shards.path), "folds": folds, "held_out": _held_out(found, shards, folds)}
    if not args.no_answers:
        result["answers"] = _answers(args, found, shards_task(shards, folds, args.count))
    return result


def _answers(args: argparse.Namespace, found: "Trained", task: "Task") -> dict[str, Any]:
    from mixdistill.evaluation.answers import answer
    from mixdistill.evaluation.summary import lines, summarise

    made = answer(
        found.student,
        found.params,
        task,
        found.tokenizer,
        template=found.template,
        max_new=args.max_new,
        before=trained.tag_of(args, found),
    )
    summary = summarise(made)
    print("\n".join(lines(task.name, summary)))
    return {"task": task.name, **summary.to_json()}


def _trained_shards(found: "Trained") -> str:
    from mixdistill.recipe.read import read_value

    shards = read_value(found.identity.recipe, "stages.0.source.shards")
    return shards if isinstance(shards, str) else shards[0]


def _untouched(args: argparse.Namespace, found: "Trained", shards: "Shards") -> tuple[str, ...]:
    """The folds that no stage was trained on."""
    from mixdistill.recipe.read import read_value, settings

    text = found.identity.recipe
    stages = [path.removesuffix(".source.folds") for path in settings(text) if path.endswith(".source.folds")]
    if args.shards and str(args.shards) != _trained_shards(found):
        return shards.folds
    trained_on = [read_value(text, f"{stage}.source.folds") for stage in stages]
    left = set(shards.folds).difference(*(shards.folds if folds is None else folds for folds in trained_on))
    if not left:
        raise UserError(
            f"the run was trained on every fold of {shards.path} ({', '.join(map(repr, shards.folds))}); name others "
            "with --shards, a --fold if you mean it, or a --world"
        )
    return tuple(sorted(left))


def _held_out(found: "Trained", shards: "Shards", folds: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """{teacher: nll and content_nll in nats a token, tokens}."""
    import jax
    import jax.numpy as jnp

    from mixdistill.data.corpus import open_corpus
    from mixdistill.data.mixture import Mixture
    from mixdistill.evaluation.held_out import held_out, one_pass
    from mixdistill.losses import cross_entropy
    from mixdistill.objective import Objective, Term
    from mixdistill.recipe.read import read_value
    from mixdistill.training.state import TrainState
    from mixdistill.training.step import make_eval_step

    rows, length = (read_value(found.identity.recipe, f"stages.0.source.{name}") for name in ("rows", "length"))
    corpus = open_corpus(Mixture(shards=str(shards.path), rows=rows, length=length, folds=folds, too_long="truncate"))
    objective = Objective({"nll": Term(cross_entropy)}).with_teachers(corpus.teachers)
    state = TrainState(jnp.int32(found.train_step), found.params, (), {})
    step = jax.jit(make_eval_step(found.student, objective))
    tallies = held_out(step, state, one_pass(corpus, rows, length), objective)
    return _teachers(corpus.teachers, tallies)


def _teachers(teachers: tuple[str, ...], tallies) -> dict[str, dict[str, Any]]:
    from mixdistill.training.hooks import means

    numbers, table = means(tallies), {}
    print(f"{'held-out NLL, nats':24} {'all':>8} {'content':>8} {'tokens':>12}")
    for k, name in enumerate(teachers):
        nll, content = (float(numbers[f"teacher/{kind}"][k]) for kind in ("nll", "content_nll"))
        tokens = int(tallies["teacher/nll"].weight[k])
        table[name] = {"nll": _none(nll), "content_nll": _none(content), "tokens": tokens}
        print(f"  {name:22} {nll:8.4f} {content:8.4f} {tokens:12,}")
    return table


def _none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _write(path: Path, result: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); choose another --out") from None
