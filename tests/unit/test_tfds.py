"""Traces published as a TFDS dataset come back whole; other TFDS datasets are read by their features."""

import json
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest

from mixdistill.cli import main
from mixdistill.errors import UserError
from mixdistill.traces.prepare import prepare_traces
from mixdistill.traces.readers import detect, read
from mixdistill.traces.shards import Shards
from mixdistill.traces.sources import find_files
from mixdistill.traces.tfds_builder import publish
from mixdistill.traces.tokenizer import word_level
from mixdistill.traces.trace import Step, Trace, Verdict

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # TFDS leaves files to the collector


def made(i: int) -> Trace:
    steps = (Step("a é\n", (-0.5, -0.25)), Step("b")) if i % 2 else (Step("only"),)
    return Trace(f"p{i}", "q", steps, "b", f"t{i % 3}", Verdict.CORRECT, "3", {"fold": "a", "sample": i})


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return publish(map(made, range(400)), tmp_path_factory.mktemp("tfds"), name="my_traces")


def test_round_trip_in_order(published):
    assert detect(published) == "mixdistill"
    back = list(read(published))
    assert [(t.problem_id, t.steps, t.teacher, t.verdict, t.reference) for t in back] == [
        (t.problem_id, t.steps, t.teacher, t.verdict, t.reference) for t in map(made, range(400))
    ]
    assert back[7].meta == {"fold": "a", "sample": 7, "source": "my_traces/1.0.0", "line": 8}


def test_tfds_reads_it(published):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(str(published)).as_data_source("train")
    assert len(source) == 400
    assert source[1]["steps"] == ["a é\n".encode(), b"b"]


def test_no_tensorflow_and_no_jax(published):
    code = f"""
import sys
from mixdistill.traces.readers import read
assert len(list(read({str(published)!r}))) == 400
print({{"tensorflow", "jax"}} & set(sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_publish_wants_a_free_name(published, tmp_path):
    with pytest.raises(UserError, match="exists"):
        publish([made(0)], published.parents[1], name="my_traces")
    for wrong in ({"name": "My-Traces"}, {"name": "x", "version": "1"}):
        with pytest.raises(UserError):
            publish([made(0)], tmp_path, **wrong)
    with pytest.raises(UserError, match="no trace"):
        publish([], tmp_path, name="x")
    assert not list(tmp_path.iterdir())


def as_tfrecord(folder, out):
    """The same dataset in the other format: frames of length, checksum, record, checksum."""
    from array_record.python.array_record_module import ArrayRecordReader

    shutil.copytree(folder, out)
    for path in out.glob("*.array_record-*"):
        reader = ArrayRecordReader(str(path))
        frames = [struct.pack("<Q4x", len(record)) + record + b"\0" * 4 for record in reader.read_all()]
        reader.close()
        path.with_name(path.name.replace("array_record", "tfrecord")).write_bytes(b"".join(frames))
        path.unlink()
    info = out / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord").replace("{FILEFORMAT}", "tfrecord"))
    return out


def test_tfrecord(published, tmp_path):
    folder = as_tfrecord(published, tmp_path / "my_traces")
    assert [t.problem_id for t in read(folder)] == [f"p{i}" for i in range(400)]
    (file,) = folder.glob("*.tfrecord-*")
    file.write_bytes(file.read_bytes()[:-7])
    *good, bad = read(folder)
    assert len(good) == 399
    assert (bad.line, bad.reason) == (400, "the TFRecord file is cut short")


def test_features_of_foreign_code_are_not_loaded(published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "d")
    features = json.loads((folder / "features.json").read_text())
    features["pythonClassName"] = "antigravity.Feature"
    (folder / "features.json").write_text(json.dumps(features))
    (bad,) = read(folder)
    assert bad.reason == "a TFDS dataset with features of its own code: not read"
    assert "antigravity" not in sys.modules


def test_damaged_description_is_a_bad_row(published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "d")
    (folder / "dataset_info.json").write_text("{")
    (bad,) = read(folder)
    assert bad.reason == "damaged TFDS dataset"


def test_any_dataset_by_its_features(tmp_path):
    import tensorflow_datasets as tfds

    class Chats(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = None

        def _info(self):
            turn = {"from": tfds.features.Text(), "value": tfds.features.Text()}
            kinds = {
                "conversations": tfds.features.Sequence(turn),
                "kind": tfds.features.ClassLabel(names=["easy", "hard"]),
                "turns": tfds.features.Dataset({"n": np.int32}),
                "scores": tfds.features.Sequence(np.float32),
                "answer": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(kinds))

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples(2), "train": self._generate_examples(3)}

        def _generate_examples(self, count):
            for i in range(count):
                turns = [{"from": "human", "value": f"{i}+1?"}, {"from": "gpt", "value": f"It is {i + 1}."}]
                row = {"conversations": turns, "kind": "hard", "turns": [{"n": 1}], "scores": [0.5, 1.0]}
                yield i, row | {"answer": str(i + 1)}

    tfds.disable_progress_bar()
    builder = Chats(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    (file,) = find_files([tmp_path])
    assert file.name == f"{tmp_path.name}/chats/1.0.0"
    mapping = {"split": "split", "fold": "kind", "sample": "scores"}
    traces = list(read(file.path, mapping=mapping))
    assert sorted(t.prompt for t in traces) == ["0+1?", "0+1?", "1+1?", "1+1?", "2+1?"]
    assert [t.meta["split"] for t in traces] == ["test"] * 2 + ["train"] * 3
    assert {(t.teacher, t.meta["fold"], tuple(t.meta["sample"])) for t in traces} == {("chats", "hard", (0.5, 1.0))}
    assert all(t.text == f"It is {t.reference}." for t in traces)


def test_command(tmp_path, capsys):
    traces = [Trace(f"p{i}", "a", (Step("b "), Step("c")), "c", "t", Verdict.WRONG, "b") for i in range(5)]
    prepare_traces(traces, tmp_path / "s", tokenizer=word_level(["a", "b", "c"]))
    command = ["publish", str(tmp_path / "s"), "--out", str(tmp_path / "d"), "--name", "abc"]
    assert main(command) == 0
    assert main(command) == 2
    assert "exists" in capsys.readouterr().err
    args = "--out", str(tmp_path / "s2"), "--tokenizer", str(tmp_path / "s" / "tokenizer.json"), "--workers", "1"
    assert main(["prepare", str(tmp_path / "d"), *args]) == 0
    one, two = Shards.open(tmp_path / "s"), Shards.open(tmp_path / "s2")
    assert [t.trace.steps for t in map(one.__getitem__, range(5))] == [
        t.trace.steps for t in map(two.__getitem__, range(5))
    ]
    assert two.manifest["teachers"]["t"]["wrong"] == 5
