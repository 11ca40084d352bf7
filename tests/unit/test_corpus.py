from pathlib import Path

import numpy as np
import pytest

from mixdistill.data.corpus import named_weights, open_corpus, weight_vector
from mixdistill.data.mixture import Mixture
from mixdistill.errors import UserError
from mixdistill.traces.record import EncodedTrace
from mixdistill.traces.shards import write_shards
from mixdistill.traces.tokenizer import word_level
from mixdistill.traces.trace import Step, Trace, Verdict

TOKENIZER = word_level(["a", "b"])


def encoded(teacher: str, length: int, prompt: int, fold: str = "a", verdict: str = "correct") -> EncodedTrace:
    trace = Trace("p", "a", (Step("b"),), "b", teacher, Verdict(verdict), "b", {"fold": fold})
    step_id = np.where(np.arange(length) < prompt, 0, 1).astype(np.int32)
    return EncodedTrace(np.full(length, 3, np.int32), step_id, prompt, None, trace)


# Of x: one that fits, one that is longer than a row, one whose prompt alone is longer. Of y: one that just fits.
FIRST = [encoded("x", 6, 2), encoded("x", 12, 4), encoded("x", 20, 12, fold="b"), encoded("y", 9, 3, verdict="wrong")]
SECOND = [encoded("w", 4, 1), encoded("y", 7, 2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_shards(FIRST, folder / "first", tokenizer=TOKENIZER)
    write_shards(SECOND, folder / "second", tokenizer=TOKENIZER)
    return folder


def mixture(folder: Path, *names: str, **changes) -> Mixture:
    paths = tuple(str(folder / name) for name in names or ("first", "second"))
    return Mixture(**{"shards": paths, "rows": 2, "length": 8, **changes})


def test_folders_are_numbered_through_and_teachers_united(folder):
    corpus = open_corpus(mixture(folder))
    assert corpus.teachers == ("w", "x", "y")
    assert corpus.teacher.tolist() == [1, 1, 1, 2, 0, 2]
    assert [corpus.locate(i) for i in (0, 3, 4, 5)] == [(0, 0), (0, 3), (1, 0), (1, 1)]
    assert corpus.footprint.tolist() == [5, 8, 8, 8, 3, 6]
    assert [pool.tolist() for pool in corpus.pools] == [[4], [0], [3, 5]]


def test_too_long_is_dropped_truncated_or_refused_and_counted(folder):
    dropped = open_corpus(mixture(folder, "first"))
    assert dropped.counts["x"] == {"eligible": 1, "dropped": 2, "truncated": 0}
    truncated = open_corpus(mixture(folder, "first", too_long="truncate"))
    assert truncated.counts["x"] == {"eligible": 2, "dropped": 1, "truncated": 1}
    assert truncated.counts["y"] == {"eligible": 1, "dropped": 0, "truncated": 0}
    assert truncated.trained[:2].tolist() == [4, 5]
    with pytest.raises(UserError, match=r"2 traces do not fit in a row of 8 tokens .* make length at least 19"):
        open_corpus(mixture(folder, "first", too_long="error"))
    assert open_corpus(mixture(folder, "first", too_long="error", length=19)).counts["x"]["eligible"] == 3


def test_choosing_by_fold_verdict_and_teacher(folder):
    assert open_corpus(mixture(folder, "first", folds=("b",), length=30)).pools[0].tolist() == [2]
    assert open_corpus(mixture(folder, verdicts=("wrong",))).pools[2].tolist() == [3]
    assert open_corpus(mixture(folder, teachers=("w",))).counts["y"] == {"eligible": 0, "dropped": 0, "truncated": 0}


def test_costs_and_weights(folder):
    corpus = open_corpus(mixture(folder))
    assert corpus.cost.tolist() == [4, 5, -3, 6, 3, 5]
    np.testing.assert_allclose(weight_vector(corpus, mixture(folder)), [3 / 18, 4 / 18, 11 / 18])
    np.testing.assert_allclose(weight_vector(corpus, mixture(folder, weights={"x": 3, "y": 1})), [0, 0.75, 0.25])
    assert open_corpus(mixture(folder, unit="traces")).cost.tolist() == [1] * 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": ("c",)}, "unknown fold .*'c'; known: a"),
        ({"verdicts": ("right",)}, "unknown verdict .*'right'"),
        ({"teachers": ("z",)}, "unknown teacher 'z'; known: w, x, y"),
    ],
)
def test_unknown_names(folder, changes, message):
    with pytest.raises(UserError, match=message):
        open_corpus(mixture(folder, *(["second"] if "folds" in changes else ["first", "second"]), **changes))


def test_weights_for_nobody(folder):
    corpus = open_corpus(mixture(folder, teachers=("y",)))
    with pytest.raises(UserError, match="unknown teacher 'z'"):
        named_weights(corpus, {"z": 1})
    with pytest.raises(UserError, match="teacher 'x' has weight 1 but no trace to train on"):
        named_weights(corpus, {"x": 1, "y": 1})
    empty = mixture(folder, "first", length=2)
    with pytest.raises(UserError, match="no trace is left to train on: rows of 2 tokens"):
        weight_vector(open_corpus(empty), empty)


def test_shards_of_two_tokenizers(folder):
    write_shards(SECOND, folder / "other", tokenizer=word_level(["c"]))
    with pytest.raises(UserError, match="prepare them alike"):
        open_corpus(mixture(folder, "first", "other"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows is 0; it is at least 1"),
        ({"length": 1}, "length is 1; it is at least 2"),
        ({"unit": "token"}, "unknown mixture unit 'token'; did you mean 'tokens'"),
        ({"pack_by": "row"}, "unknown mixture pack_by 'row'"),
        ({"too_long": "cut"}, "unknown mixture too_long 'cut'"),
        ({"shards": ()}, "at least one folder"),
        ({"weights": {"a": -1.0}}, "weight of teacher 'a' is -1"),
        ({"weights": {"a": float("nan")}}, "weight of teacher 'a' is nan"),
        ({"weights": {"a": 0, "b": 0}}, "all weights are zero"),
    ],
)
def test_a_mixture_that_does_not_fit_together(changes, message):
    with pytest.raises(UserError, match=message):
        Mixture(**{"shards": "-", "rows": 2, "length": 8, **changes})
