"""`mixdistill publish SHARDS --out DIR --name NAME`: the traces of prepared shards become a TFDS dataset."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="folder that `mixdistill prepare` made")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="TFDS data folder, for NAME/VERSION")
    parser.add_argument("--name", required=True, help="the dataset's name: small letters, digits, '_'")
    parser.add_argument("--version", default="1.0.0", help="the dataset's version (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Publishes and says where and how it is read; 0."""
    from mixdistill.traces.shards import Shards
    from mixdistill.traces.tfds_builder import SPLIT, publish

    shards = Shards.open(args.shards)
    traces = (shards[i].trace for i in range(len(shards)))
    folder = publish(traces, args.out, name=args.name, version=args.version)
    print(f"{len(shards)} traces in {folder}")
    print(f"read it with mixdistill prepare {folder}, or")
    print(f'tfds.builder_from_directory("{folder}").as_data_source("{SPLIT}")')
    return 0
