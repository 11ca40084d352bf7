"""`mixdistill sample WORKDIR --prompt TEXT`: what a trained student answers."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mixdistill.commands import trained
from mixdistill.errors import UserError

if TYPE_CHECKING:
    from mixdistill.generation.sampler import Generated
    from mixdistill.generation.voting import Voting
    from mixdistill.training.workdir import Trained


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    trained.add_arguments(parser)
    trained.add_tag(parser)
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="as in the traces; may be repeated (default: lines of stdin)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the most likely token (default)")
    parser.add_argument("--top-k", type=int, help="keep so many of the most likely tokens")
    parser.add_argument("--top-p", type=float, help="keep the most likely tokens up to this probability")
    parser.add_argument("--min-p", type=float, help="keep tokens of at least this share of the largest probability")
    parser.add_argument("--num", type=int, default=1, help="completions of each prompt (default: %(default)s)")
    parser.add_argument("--max-new", type=int, default=512, help="tokens of a completion (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    vote = parser.add_argument_group("confident voting (DeepConf): one answer a prompt")
    vote.add_argument(
        "--vote", type=int, metavar="N", help="of at most N completions; unsure ones are stopped early and do not count"
    )
    vote.add_argument("--warmup", type=int, default=16, help="completions that nothing stops (default: %(default)s)")
    vote.add_argument("--window", type=int, default=2048, help="tokens of a confidence mean (default: %(default)s)")
    vote.add_argument(
        "--keep", type=float, default=90.0, help="percent of the warm-up that live (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Prints one completion after another, a blank line between prompts, or one answer a prompt; 0."""
    from mixdistill.generation.policy import Policy
    from mixdistill.traces.encode import encode_prompt

    if args.num < 1:
        raise UserError(f"--num {args.num} must be at least 1")
    policy = Policy(args.temperature, args.top_k, args.top_p, args.min_p)
    if args.vote is not None and (args.temperature == 0 or args.num > 1):
        raise UserError("--vote draws different completions of each prompt: give a --temperature above 0, and no --num")
    voting = None if args.vote is None else _voting(args)  # refused before anything is read
    found = trained.open_student(args)
    before = trained.tag_of(args, found)
    prompts = [
        [*before, *encode_prompt(found.tokenizer, prompt, found.template)]
        for prompt in args.prompt or [line.rstrip("\n") for line in sys.stdin]
    ]
    eos_id = found.tokenizer.eos_id
    settings = {"max_new": args.max_new, "eos_id": eos_id, "policy": policy, "seed": args.seed}
    if voting is None:
        _complete(args, found, prompts, settings)
    else:
        _vote(voting, found, prompts, settings)
    return 0


def _voting(args: argparse.Namespace) -> "Voting":
    from mixdistill.generation.voting import Voting

    return Voting(min(args.warmup, args.vote), args.vote, window=args.window, keep=args.keep)


def _complete(
    args: argparse.Namespace, found: "Trained", prompts: Sequence[Sequence[int]], settings: dict[str, Any]
) -> None:
    from mixdistill.generation.sampler import complete

    made = complete(found.student, found.params, [p for p in prompts for _ in range(args.num)], **settings)
    for number, completion in enumerate(made):
        if number and number % args.num == 0:
            print()
        print(_text(found, completion) + ("" if completion.ended else " ..."))


def _vote(voting: "Voting", found: "Trained", prompts: Sequence[Sequence[int]], settings: dict[str, Any]) -> None:
    from mixdistill.generation.voting import sampler_of, vote
    from mixdistill.traces.grade_extract import extract

    for prompt in prompts:
        sample = sampler_of(found.student, found.params, prompt, **settings)
        said = vote(sample, lambda one: extract(_text(found, one)) or None, voting)
        head = "no answer  (no" if said.answer is None else f"{said.answer}  ({said.share:.2f} of the"
        print(
            f"{head} votes, {said.num_completions} completions, {said.num_stopped} stopped early; "
            f"{said.tokens:,} tokens, about {said.saved:,.0f} saved)"
        )


def _text(found: "Trained", completion: "Generated") -> str:
    return found.tokenizer.decode(completion.tokens.tolist())
