import concurrent.futures
import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixdistill.errors import UserError
from mixdistill.traces import record
from mixdistill.traces.record import EncodedTrace
from mixdistill.traces.shard_index import MAX_FOLDS, Quarantined
from mixdistill.traces.shard_writer import ShardWriter
from mixdistill.traces.shards import Shards, quarantined, write_shards
from mixdistill.traces.tokenizer import word_level
from mixdistill.traces.trace import Step, Trace, Verdict

TOKENIZER = word_level(["a", "b", "c"])


def encoded(i: int, *, logprobs: bool = False, **meta) -> EncodedTrace:
    """Trace i: i + 1 steps of one token, teachers t0 and t1 in turn, three problems, every verdict."""
    steps = tuple(Step("b ", (-0.5,) if logprobs else ()) for _ in range(i + 1))
    verdict = list(Verdict)[i % 4]
    trace = Trace(f"p{i % 3}", "a", steps, "b", f"t{1 - i % 2}", verdict, "b", {"fold": "ab"[i % 2], **meta})
    tokens = np.array([3, *[4] * (i + 1), 1], np.int32)
    step_id = np.array([0, *range(1, i + 2), i + 1], np.int32)
    values = np.float32([np.nan, *[-0.5] * (i + 1), np.nan]) if logprobs else None
    return EncodedTrace(tokens, step_id, 1, values, trace, (1, 2))


def assert_equal(one: EncodedTrace, other: EncodedTrace) -> None:
    np.testing.assert_equal(one._asdict(), other._asdict())
    assert one.tokens.dtype == one.step_id.dtype == np.int32


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "shards"
    bad = [Quarantined("x.jsonl", 7, "empty prompt", "t0", "…"), Quarantined("x.jsonl", 8, "not JSON")]
    write_shards((encoded(i, logprobs=i % 2 == 0) for i in range(12)), out, tokenizer=TOKENIZER, quarantine=bad)
    return out


@given(st.text(), st.booleans(), st.integers(0, 5))
@settings(max_examples=50)
def test_record_round_trip(text, logprobs, i):
    try:
        text.encode()
    except UnicodeEncodeError:
        text = "a"
    one = encoded(i, logprobs=logprobs, note=text)
    data = record.to_bytes(one)
    assert_equal(record.from_bytes(data), one)
    np.testing.assert_array_equal(record.arrays(data).logprobs, one.logprobs)


@pytest.mark.parametrize("data", [b"", b"\0" * 100, record.to_bytes(encoded(3))[:40]])
def test_bytes_that_are_no_record(data):
    with pytest.raises(UserError, match=r"damaged|cut short"):
        record.from_bytes(data)


def test_random_access(folder):
    shards = Shards.open(folder, verify="full")
    assert len(shards) == 12
    for i in (11, 0, 5, 5):
        assert_equal(shards[i], encoded(i, logprobs=i % 2 == 0))
        np.testing.assert_array_equal(shards.arrays(i).tokens, shards[i].tokens)
    for i in (-1, 12):
        with pytest.raises(IndexError):
            shards[i]


def test_index(folder):
    shards = Shards.open(folder)
    index, traces = shards.index, [shards[i] for i in range(12)]
    assert index["num_tokens"].tolist() == [len(t.tokens) for t in traces]
    assert index["num_prompt"].tolist() == [t.num_prompt for t in traces]
    assert index["num_steps"].tolist() == [len(t.trace.steps) for t in traces]
    assert [shards.teachers[i] for i in index["teacher_id"]] == [t.trace.teacher for t in traces]
    assert [shards.problems[i] for i in index["problem"]] == [t.trace.problem_id for t in traces]
    assert [shards.verdicts[i] for i in index["verdict"]] == [t.trace.verdict for t in traces]
    assert [shards.folds[i] for i in index["fold"]] == [t.trace.meta["fold"] for t in traces]
    kinds = {name: array.dtype.name for name, array in index.items()}
    assert kinds == dict.fromkeys(("num_tokens", "num_prompt", "num_steps", "teacher_id", "problem"), "int32") | {
        "verdict": "int8",
        "fold": "int8",
    }


def test_manifest_counts(folder):
    manifest = Shards.open(folder).manifest
    # t1 has traces 0, 2, .. 10 (verdicts correct and ungraded), t0 has 1, 3, .. 11 (wrong and unverified).
    assert list(manifest["teachers"]) == ["t0", "t1"]
    t0 = manifest["teachers"]["t0"]
    assert t0["num_traces"] == 6
    assert t0["num_tokens"] == sum(i + 3 for i in range(1, 12, 2))
    assert t0["num_completion_tokens"] == t0["num_tokens"] - 6
    assert t0["num_steps"] == sum(i + 1 for i in range(1, 12, 2))
    assert (t0["accuracy"], t0["wrong"], t0["unverified"], t0["quarantined"]) == (0.0, 3, 3, 1)
    assert manifest["teachers"]["t1"]["accuracy"] == 1.0
    assert manifest["num_traces"] == 12
    assert manifest["quarantine_reasons"] == {"empty prompt": 1, "not JSON": 1}
    assert manifest["tokenizer"] == TOKENIZER.hash
    assert quarantined(folder)[0] == Quarantined("x.jsonl", 7, "empty prompt", "t0", "…")._asdict()


