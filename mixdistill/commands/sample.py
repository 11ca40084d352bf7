"""`mixdistill sample WORKDIR --prompt TEXT`: what a trained student answers."""

import argparse
import sys

from mixdistill.commands import trained
from mixdistill.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    trained.add_arguments(parser)
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="as in the traces; may be repeated (default: lines of stdin)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the most likely token (default)")
    parser.add_argument("--top-p", type=float, help="keep the most likely tokens up to this probability")
    parser.add_argument("--num", type=int, default=1, help="completions of each prompt (default: %(default)s)")
    parser.add_argument("--max-new", type=int, default=512, help="tokens of a completion (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Prints one completion after another, a blank line between prompts; 0."""
    from mixdistill.generation.policy import Policy
    from mixdistill.generation.sampler import complete
    from mixdistill.traces.encode import encode_prompt

    if args.num < 1:
        raise UserError(f"--num {args.num} must be at least 1")
    policy = Policy(args.temperature, top_p=args.top_p)
    found = trained.open_student(args)
    prompts = args.prompt or [line.rstrip("\n") for line in sys.stdin]
    encoded = [encode_prompt(found.tokenizer, prompt, found.template) for prompt in prompts for _ in range(args.num)]
    limits = {"max_new": args.max_new, "eos_id": found.tokenizer.eos_id}
    made = complete(found.student, found.params, encoded, **limits, policy=policy, seed=args.seed)
    for number, completion in enumerate(made):
        if number and number % args.num == 0:
            print()
        print(found.tokenizer.decode(completion.tokens.tolist()) + ("" if completion.ended else " ..."))
    return 0
