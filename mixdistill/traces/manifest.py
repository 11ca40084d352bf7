"""The manifest beside the shards: what is inside, by whom, under which tokenizer, with a checksum of every file."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from mixdistill.errors import UserError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
OWN = "sha256"  # of the manifest without this line
RECORDS = ".array_record"  # the files that may be large

FIELDS = ("tokenizer", "vocab_size", "num_traces", "num_tokens", "teachers", "folds", "verdicts", "shards", "files")

Verify = Literal["fast", "full", "none"]


def checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """`{name: {bytes, sha256}}` of every file of `folder` but the manifest, by name."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    return {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files}


def fingerprint(manifest: dict[str, Any]) -> str:
    """sha256 over the files' checksums: equal for equal contents, wherever the folder lies."""
    lines = "".join(f"{name} {file['sha256']}\n" for name, file in sorted(manifest["files"].items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def write(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes manifest.json, readable by eye, with a checksum of itself."""
    manifest = {**manifest, OWN: _digest(manifest)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`. Raises `UserError` when there is none, it is of another version or was changed."""
    if not folder.is_dir():
        raise UserError(
            f"no shards at {folder}: no such folder; `mixdistill prepare SOURCES... --out {folder}` makes it"
        )
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"no shards at {folder}: it holds no {MANIFEST}; give the --out folder of `mixdistill prepare`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        schema = manifest.get("schema")
    except (ValueError, RecursionError, AttributeError) as error:
        raise UserError(f"{path} is not a manifest ({error}); prepare the shards again") from None
    if schema != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema {schema!r}; this version of mixdistill reads {SCHEMA_VERSION}: prepare the shards again"
        )
    missing = [name for name in FIELDS if name not in manifest]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; prepare the shards again")
    if manifest.pop(OWN, None) not in (None, _digest(manifest)):  # None: of a version that wrote none
        raise UserError(f"{path} was changed (it has another checksum than its own); prepare the shards again")
    _check(path, manifest)
    return manifest


def _check(path: Path, manifest: dict[str, Any]) -> None:
    """Types that everything else relies on, and names of files that stand in this folder. Raises `UserError`."""
    kinds = {"tokenizer": str, "folds": list, "verdicts": list}
    kinds |= dict.fromkeys(("num_traces", "vocab_size"), int) | dict.fromkeys(("teachers", "shards", "files"), dict)
    wrong = [name for name, kind in kinds.items() if type(manifest[name]) is not kind]
    if wrong:
        raise UserError(f"{path}: {wrong[0]} is of another kind than a manifest's; prepare the shards again")
    for name, file in manifest["files"].items():
        if Path(name).name != name or name in ("", ".", ".."):
            raise UserError(f"{path} names {name!r}, which is not a file of this folder; prepare the shards again")
        if not (isinstance(file, dict) and type(file.get("bytes")) is int and isinstance(file.get("sha256"), str)):
            raise UserError(f"{path} has no size and checksum of {name}; prepare the shards again")
    counts = list(manifest["shards"].values())
    if any(type(count) is not int for count in counts) or sum(counts) != manifest["num_traces"]:
        raise UserError(f"{path} contradicts itself: its shards hold {counts} traces; prepare the shards again")
    if strangers := sorted(set(manifest["shards"]) - set(manifest["files"])):
        raise UserError(f"{path} has no checksum of {strangers[0]}; prepare the shards again")


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def verify(folder: Path, manifest: dict[str, Any], how: Verify) -> None:
    """Compares the files with the manifest: their checksums ("full"), of record files only sizes ("fast"). Raises
    `UserError`."""
    if how not in ("fast", "full", "none"):
        raise UserError(f"unknown verify {how!r}; known: fast (sizes), full (checksums), none")
    for name, file in manifest["files"].items() if how != "none" else ():
        if problem := _problem(folder / name, file, how):
            raise UserError(f"shards {folder}: {name} {problem}; copy it again or prepare the shards again")


def damaged(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """What is wrong with each file that is not as the manifest says."""
    found = ((name, _problem(folder / name, file, "full")) for name, file in manifest["files"].items())
    return [f"{name} {problem}" for name, problem in found if problem]


def _problem(path: Path, file: dict[str, Any], how: Verify) -> str:
    """ "" if the file is as the manifest says. Small files are read in full: planning needs every byte of them."""
    if not path.is_file():
        return "is missing"
    if (size := path.stat().st_size) != file["bytes"]:
        return f"has {size} bytes, the manifest says {file['bytes']}"
    if (how == "full" or path.suffix != RECORDS) and _sha256(path) != file["sha256"]:
        return "was changed (another checksum than the manifest's)"
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
