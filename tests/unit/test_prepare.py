import dataclasses
import json

import pytest

from mixdistill.errors import UserError
from mixdistill.traces.prepare import Encode, Settings, prepare, prepare_traces
from mixdistill.traces.shards import quarantined
from mixdistill.traces.spool import Spool
from mixdistill.traces.templates import ChatTemplate
from mixdistill.traces.tokenizer import train_bpe, word_level
from mixdistill.traces.trace import Step, Trace, Verdict

WORDS = word_level(["a", "b", "c"])
GOOD = Trace("p", "a", (Step("b "), Step("c")), "c", "t", Verdict.WRONG, meta={"fold": "b", "source": "here"})


def test_traces_in_memory(tmp_path):
    shards = prepare_traces([GOOD, dataclasses.replace(GOOD, prompt="b")], tmp_path / "s", tokenizer=WORDS)
    assert [shards[i].trace for i in range(2)] == [GOOD, dataclasses.replace(GOOD, prompt="b")]
    assert shards.tokenizer.decode(shards[1].tokens) == "b b c"
    assert shards.folds == ("b",)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (dataclasses.replace(GOOD, prompt=" \n"), "empty prompt"),
        (dataclasses.replace(GOOD, steps=()), "empty completion"),
        (dataclasses.replace(GOOD, steps=(Step("b"), Step("\ud800"))), "broken Unicode (a lone surrogate)"),
        (dataclasses.replace(GOOD, meta={"note": "\ud800"}), "broken Unicode (a lone surrogate)"),
        (dataclasses.replace(GOOD, steps=(Step("b " * 8),)), "longer than 9 tokens"),
        (dataclasses.replace(GOOD, prompt="a z"), "words unknown to the tokenizer"),
        (dataclasses.replace(GOOD, prompt="a <eos>"), "words unknown to the tokenizer"),
    ],
)
def test_bad_traces_are_quarantined(tmp_path, bad, reason):
    settings = Settings(segment=None, grade=False, max_tokens=9)
    shards = prepare_traces([GOOD, bad, GOOD], tmp_path / "s", tokenizer=WORDS, settings=settings)
    assert len(shards) == 2
    (row,) = quarantined(tmp_path / "s")
    assert (row["line"], row["reason"], row["teacher"]) == (2, reason, "t")
    assert shards.manifest["teachers"]["t"]["quarantined"] == 1


def test_longest_allowed_trace_stays(tmp_path):
    settings = Settings(segment=None, grade=False, max_tokens=4)
    assert len(prepare_traces([GOOD], tmp_path / "s", tokenizer=WORDS, settings=settings)) == 1


def test_teacher_without_a_good_trace_is_not_in_the_list_of_teachers(tmp_path):
    bad = dataclasses.replace(GOOD, prompt="", teacher="u")
    shards = prepare_traces([GOOD, bad, bad], tmp_path / "s", tokenizer=WORDS)
    assert shards.teachers == ("t",)
    assert shards.manifest["teachers_without_traces"] == {"u": 2}


def test_template_is_around_the_prompt_and_noted(tmp_path):
    tokenizer = train_bpe(["Q: a A: b c"], 300)
    settings = Settings(ChatTemplate("Q: ", "\nA: "), segment=None, grade=False)
    shards = prepare_traces([GOOD], tmp_path / "s", tokenizer=tokenizer, settings=settings)
    assert tokenizer.decode(shards[0].tokens) == "Q: a\nA: b c"
    assert shards.template == settings.template


def test_log_probabilities_are_counted(tmp_path):
    kept = dataclasses.replace(GOOD, steps=(Step("b ", (-1.0,)), Step("c", (-2.0,))))
    dropped = dataclasses.replace(GOOD, steps=(Step("b ", (-1.0, -1.0)), Step("c")))
    shards = prepare_traces([GOOD, kept, dropped, dropped], tmp_path / "s", tokenizer=WORDS)
    row = shards.manifest["teachers"]["t"]
    assert (row["logprobs_kept"], row["logprobs_dropped"]) == (1, 2)
    assert shards.arrays(1).logprobs[1:3].tolist() == [-1.0, -2.0]


