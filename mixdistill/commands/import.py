"""`mixdistill import HF_FOLDER`: is this published checkpoint one that a recipe can start from, and how?"""

import argparse
import functools
import shutil
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("folder", type=Path, metavar="HF_FOLDER", help="with config.json and safetensors")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="write a checked copy: weights and tokenizer alone")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the copy")


def run(args: argparse.Namespace) -> int:
    """Checks every name, shape and kind of number, and prints the lines of a recipe; 0."""
    from mixdistill.students.weights import check_folder, copy_hf, read_config
    from mixdistill.traces.tokenizer import Tokenizer

    config = read_config(args.folder)
    files = check_folder(args.folder, config)
    has_tokenizer = (args.folder / "tokenizer.json").is_file()
    tokenizer = Tokenizer.load(args.folder) if has_tokenizer else None
    start = args.folder
    if args.to is not None:
        copy_hf(args.folder, args.to, args.dtype, beside=functools.partial(_copy_tokenizer, args.folder))
        start = args.to
    print(
        f"{config.num_params:,} parameters in {len(files)} tensors of {len(set(files.values()))} files, all as stated"
    )
    if tokenizer is None:
        print("no tokenizer.json: shards need the one that the model was trained with")
    else:
        print(f"tokenizer: {tokenizer.vocab_size:,} tokens in a vocabulary of {config.vocab_size:,}")
    print("in a recipe:")
    print(f"    start={str(start)!r},")
    print(f'    student=dataclasses.replace(read_config({str(start)!r}), dtype="bfloat16", remat="dots"),')
    print("with `from mixdistill.students.weights import read_config`")
    return 0


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
