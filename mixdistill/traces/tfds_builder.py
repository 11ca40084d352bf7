"""Publishing traces as a TFDS dataset (`array_record`, no tensorflow): anything that reads TFDS reads it, we too.

publish(traces, "out", name="my_traces")
tfds.builder_from_directory("out/my_traces/1.0.0").as_data_source("train")[0]
"""

import contextlib
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mixdistill.errors import UserError
from mixdistill.traces.trace import SCHEMA_VERSION, Trace

NAME = re.compile(r"[a-z][a-z0-9_]*")
VERSION = re.compile(r"\d+\.\d+\.\d+")
SPLIT = "train"  # folds and splits of origin stand in each trace's meta
TEXTS = ("problem_id", "prompt", "answer", "teacher", "reference", "meta")


def publish(traces: Iterable[Trace], out: Path | str, *, name: str, version: str = "1.0.0") -> Path:
    """Writes `out/name/version`, example i the i-th trace, and returns that folder. Log-probabilities become float32.
    Raises `UserError` for a name or version that TFDS does not take, a folder that exists, or no traces."""
    if not NAME.fullmatch(name):
        raise UserError(f"name {name!r}: TFDS takes small letters, digits and '_', a letter first")
    if not VERSION.fullmatch(version):
        raise UserError(f"version {version!r} is not MAJOR.MINOR.PATCH, for example 1.0.0")
    folder = Path(out) / name / version
    if folder.exists():
        raise UserError(f"{folder} exists; give another --version or --name")
    rest = iter(traces)
    first = next(rest, None)
    if first is None:
        raise UserError("no trace to publish")
    _build(first, rest, Path(out), name, version)
    return folder


def _build(first: Trace, rest: Iterator[Trace], out: Path, name: str, version: str) -> None:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()

    class TraceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """The builder that TFDS wants as a class."""

        VERSION = tfds.core.Version(version)
        url_infos = None  # nothing is downloaded; TFDS 4.9.10 looks for checksums with a package that it lacks

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict(_features(tfds.features))
            # Without shuffling example i is trace i.
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {SPLIT: self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            return enumerate(map(_example, itertools.chain([first], rest)))

    TraceBuilder.name = name
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of downloading, and there is none
        TraceBuilder(data_dir=str(out), file_format="array_record").download_and_prepare()


def _features(kinds: Any) -> dict[str, Any]:
    """`own.drafts` reads this layout back."""
    return {
        "schema": np.int32,
        **{field: kinds.Text() for field in TEXTS},
        "verdict": kinds.Text(),
        "steps": kinds.Sequence(kinds.Text()),
        "token_logprobs": kinds.Sequence(np.float32),  # of all steps, in nats
        "logprob_counts": kinds.Sequence(np.int32),  # how many of them each step has
    }


def _example(trace: Trace) -> dict[str, Any]:
    row = trace.to_json()
    return {field: row[field] for field in TEXTS} | {
        "schema": SCHEMA_VERSION,
        "meta": json.dumps(row["meta"], ensure_ascii=False),
        "verdict": row["verdict"],
        "steps": [step.text for step in trace.steps],
        "token_logprobs": [value for step in trace.steps for value in step.token_logprobs],
        "logprob_counts": [len(step.token_logprobs) for step in trace.steps],
    }