@pytest.mark.parametrize("rule", ["auto", "sentence"])
def test_log_probabilities_without_texts_stay_on_their_tokens_when_the_text_is_divided(tmp_path, rule):
    tokenizer = train_bpe(["Wait, so a. Then b. And c."] * 3, 300)
    text = "So a. Then b. And c."
    values = tuple(-0.25 * i for i in range(len(tokenizer.encode(text))))
    trace = dataclasses.replace(GOOD, steps=(Step(text, values),))
    settings = Settings(segment=rule, grade=False)
    encoded = prepare_traces([trace], tmp_path / "s", tokenizer=tokenizer, settings=settings)[0]
    assert [step.text for step in encoded.trace.steps] == ["So a. ", "Then b. ", "And c."]
    assert encoded.logprobs[encoded.num_prompt : -1].tolist() == list(values)
    assert encoded.step_id.max() == 3


def test_bad_settings():
    with pytest.raises(UserError, match="at least 1"):
        Settings(max_tokens=0)


def test_interrupt_leaves_nothing(tmp_path):
    def some():
        yield GOOD
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_traces(some(), tmp_path / "s", tokenizer=WORDS)
    assert list(tmp_path.iterdir()) == []


def sources(folder, count=300):
    folder.mkdir()
    rows = [{"prompt": f"a {i}", "completion": f"b {i} c", "teacher": "t"} for i in range(count)]
    rows[7] = {"prompt": " ", "completion": "b", "teacher": "t"}
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


@pytest.mark.parametrize("damage", [lambda data: data, lambda data: data[:-5], lambda data: data[:-9] + b"?" * 9])
def test_an_interrupted_prepare_goes_on_where_it_was(tmp_path, monkeypatch, damage):
    """Also where the last thing that it wrote is cut off or damaged."""
    source, calls, encode = sources(tmp_path / "in"), [], Encode.__call__

    def interrupted(self, rows):
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, rows)

    want = prepare([source], tmp_path / "want", vocab_size=300, settings=Settings(grade=False))
    monkeypatch.setattr(Encode, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare([source], tmp_path / "s", vocab_size=300, settings=Settings(grade=False))
    results = tmp_path / ".s.unfinished" / "results"
    before = results.read_bytes()
    results.write_bytes(damage(before))
    found = prepare([source], tmp_path / "s", vocab_size=300, settings=Settings(grade=False))
    assert found.fingerprint == want.fingerprint
    assert calls[:3] == [128, 128, 44]
    assert calls[3:] == ([44] if damage(before) == before else [128, 44])
    assert {path.name for path in tmp_path.iterdir()} == {"in", "want", "s"}


def test_changed_sources_begin_anew(tmp_path, monkeypatch):
    source, encode = sources(tmp_path / "in"), Encode.__call__
    stop = iter([False, True])
    monkeypatch.setattr(Encode, "__call__", lambda self, rows: (next(stop) and _stop()) or encode(self, rows))
    with pytest.raises(KeyboardInterrupt):
        prepare([source], tmp_path / "s", tokenizer=train_bpe(["a b c"], 300), settings=Settings(grade=False))
    (source / "t.jsonl").write_text('{"prompt": "a", "completion": "c", "teacher": "u"}\n')
    monkeypatch.setattr(Encode, "__call__", encode)
    found = prepare([source], tmp_path / "s", tokenizer=train_bpe(["a b c"], 300), settings=Settings(grade=False))
    assert found.teachers == ("u",)


def _stop():
    raise KeyboardInterrupt


def test_strict_refuses_the_first_bad_row_by_file_and_line(tmp_path):
    source = sources(tmp_path / "in")
    with pytest.raises(UserError, match=r"t.jsonl:8 is bad: .*prompt.*--policy quarantine"):
        prepare([source], tmp_path / "s", vocab_size=300, settings=Settings(grade=False), strict=True)
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_two_at_once_on_one_folder_are_refused(tmp_path):
    refused = pytest.raises(UserError, match="another prepare is writing")
    with Spool(tmp_path / "s", {}), refused, Spool(tmp_path / "s", {}):
        pass
