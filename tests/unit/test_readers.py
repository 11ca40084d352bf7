"""Every source format on rows written here: what becomes a trace, what does not and why; containers and overrides."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard

from experiments.development_data import development_data
from mixdistill.errors import UserError
from mixdistill.traces.readers import FORMATS, BadRow, detect, read
from mixdistill.traces.sources import ReadAs, find_files, read_file
from mixdistill.traces.trace import Step, Trace, Verdict


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def brief(row: Trace | BadRow) -> tuple:
    if isinstance(row, BadRow):
        return ("bad", row.reason)
    return (row.prompt, row.text, row.teacher, row.reference, row.meta.get("label"))


ONE = {"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "It is 2."}
OPENAI = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "It is 2."}
TRACE = ("1+1?", "It is 2.", "file", "", None)
LATER = ("bad", "later turns of a conversation")
TOOLS = ("bad", "tool calls: their results are not the teacher's words")
MEDIA = ("bad", "images or sound: not text alone")

# format, row, what comes of it
GOLDEN = [
    ("sharegpt", {"conversations": [*ONE]}, [TRACE]),
    ("sharegpt", {"conversations": [*ONE, *ONE], "model": "org/m"}, [("1+1?", "It is 2.", "m", "", None), LATER]),
    ("sharegpt", {"conversations": [{"from": "system", "value": "Be brief."}, *ONE], "answer": "2"},
     [(*TRACE[:3], "2", None)]),
    ("sharegpt", {"conversations": [ONE[0], {"from": "function_call", "value": "{}"}, ONE[1]]}, [TOOLS]),
    ("sharegpt", {"conversations": [ONE[0]]}, [("bad", "no completion: the conversation has no answer")]),
    ("sharegpt", {"conversations": [ONE[1], ONE[0]]},
     [("bad", "the conversation does not begin with a question and its answer")]),
    ("sharegpt", {"conversations": [{"from": "alien", "value": "x"}]}, [("bad", "a turn of an unknown role")]),
    ("sharegpt", {"conversations": [*ONE], "images": ["a.png"]}, [MEDIA]),
    ("messages", {"messages": [*OPENAI]}, [TRACE]),
    ("messages", {"messages": [OPENAI[0], OPENAI[1] | {"reasoning_content": "1 and 1."}]},
     [("1+1?", "<think>\n1 and 1.\n</think>\n\nIt is 2.", "file", "", None)]),
    ("messages", {"messages": [OPENAI[0], {"role": "assistant", "content": [
        {"type": "reasoning", "value": "1 and 1."}, {"type": "text", "text": "It "},
        {"type": "text", "value": "is 2."}]}]},
     [("1+1?", "<think>\n1 and 1.\n</think>\n\nIt is 2.", "file", "", None)]),
    ("messages", {"messages": [OPENAI[0], OPENAI[1] | {"loss_weight": 0.0}]},
     [("bad", "weight 0 in the source: not to be learnt")]),
    ("messages", {"messages": [OPENAI[0], {"role": "assistant", "content": None, "tool_calls": [{}]}]}, [TOOLS]),
    ("messages", {"messages": [*OPENAI, {"role": "tool", "content": "3"}]}, [TOOLS]),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, OPENAI[1]]},
     [MEDIA]),
    ("messages", {"messages": [OPENAI[0], {"role": "assistant", "content": 2}]},
     [("bad", "field 'content' is int, not text")]),
    ("alpaca", {"instruction": "Add.", "input": "1 1", "output": "2"}, [("Add.\n\n1 1", "2", "file", "", None)]),
    ("alpaca", {"instruction": "Add 1 1.", "input": "", "output": "2"}, [("Add 1 1.", "2", "file", "", None)]),
    ("alpaca", {"instruction": "And 2?", "output": "2", "history": [["a", "b"]]}, [LATER]),
    ("prompt-completion", {"prompt": "1+1?", "completion": "It is 2."}, [TRACE]),
    ("prompt-completion", {"prompt": [OPENAI[0]], "completion": [OPENAI[1]]}, [TRACE]),
    ("prompt-completion", {"prompt": "1+1?", "responses": ["2", 3, "4"], "answer": 2},
     [("1+1?", "2", "file", "2", None), ("bad", "field 'completion' is int, not text"),
      ("1+1?", "4", "file", "2", None)]),
    ("prompt-completion", {"prompt": "1+1?", "completion": ""}, [("bad", "field 'completion' is null, not text")]),
    ("question-answer", {"question": "1+1?", "answer": "It is 2.\n#### 2"},
     [("1+1?", "It is 2.\n#### 2", "file", "", None)]),
    ("question-answer", {"problem": "1+1?", "solution": "It is 2.", "answer": "2"}, [(*TRACE[:3], "2", None)]),
    ("question-answer", {"question": "1+1?", "response": "It is 2.", "reasoning": "1 and 1.", "answer": "...\n#### 2"},
     [("1+1?", "<think>\n1 and 1.\n</think>\n\nIt is 2.", "file", "2", None)]),
    ("evaluation", {"output": ["It is 2."], "generator": "org/m", "question": "1+1?", "answer": "# 2"},
     [("1+1?", "It is 2.", "m", "2", None)]),
    ("evaluation", {"output": "['It is 2.', \"It's 3.\"]", "chat_history": "['1+1?']", "generator": "m"},
     [("1+1?", "It is 2.", "m", "", None), ("1+1?", "It's 3.", "m", "", None)]),
    ("evaluation", {"output": "[2] is it", "model_input": "1+1?"}, [("1+1?", "[2] is it", "file", "", None)]),
    ("evaluation", {"output": ["x"], "chat_history": ["a", "b"]}, [("bad", "a chat history of several turns")]),
    ("math-harness", {"question": "1+1?", "code": ["It is 2.", "It is 3."], "pred": ["2", "3"], "score": [True, False],
                      "gt": "2", "answer": "#### 2"},
     [("1+1?", "It is 2.", "file", "2", True), ("1+1?", "It is 3.", "file", "2", False)]),
    ("wide", {"question": "1+1?", "ground_truth": "Sum.\nA: 2", "ann": {"solution": "It is 2.", "is_correct": True},
              "bob": {"solution": "It is 3.", "is_correct": False}, "cat": {"solution": 4}},
     [("1+1?", "It is 2.", "ann", "2", True), ("1+1?", "It is 3.", "bob", "2", False),
      ("bad", "a teacher's solution is not text")]),
    ("reasoning", {"question": "1+1?", "answer": "Sum.\n#### 2", "model_answer": "Hm.</think>2"},
     [("1+1?", "Hm.</think>2", "file", "2", None)]),
    ("reasoning", {"question": "1+1?", "answer": "#### 2", "org/r1 (question)": "Hm.</think>2", "o1 (question)": "2"},
     [("1+1?", "Hm.</think>2", "r1", "2", None), ("1+1?", "2", "o1", "2", None)]),
    ("verl", {"prompt": [OPENAI[0]], "reward_model": {"ground_truth": "2"}, "extra_info": {}},
     [("bad", "no completion: the row holds a problem only")]),
    ("verl", {"prompt": json.dumps([OPENAI[0]]), "reward_model": json.dumps({"ground_truth": "2"}),
              "response": "It is 2."},
     [(*TRACE[:3], "2", None)]),
    ("verl", {"prompt": "x", "reward_model": {}, "extra_info": {"raw_problem": "1+1?"}, "responses": ["2", "3"]},
     [("1+1?", "2", "file", "", None), ("1+1?", "3", "file", "", None)]),
    ("preference", {"prompt": "1+1?", "chosen": "It is 2.", "rejected": "It is 3."}, [TRACE]),
    ("preference", {"conversations": [ONE[0]], "chosen": ONE[1], "rejected": ONE[1]}, [TRACE]),
    ("preference", {"prompt": [OPENAI[0]], "chosen": "It is 2.", "rejected": ""}, [TRACE]),
    ("preference", {"chosen": [*OPENAI], "rejected": [*OPENAI]}, [TRACE]),
    ("preference", {"conversations": [*ONE, ONE[0]], "chosen": ONE[1], "rejected": ONE[1]},
     [("bad", "the chosen answer continues a conversation")]),
    ("normalised", {"problem": "1+1?", "trace": "It is 2.", "teacher": "t", "reference_answer": "2", "correct": False},
     [("1+1?", "It is 2.", "t", "2", False)]),
    ("normalised", {"problem": "1+1?", "trace": "It is 2.</s></s>\n", "teacher": "t"},
     [("1+1?", "It is 2.", "t", "", None)]),
    ("normalised", {"problem": "1+1?", "trace": "</s>"}, [("bad", "empty completion")]),
    ("normalised", {"problem": "1+1?", "trace": "\ud800"}, [("bad", "broken Unicode (a lone surrogate)")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "expected"), GOLDEN)
def test_golden(tmp_path, name, row, expected):
    path = write(tmp_path / "file.jsonl", row)
    assert detect(path) == name
    assert [brief(found) for found in read(path)] == expected


def test_every_format_has_a_golden_row():
    assert {name for name, _, _ in GOLDEN} | {"mixdistill"} == set(FORMATS)


def test_own_traces_come_back_whole(tmp_path):
    trace = Trace("p", "q", (Step("a\n", (-0.5, -0.25)), Step("b")), "b", "t", Verdict.WRONG, "3", {"fold": "a"})
    (back,) = read(write(tmp_path / "file.jsonl", trace.to_json()))
    assert back == Trace(*list(vars(trace).values())[:-1], meta={"fold": "a", "source": "file.jsonl", "line": 1})


def test_samples_and_hidden_tokens_are_noted(tmp_path):
    path = write(tmp_path / "f.jsonl", {"question": "q", "o1 (question)": "2", "o1 (question) thinking_token_count": 9})
    assert next(read(path)).meta["hidden_tokens"] == 9
    path = write(tmp_path / "g.jsonl", {"prompt": "q", "responses": ["1", "2"]})
    assert [trace.meta["sample"] for trace in read(path)] == [0, 1]


ROWS = [{"question": f"{i}+1?", "answer": f"It is {i + 1}."} for i in range(600)]


def as_table(rows: list[dict]) -> pyarrow.Table:
    return pyarrow.Table.from_pylist(rows)


def write_arrow(path: Path, rows: list[dict]) -> Path:
    table = as_table(rows)
    with pyarrow.ipc.new_stream(str(path), table.schema) as sink:
        sink.write_table(table)
    return path


def container(folder: Path, kind: str) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    path = folder / f"data.{kind}"
    if kind == "arrow":
        return write_arrow(path, ROWS)
    if kind == "parquet":
        pyarrow.parquet.write_table(as_table(ROWS), path, row_group_size=100)
        return path
    contents = {
        "jsonl": lines,
        "jsonl.gz": gzip.compress(lines),
        "jsonl.zst": zstandard.compress(lines),
        "json": json.dumps(ROWS, indent=2).encode(),
        "nested.json": json.dumps({"version": 1, "data": ROWS}, indent=1).encode(),
        "txt": b"\xef\xbb\xbf" + lines,
    }
    path.write_bytes(contents[kind])
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "json", "nested.json", "txt", "arrow", "parquet"])
def test_containers_are_told_by_their_bytes(tmp_path, kind):
    traces = list(read(container(tmp_path, kind), teacher="t"))
    assert [(trace.prompt, trace.text) for trace in traces] == [(row["question"], row["answer"]) for row in ROWS]
    assert {trace.teacher for trace in traces} == {"t"}


def test_dataset_folder_of_hugging_face(tmp_path):
    folder = tmp_path / "corpus" / "train"
    folder.mkdir(parents=True)
    write_arrow(folder / "data-00001-of-00002.arrow", ROWS[:300])
    write_arrow(folder / "data-00000-of-00002.arrow", ROWS[300:])
    (folder / "dataset_info.json").write_text("{}")
    # The order of the description, not of the names; and nothing outside the folder.
    files = [{"filename": f"../../elsewhere/data-0000{i}-of-00002.arrow"} for i in (1, 0)]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    traces = list(read(folder))
    assert [trace.prompt for trace in traces] == [row["question"] for row in ROWS]
    assert [trace.meta["line"] for trace in traces] == list(range(1, 601))
    assert traces[0].teacher == "corpus"
    assert traces[0].meta["source"] == "corpus/train"


def test_folders_of_datasets_are_found(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "corpus" / split).mkdir(parents=True)
        write_arrow(tmp_path / "corpus" / split / "data-00000-of-00001.arrow", ROWS[:2])
        (tmp_path / "corpus" / split / "dataset_info.json").write_text("{}")
    (tmp_path / "corpus" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (tmp_path / "more").mkdir()
    write(tmp_path / "more" / "a.jsonl", *ROWS[:3])
    (tmp_path / "more" / "notes.md").write_text("not traces")
    names = [file.name.removeprefix(f"{tmp_path.name}/") for file in find_files([tmp_path])]
    assert names == ["corpus/test", "corpus/train", "more/a.jsonl"]
    rows = [row for file in find_files([tmp_path]) for row in read_file(file, ReadAs())]
    assert [(row.trace.teacher, row.line) for row in rows] == [*[("corpus", 1), ("corpus", 2)] * 2] + [
        ("a", line) for line in (1, 2, 3)
    ]


def test_dataset_folder_without_data(tmp_path):
    assert [row.reason for row in read(tmp_path)] == ["no Arrow or Parquet file in the dataset folder"]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b'{"question": "q", "answer": "a"}\n{"question": \n', 2, "malformed JSON: Expecting value"),
        (b'{"question": "q", "answer": "\xff"}\n', 1, "invalid UTF-8"),
        (b'[{"question": "q", "answer": "a"},\n {"question"', 2, "the JSON array is cut short"),
        (gzip.compress(b'{"question": "q", "answer": "a"}\n' * 99, mtime=0)[:-8], 100, "the gzip file is cut short"),
        (b"3\n", 1, "the row is int, not an object"),
        (b"", 0, "empty file"),
        (b"PAR1 and no more", 0, "damaged Parquet file"),
    ],
    ids=["line", "utf-8", "array", "gzip", "number", "empty", "parquet"],
)
def test_damage_costs_what_is_damaged(tmp_path, content, line, reason):
    path = tmp_path / "file.jsonl"
    path.write_bytes(content)
    *_, bad = read(path, format="question-answer")
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.reason.split(";")[0]) == (line, reason)


def test_mapping_makes_any_layout_readable(tmp_path):
    row = {"in": {"text": "1+1?"}, "outs": [{"t": "It is 2."}, {"t": "3"}], "who": "org x", "ok": 1, "gold": 2}
    path = write(tmp_path / "f.jsonl", row)
    mapping = {"prompt": "in.text", "completion": "outs.0.t", "reference": "gold", "correct": "ok"}
    assert [brief(t) for t in read(path, mapping=mapping, teacher_field="who")] == [
        ("1+1?", "It is 2.", "org x", "2", True)
    ]
    with pytest.raises(UserError, match="cannot tell the format"):
        read(path)
    assert brief(next(read(path, mapping=mapping | {"completion": "nowhere"})))[0] == "bad"


def test_mapping_amends_a_format(tmp_path):
    path = write(tmp_path / "f.jsonl", {"instruction": "q", "output": "a", "m": {"n": "t"}, "part": "b"})
    (trace,) = read(path, mapping={"teacher": "m.n", "fold": "part"})
    assert (trace.prompt, trace.teacher, trace.meta["fold"]) == ("q", "t", "b")


def test_chosen_format_wins(tmp_path):
    path = write(tmp_path / "f.jsonl", {"question": "q", "answer": "2", "prompt": "p", "completion": "c"})
    assert detect(path) == "prompt-completion"
    assert next(read(path, format="question-answer")).prompt == "q"
    with pytest.raises(UserError, match="did you mean 'sharegpt'"):
        read(path, format="shargpt")


# Real files: traces and bad rows of each.
REAL = {
    "alpaca_llamafactory.json": ("alpaca", 200, 0),
    "evaldump_zeroeval_gsm_mixtral.json": ("evaluation", 60, 0),
    "gsm8k_question_answer.jsonl": ("question-answer", 200, 0),
    "mathharness_rho.jsonl": ("math-harness", 60, 0),
    "messages_images_llamafactory.json": ("messages", 0, 6),
    "messages_parts_lossweight_llamafactory.jsonl": ("messages", 120, 0),
    "messages_parts_reasoning_llamafactory.jsonl": ("messages", 19, 31),
    "multiteacher_wide_gsm8k.jsonl": ("wide", 400, 0),
    "preference_sharegpt_llamafactory.json": ("preference", 41, 19),
    "prompt_completion_mlx.jsonl": ("prompt-completion", 120, 0),
    "r1style_mip_DSQ.json": ("reasoning", 40, 0),
    "r1style_mip_deepseekR1.json": ("reasoning", 40, 0),
    "r1style_mip_o1.json": ("reasoning", 40, 0),
    "r1style_mip_s1.1.json": ("reasoning", 40, 0),
    "sharegpt_fastchat.json": ("sharegpt", 200, 133),
    "sharegpt_tools_llamafactory.json": ("sharegpt", 28, 55),
    "verl_aime24.parquet": ("verl", 0, 30),
    "verl_amc23.parquet": ("verl", 0, 40),
}


def test_real_files():
    try:
        folder = development_data() / "formats"
    except UserError as error:
        pytest.skip(str(error))
    files = {path.name: path for path in folder.iterdir() if path.suffix != ".md"}
    assert files.keys() == REAL.keys()
    for name, path in files.items():
        rows = list(read(path))
        traces = sum(isinstance(row, Trace) for row in rows)
        assert (name, detect(path), traces, len(rows) - traces) == (name, *REAL[name])