def test_several_files_are_one_sequence(tmp_path):
    with ShardWriter(tmp_path / "s", tokenizer=TOKENIZER, shard_bytes=600) as writer:
        for i in range(9):
            writer.add(encoded(i))
    shards = Shards.open(tmp_path / "s", verify="full")
    assert len(shards.manifest["shards"]) > 3
    assert [len(shards[i].trace.steps) for i in range(9)] == list(range(1, 10))


def test_equal_contents_equal_bytes(folder, tmp_path):
    write_shards(
        (encoded(i, logprobs=i % 2 == 0) for i in range(12)),
        tmp_path / "s",
        tokenizer=TOKENIZER,
        quarantine=[Quarantined(**row) for row in quarantined(folder)],
    )
    assert Shards.open(tmp_path / "s").manifest == Shards.open(folder).manifest
    assert Shards.open(tmp_path / "s").fingerprint == Shards.open(folder).fingerprint


def test_threads_and_processes(folder):
    shards, order = Shards.open(folder), [i % 12 for i in range(400)]
    expected = [encoded(i).tokens.tolist() for i in order]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: shards[i].tokens.tolist(), order)) == expected
    assert pickle.loads(pickle.dumps(shards)).index["num_tokens"].tolist() == shards.index["num_tokens"].tolist()
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for one, i in zip(pool.map(Shards.__getitem__, [shards] * 3, range(3)), range(3), strict=True):
            assert_equal(one, encoded(i, logprobs=i % 2 == 0))


def damage(folder: Path, how: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    shard = folder / next(iter(manifest["shards"]))
    match how:
        case "gone":
            shutil.rmtree(folder)
        case "no manifest":
            (folder / "manifest.json").unlink()
        case "manifest cut":
            (folder / "manifest.json").write_text('{"schema": 1')
        case "schema":
            (folder / "manifest.json").write_text(json.dumps(manifest | {"schema": 99}))
        case "field gone":
            (folder / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "folds"}))
        case "file gone":
            shard.unlink()
        case "file cut":
            shard.write_bytes(shard.read_bytes()[:-1])
        case "byte changed":
            data = bytearray(shard.read_bytes())
            data[len(data) // 2] ^= 1
            shard.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("gone", "no such folder"),
        ("no manifest", r"holds no manifest\.json"),
        ("manifest cut", "is not a manifest"),
        ("schema", "schema 99; this version of mixdistill reads 1"),
        ("field gone", "lacks folds"),
        ("file gone", r"traces-00000\.array_record is missing"),
        ("file cut", "bytes, the manifest says"),
        ("byte changed", "was changed"),
    ],
)
def test_damage_is_named(folder, tmp_path, how, message):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    Shards.open(copy, verify="full")
    damage(copy, how)
    with pytest.raises(UserError, match=message):
        Shards.open(copy, verify="full" if how == "byte changed" else "fast")


def test_another_tokenizer(folder):
    Shards.open(folder, tokenizer_hash=TOKENIZER.hash)
    with pytest.raises(UserError, match="were made with tokenizer"):
        Shards.open(folder, tokenizer_hash=word_level(["z"]).hash)


def test_unknown_verify(folder):
    with pytest.raises(UserError, match="known: fast"):
        Shards.open(folder, verify="yes")  # pyright: ignore[reportArgumentType]


def test_nothing_is_overwritten_unasked(folder, tmp_path):
    out = tmp_path / "s"
    write_shards([encoded(0)], out, tokenizer=TOKENIZER)
    with pytest.raises(UserError, match="--overwrite replaces"):
        write_shards([encoded(1)], out, tokenizer=TOKENIZER)
    assert len(write_shards([encoded(1), encoded(2)], out, tokenizer=TOKENIZER, overwrite=True)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_left_alone(tmp_path, overwrite):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="left alone"):
        write_shards([encoded(0)], tmp_path / "s", tokenizer=TOKENIZER, overwrite=overwrite)
    assert (tmp_path / "s" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_writing_leaves_nothing(tmp_path, error):
    def some():
        yield encoded(0)
        raise error

    with pytest.raises(error):
        write_shards(some(), tmp_path / "s", tokenizer=TOKENIZER)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_overwriting_keeps_the_old(tmp_path):
    def some():
        yield encoded(0)
        raise KeyboardInterrupt

    write_shards([encoded(5)], tmp_path / "s", tokenizer=TOKENIZER)
    with pytest.raises(KeyboardInterrupt):
        write_shards(some(), tmp_path / "s", tokenizer=TOKENIZER, overwrite=True)
    assert_equal(Shards.open(tmp_path / "s", verify="full")[0], encoded(5))


def test_no_trace_at_all(tmp_path):
    bad = [Quarantined("x.jsonl", 3, "empty prompt")]
    with pytest.raises(UserError, match=r"all 1 rows are bad: empty prompt \(1\); first: x.jsonl:3"):
        write_shards([], tmp_path / "s", tokenizer=TOKENIZER, quarantine=bad)
    with pytest.raises(UserError, match="the sources hold none"):
        write_shards([], tmp_path / "s", tokenizer=TOKENIZER)
    assert list(tmp_path.iterdir()) == []


def test_too_many_folds(tmp_path):
    traces = [
        encoded(0)._replace(trace=Trace("p", "a", (), "", "t", meta={"fold": str(i)})) for i in range(MAX_FOLDS + 1)
    ]
    with pytest.raises(UserError, match="128 different folds"):
        write_shards(traces, tmp_path / "s", tokenizer=TOKENIZER)


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        write_shards([encoded(0)], tmp_path / "file" / "s", tokenizer=TOKENIZER)
