"""`mixdistill doctor`: is the installation whole, are these shards sound, can this run be resumed? One line a check."""

import argparse
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from mixdistill.errors import UserError

REQUIRED = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "array_record",
    "tensorflow-datasets",
    "tokenizers",
)
OPTIONAL = {"math-verify": "verify: LaTeX answers", "matplotlib": "report: plots"}
LOW_DISK_BYTES = 2 * 2**30  # a tiny run with its checkpoints and compiled programs stays under this

Line = tuple[str, bool | None, str]  # what was checked, passed (None: for information), what was found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="shards or run folders to check in full")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="of a run: set damaged checkpoints aside, remove unfinished ones and broken ends of its files",
    )


def run(args: argparse.Namespace) -> int:
    """Prints one line a check; 0 when all passed, 1 otherwise."""
    passed = True
    for name, ok, found in _checks(args.paths, args.repair):
        passed &= ok is not False
        print(f"{ {True: 'ok  ', False: 'FAIL', None: 'info'}[ok] }  {name}: {found}", flush=True)
    return 0 if passed else 1


def _checks(paths: list[Path], repair: bool) -> Iterator[Line]:
    yield "python", sys.version_info >= (3, 12), sys.version.split()[0]
    yield from (_package(name) for name in REQUIRED)
    yield from (_extra(name, purpose) for name, purpose in OPTIONAL.items())
    yield _guarded("devices", _devices)
    yield _guarded("compile", _compile)
    yield _disk(Path(tempfile.gettempdir()))
    for path in paths:
        if (path / "recipe.txt").is_file():
            yield from _workdir(path, repair)
        else:
            yield _guarded(str(path), lambda path=path: _folder(path))


def _guarded(name: str, check: Callable[[], str]) -> Line:
    """A check that raises has failed; doctor goes on to the next."""
    try:
        return name, True, check()
    except Exception as error:  # noqa: BLE001 - the whole point is to report whatever is broken
        return name, False, f"{type(error).__name__}: {error}"


def _package(name: str) -> Line:
    try:
        return name, True, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name, False, "not installed; run `pip install mixdistill` again"


def _extra(name: str, purpose: str) -> Line:
    try:
        return name, None, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name, None, f"not installed (extra for {purpose})"


def _devices() -> str:
    import jax

    kinds = [device.device_kind for device in jax.devices()]
    process = f"process {jax.process_index() + 1} of {jax.process_count()}"
    return f"{len(kinds)} x {kinds[0]} on {jax.default_backend()}, {process}"


def _compile() -> str:
    import jax
    import jax.numpy as jnp

    total = jax.jit(lambda x: (x @ x).sum())(jnp.ones((64, 64)))
    if float(total) != 64.0**3:
        raise ArithmeticError(f"64 x 64 product summed to {float(total)}, not {64.0**3}")
    return "a jitted product is right"


def _disk(folder: Path) -> Line:
    free = shutil.disk_usage(folder).free
    return f"disk {folder}", free > LOW_DISK_BYTES, f"{free / 2**30:.0f} GiB free"


def _folder(path: Path) -> str:
    if (path / "manifest.json").is_file():
        return _shards(path)
    raise UserError(f"neither shards (manifest.json) nor a run (recipe.txt) in {path}")


def _shards(path: Path) -> str:
    """Checks every file and every record. Raises `UserError` naming what is damaged: first the files, by checksum, then
    traces one by one, which a damaged file may still give."""
    from mixdistill.traces import manifest as manifests
    from mixdistill.traces.shards import Shards

    shards = Shards.open(path, verify="none")
    damaged = manifests.damaged(path, shards.manifest)
    readable = all(manifests.RECORDS in line for line in damaged)
    broken = [index for index in range(len(shards)) if not shards.whole(index)] if readable else []
    if damaged or broken:
        listed = ", ".join(map(str, broken[:10])) + (", ..." if len(broken) > 10 else "")
        traces = f"; {len(broken)} of {len(shards)} traces cannot be read: {listed}" if broken else ""
        raise UserError(
            f"{'; '.join(damaged) or 'a record'}{traces}. Copy the files again, or prepare the shards again"
        )
    return f"{len(shards)} traces of {len(shards.teachers)} teachers, every checksum and record is good"


def _workdir(path: Path, repair: bool) -> Iterator[Line]:
    """Checkpoints one by one, then the files that grow."""
    if not os.access(path, os.W_OK):
        yield str(path), False, "not writable, so the run cannot go on here"
        return
    from mixdistill.training import care

    found = False
    for train_step, problem in care.checkpoints(path, repair=repair):
        found |= not problem
        name = f"{path} checkpoint {train_step}"
        yield name, not problem or repair, problem or "every array has its checksum"
        if problem and repair:
            yield name, None, "set aside in damaged/"
    for name, problem in care.files(path, repair=repair):
        yield f"{path} {name}", repair, f"{problem}{', repaired' if repair else '; --repair cuts it'}"
    steps = care.whole(path)
    if found and steps:
        yield str(path), True, f"training would resume after train_step {steps[-1]}"
    else:
        yield str(path), not steps, "no checkpoint yet; training would start from train_step 0"
