"""`mixdistill tokenizer train SOURCES... --out tokenizer.json`, and `mixdistill tokenizer show PATH`."""

import argparse
import os
import sys
from pathlib import Path

from mixdistill.commands import sources
from mixdistill.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `train` and `show`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    train = actions.add_parser("train", help="a byte-level BPE on the text of traces")
    sources.add_arguments(train)
    train.add_argument("--vocab-size", type=int, default=8192, help="tokens, at least 258 (default: %(default)s)")
    train.add_argument("--out", type=Path, required=True, metavar="FILE", help="tokenizer.json to write")
    train.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    train.set_defaults(act=_train)
    show = actions.add_parser("show", help="what a tokenizer is, and what it makes of a text")
    show.add_argument("path", type=Path, metavar="PATH", help="tokenizer.json, its folder, or shards")
    show.add_argument("--eos", metavar="TOKEN", help="the end token, where it is not found")
    show.add_argument("--text", help="a text to encode")
    show.set_defaults(act=_show)


def run(args: argparse.Namespace) -> int:
    """Trains or shows; 0."""
    return args.act(args)


def _train(args: argparse.Namespace) -> int:
    from mixdistill.traces.prepare import read_texts
    from mixdistill.traces.tokenizer import train_bpe

    if args.out.suffix != ".json":
        raise UserError(f"--out {args.out} must end in .json; for example tokenizer.json")
    if args.out.exists() and not args.overwrite:
        raise UserError(f"{args.out} exists already; --overwrite replaces it")
    with sources.progress() as show:
        tokenizer = train_bpe(read_texts(args.sources, read_as=sources.read_as(args), progress=show), args.vocab_size)
    partial = args.out.with_name(f".{os.getpid()}.partial-{args.out.name}")
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(partial)
        partial.replace(args.out)
    except OSError as error:
        raise UserError(f"cannot write {args.out}: {error.strerror}; choose another --out") from None
    finally:
        partial.unlink(missing_ok=True)
    if tokenizer.vocab_size < args.vocab_size:
        print(f"the text has no more than {tokenizer.vocab_size} tokens in it", file=sys.stderr)
    print(f"{tokenizer.vocab_size} tokens, {tokenizer.hash[:12]}: {args.out}")
    return 0


def _show(args: argparse.Namespace) -> int:
    from mixdistill.traces.tokenizer import Tokenizer, content_ids

    tokenizer = Tokenizer.load(args.path, eos=args.eos)
    print(f"hash        {tokenizer.hash}")
    print(f"vocabulary  {tokenizer.vocab_size} tokens, {int(content_ids(tokenizer).sum())} of them content")
    print(f"control     end {tokenizer.eos!r} ({tokenizer.eos_id}), padding {tokenizer.pad!r} ({tokenizer.pad_id})")
    print(f"template    {'yes' if tokenizer.template else 'no'}")
    if args.text is not None:
        ids = tokenizer.encode(args.text)
        print(f"{len(ids)} tokens   {' '.join(f'{i}:{tokenizer.inner.id_to_token(i)}' for i in ids)}")
    return 0
