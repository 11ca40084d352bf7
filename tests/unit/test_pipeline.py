import contextlib
import functools
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.development_data import development_data
from mixdistill.data.fields import FIELDS, Batch
from mixdistill.data.mixture import Mixture
from mixdistill.data.pipeline import Pipeline, make_pipeline
from mixdistill.errors import UserError
from mixdistill.traces.prepare import Settings, prepare
from mixdistill.traces.record import EncodedTrace
from mixdistill.traces.shards import Shards, write_shards
from mixdistill.traces.tokenizer import word_level
from mixdistill.traces.trace import Step, Trace

WORDS = ["one", "two", "=", "wait", "7"]
CONTENT = {"one", "two", "7"}
TOKENIZER = word_level(WORDS)
ROWS, LENGTH = 4, 24


def encoded(rng: np.random.Generator, number: int, longest: int = 12) -> EncodedTrace:
    """A trace of up to four steps of random words; every third one with the teacher's log-probabilities."""
    num_prompt = int(rng.integers(1, 5))
    lengths = rng.integers(1, longest // 4 + 1, rng.integers(1, 5))
    num_tokens = num_prompt + int(lengths.sum()) + 1
    tokens = np.array([*rng.integers(3, 3 + len(WORDS), num_tokens - 1), TOKENIZER.eos_id], np.int32)
    steps = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    step_id = np.array([*[0] * num_prompt, *steps, len(lengths)], np.int32)
    logprobs = None if number % 3 else -rng.random(num_tokens).astype(np.float32)
    trace = Trace(f"p{number}", "a", tuple(Step("b") for _ in lengths), "b", f"teacher-{number % 4}")
    return EncodedTrace(tokens, step_id, num_prompt, logprobs, trace)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    for name, seed in (("first", 0), ("second", 1)):
        rng = np.random.default_rng(seed)
        write_shards((encoded(rng, i) for i in range(60)), folder / name, tokenizer=TOKENIZER)
    return folder


def mixture(folder: Path, **changes) -> Mixture:
    shards = (str(folder / "first"), str(folder / "second"))
    return Mixture(**{"shards": shards, "rows": ROWS, "length": LENGTH, **changes})


@contextlib.contextmanager
def opened(folder: Path, *, process_index: int = 0, process_count: int = 1, read_ahead: int = 2, **changes):
    pipeline = make_pipeline(
        mixture(folder, **changes), process_index=process_index, process_count=process_count, read_ahead=read_ahead
    )
    with contextlib.closing(pipeline):
        yield pipeline


def take(pipeline: Pipeline, num: int) -> list[Batch]:
    return [next(pipeline) for _ in range(num)]


def assert_equal(found: Batch, wanted: Batch) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


def joined(parts: list[Batch]) -> Batch:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def expected(trace: EncodedTrace, segment: int, teacher_id: int, trace_id: int) -> dict[str, list]:
    """What stands in the columns of one trace, token by token."""
    columns: dict[str, list] = {name: [] for name in FIELDS}
    words = {i: word for word, i in TOKENIZER.inner.get_vocab().items()}
    for t in range(len(trace.tokens) - 1):
        valid = t + 1 >= trace.num_prompt
        columns["tokens"].append(trace.tokens[t])
        columns["target"].append(trace.tokens[t + 1])
        columns["valid"].append(valid)
        columns["segment_id"].append(segment)
        columns["position"].append(t)
        columns["step_id"].append(trace.step_id[t + 1] if valid else 0)
        columns["teacher_id"].append(teacher_id)
        columns["trace_id"].append(trace_id)
        columns["content"].append(valid and words[trace.tokens[t + 1]] in CONTENT)
        columns["teacher_logprob"].append(np.nan if trace.logprobs is None else trace.logprobs[t + 1])
    return columns


@pytest.mark.parametrize("pack_by", ["mixed", "teacher"])
def test_every_field_of_every_trace(folder, pack_by):
    with opened(folder, pack_by=pack_by) as pipeline:
        corpus = pipeline.corpus
        for batch in take(pipeline, 6):
            for name, field in FIELDS.items():
                assert (batch[name].shape, batch[name].dtype) == ((ROWS, LENGTH), field.dtype), name
            for row in range(ROWS):
                segments = batch["segment_id"][row]
                for segment in range(1, segments.max() + 1):
                    here = segments == segment
                    trace_id = int(batch["trace_id"][row][here][0])
                    shard, index = corpus.locate(trace_id)
                    trace = corpus.shards[shard][index]
                    wanted = expected(trace, segment, pipeline.teachers.index(trace.trace.teacher), trace_id)
                    for name in FIELDS:
                        np.testing.assert_array_equal(batch[name][row][here], wanted[name], err_msg=name)
                for name, field in FIELDS.items():
                    np.testing.assert_array_equal(batch[name][row][segments == 0], field.padding)


def test_targets_are_counted_from_the_plan(folder):
    with opened(folder) as whole, opened(folder, process_index=1, process_count=2) as part:
        for _ in range(5):
            batch, _ = next(whole), next(part)
            assert whole.num_targets == part.num_targets == batch["valid"].sum()


@pytest.mark.parametrize("too_long", ["drop", "truncate"])
def test_traces_that_do_not_fit(folder, too_long):
    longest = 8
    with opened(folder, length=longest, too_long=too_long) as pipeline:
        batches = take(pipeline, 8)
        counts = [sum(row[key] for row in pipeline.counts.values()) for key in ("eligible", "dropped", "truncated")]
        assert (counts[1] > 20, counts[2] > 20) == (too_long == "drop", too_long == "truncate")
        assert sum(counts[:2]) == 120
        assert sum(batch["valid"].sum() for batch in batches) > 0
        ends = np.concatenate([batch["target"][batch["valid"]] for batch in batches]) == TOKENIZER.eos_id
        num_traces = sum(len(np.unique(batch["trace_id"][batch["trace_id"] >= 0])) for batch in batches)
        assert (ends.sum() >= num_traces) == (too_long == "drop")


@pytest.mark.parametrize("read_ahead", [0, 1, 3])
def test_read_ahead_changes_nothing(folder, read_ahead):
    with opened(folder) as one, opened(folder, read_ahead=read_ahead) as other:
        for _ in range(6):
            assert_equal(next(other), next(one))
            assert other.get_state() == one.get_state()


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_resumes_in_the_middle_on_any_number_of_processes(folder, process_count):
    with opened(folder) as pipeline:
        take(pipeline, 3)
        state = json.dumps(pipeline.get_state())
        wanted = take(pipeline, 5)
        last = pipeline.get_state()
    with contextlib.ExitStack() as stack:
        part_of = functools.partial(opened, folder, process_count=process_count)
        parts = [stack.enter_context(part_of(process_index=i)) for i in range(process_count)]
        for part in parts:
            part.set_state(json.loads(state))
        for batch in wanted:
            assert_equal(joined([next(part) for part in parts]), batch)
        assert [part.get_state() for part in parts] == [last] * process_count


def test_goes_back(folder):
    with opened(folder) as pipeline:
        start, first = pipeline.get_state(), take(pipeline, 4)
        pipeline.set_state(start)
        for found, wanted in zip(take(pipeline, 4), first, strict=True):
            assert_equal(found, wanted)


def test_weights_change_where_planned_and_travel_with_the_state(folder):
    only = {"teacher-2": 1.0, "teacher-0": 0.0}
    read_ahead, at = 2, 5
    with opened(folder, read_ahead=read_ahead) as pipeline:
        before = take(pipeline, at - read_ahead)
        pipeline.set_weights(only, at_train_step=at)
        state = json.dumps(pipeline.get_state())
        after = take(pipeline, 12)
        with pytest.raises(UserError, match="weights at train step 16: too late, 17 is the first"):
            pipeline.set_weights(only, at_train_step=16)
        with pytest.raises(UserError, match="unknown teacher 'teacher-9'; did you mean"):
            pipeline.set_weights({"teacher-9": 1.0}, at_train_step=30)
    teachers = [set(np.unique(batch["teacher_id"][batch["segment_id"] > 0])) for batch in before + after]
    assert all(len(found) > 1 for found in teachers[:at])
    assert teachers[at:] == [{2}] * (len(teachers) - at)
    with opened(folder, read_ahead=0) as resumed:
        resumed.set_state(json.loads(state))
        for wanted in after:
            assert_equal(next(resumed), wanted)


def test_a_router_may_weigh_teachers_that_the_mixture_left_out(folder):
    with opened(folder, teachers=("teacher-1", "teacher-3")) as pipeline:
        pipeline.set_weights({"teacher-0": 0.6, "teacher-1": 0.1, "teacher-2": 0.2, "teacher-3": 0.1}, at_train_step=2)
        assert pipeline.get_state()["pending"] == ((2, (0.0, 0.5, 0.0, 0.5)),)
        teachers = {int(i) for batch in take(pipeline, 6) for i in batch["teacher_id"][batch["segment_id"] > 0]}
        assert teachers == {1, 3}
        with pytest.raises(UserError, match="all weights are zero"):
            pipeline.set_weights({"teacher-0": 0.6, "teacher-1": 0.0}, at_train_step=20)


def test_the_last_word_on_a_train_step_counts(folder):
    with opened(folder) as pipeline:
        pipeline.set_weights({"teacher-1": 1.0}, at_train_step=4)
        pipeline.set_weights({"teacher-3": 1.0}, at_train_step=3)
        pipeline.set_weights({"teacher-2": 1.0}, at_train_step=4)
        teachers = [np.unique(b["teacher_id"][b["segment_id"] > 0]).tolist() for b in take(pipeline, 6)]
    assert teachers[3:] == [[3], [2], [2]]


def test_refuses_other_data_and_rows_that_do_not_divide(folder):
    with opened(folder) as pipeline:
        state = pipeline.get_state()
    swapped = mixture(folder, shards=(str(folder / "second"), str(folder / "first")))
    with contextlib.closing(make_pipeline(swapped)) as other, pytest.raises(UserError, match="is not what this run"):
        other.set_state(state)
    with pytest.raises(UserError, match="4 rows do not divide over 3 processes"):
        make_pipeline(mixture(folder), process_count=3)


def test_no_thread_is_left(folder):
    before = set(threading.enumerate())
    pipeline = make_pipeline(mixture(folder))
    take(pipeline, 2)
    assert set(threading.enumerate()) - before
    for _ in range(3):
        pipeline.set_state(pipeline.get_state())
        take(pipeline, 1)
    pipeline.close()
    pipeline.close()
    deadline = time.monotonic() + 10
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def test_damage_is_reported_where_the_batch_is_read(folder, tmp_path):
    out = tmp_path / "damaged"
    rng = np.random.default_rng(0)
    shards = write_shards((encoded(rng, i) for i in range(8)), out, tokenizer=TOKENIZER)
    file = next(out.glob("*.array_record"))
    file.write_bytes(bytes(len(file.read_bytes())))
    with pytest.raises(UserError, match=r"array_record"):
        make_pipeline(Mixture(shards=str(shards.path), rows=1, length=LENGTH, damaged="strict"))
    # "quarantine": no trace can be read, and each is named.
    with contextlib.closing(make_pipeline(Mixture(shards=str(shards.path), rows=1, length=LENGTH))) as pipeline:
        assert not next(pipeline)["valid"].any()
        assert len(pipeline.corpus.damage.traces) >= 1


def recorded(folder: Path, name: str) -> Shards:
    """The traces of three recorded teachers as shards."""
    try:
        data = development_data()
    except UserError as error:
        pytest.skip(str(error))
    files = sorted((data / name).glob("*.jsonl.gz"))[:3]
    return prepare(files, folder / "shards", vocab_size=2000, settings=Settings(segment=None, grade=False))


@pytest.mark.parametrize(("name", "length"), [("gsm8k_teachers", 1024), ("math_longcot", 8192)])
def test_rows_of_recorded_traces_are_full(tmp_path, name, length):
    shards = recorded(tmp_path, name)
    with contextlib.closing(make_pipeline(Mixture(shards=str(shards.path), rows=8, length=length))) as pipeline:
        fills = [(next(pipeline)["segment_id"] > 0).mean() for _ in range(20)]
        assert np.mean(fills) >= 0.98
        assert len(json.dumps(pipeline.get_state())) < 4096
