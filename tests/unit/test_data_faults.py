"""Faulty data at the door: each fault has its answer, with the file and what to do; nothing is dropped in silence."""

import gzip
import json
import os
import shutil
import tracemalloc

import pytest

from mixdistill.data.corpus import open_corpus
from mixdistill.data.mixture import Mixture
from mixdistill.errors import UserError
from mixdistill.traces import manifest
from mixdistill.traces.prepare import Settings, prepare
from mixdistill.traces.readers import json_rows, stream
from mixdistill.traces.shards import Shards, quarantined
from mixdistill.traces.tokenizer import train_bpe

ROW = {"prompt": "a 1", "completion": "b c", "teacher": "t"}
TOKENIZER = train_bpe(["a b c 1 2 3"], 300)


def prepared(folder, out, **more) -> Shards:
    return prepare([folder], out, tokenizer=TOKENIZER, settings=Settings(grade=False), **more)


@pytest.fixture
def shards(tmp_path):
    (tmp_path / "in").mkdir()
    rows = [json.dumps({**ROW, "prompt": f"a {i}"}) for i in range(40)]
    (tmp_path / "in" / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return prepared(tmp_path / "in", tmp_path / "shards")


def edit(shards, change, *, sign: bool) -> None:
    path = shards.path / manifest.MANIFEST
    found = json.loads(path.read_text())
    change(found)
    if sign:
        found.pop("sha256")
        manifest.write(shards.path, found)
    else:
        path.write_text(json.dumps(found))


def add_file(name: str):
    return lambda found: found["files"].update({name: {"bytes": 0, "sha256": "0" * 64}})


@pytest.mark.parametrize(
    ("change", "sign", "message"),
    [
        (lambda found: found.update(num_tokens=1), False, "was changed"),
        (lambda found: found["teachers"].update(u={}), False, "was changed"),
        (lambda found: found.update(num_traces=41), True, "contradicts itself"),
        (lambda found: found.update(shards=[]), True, "another kind"),
        (add_file("../in/rows.jsonl"), True, "not a file of this folder"),
        (add_file("/etc/passwd"), True, "not a file of this folder"),
        (lambda found: found["files"].update(x=None), True, "no size and checksum"),
        (lambda found: found["shards"].update(x=0), True, "no checksum of x"),
        (lambda found: found.update(schema=2), True, "schema 2"),
    ],
)
def test_manifests_that_are_not_believed(shards, change, sign, message):
    edit(shards, change, sign=sign)
    with pytest.raises(UserError, match=message):
        Shards.open(shards.path)


@pytest.mark.parametrize("name", ["index.npz", "tokenizer.json", "quarantine.jsonl"])
def test_one_bit_of_a_small_file_is_enough_to_refuse(shards, name):
    if name == "quarantine.jsonl":
        (shards.path / name).write_bytes(b"x")
    else:
        data = bytearray((shards.path / name).read_bytes())
        data[len(data) // 2] ^= 1
        (shards.path / name).write_bytes(data)
    with pytest.raises(UserError, match=name):
        Shards.open(shards.path)


def test_the_same_shards_twice_are_refused(shards, tmp_path):
    other = shutil.copytree(shards.path, tmp_path / "copy")
    for folders in ((str(shards.path), str(shards.path)), (str(shards.path), str(other))):
        with pytest.raises(UserError, match="holds the same records as"):
            open_corpus(Mixture(shards=folders, rows=2, length=16))


def test_links_out_of_a_source_are_not_followed_and_noted(shards, tmp_path):
    source = tmp_path / "in"
    (tmp_path / "secret.jsonl").write_text(json.dumps(ROW) + "\n")
    (source / "out.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (source / "circle").symlink_to(source)
    (source / "inside.jsonl").symlink_to(source / "rows.jsonl")
    found = prepared(source, tmp_path / "s")
    assert len(found) == 80
    assert {row["file"]: row["reason"][:15] for row in quarantined(tmp_path / "s")} == {
        "in/circle": "a symbolic link",
        "in/out.jsonl": "a symbolic link",
    }


def test_a_gzip_bomb_is_left_after_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "RATIO_FREE_BYTES", 2**20)
    (tmp_path / "in").mkdir()
    bomb = tmp_path / "in" / "bomb.jsonl.gz"
    bomb.write_bytes(gzip.compress(json.dumps(ROW).encode() + b"\n" + b" " * 2**28))
    (tmp_path / "in" / "good.jsonl").write_text(json.dumps(ROW) + "\n")
    tracemalloc.start()
    found = prepared(tmp_path / "in", tmp_path / "s")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 2  # the row before the bomb, and the other file
    rows = quarantined(tmp_path / "s")
    assert {row["file"] for row in rows} == {"in/bomb.jsonl.gz"}
    assert "compressed more than 300-fold: not read on" in rows[-1]["reason"]
    assert peak < 2**26  # the bomb holds as much; a row may take 16 MiB


def test_a_huge_line_is_quarantined_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 2**16)
    (tmp_path / "in").mkdir()
    lines = [json.dumps(ROW), json.dumps({**ROW, "completion": "b" * 2**24}), json.dumps(ROW)]
    (tmp_path / "in" / "rows.jsonl").write_text("\n".join(lines) + "\n")
    del lines
    tracemalloc.start()
    found = prepared(tmp_path / "in", tmp_path / "s")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 2
    assert [(row["line"], row["reason"][:10]) for row in quarantined(tmp_path / "s")] == [(2, "row longer")]
    assert peak < 2**23


def bad_rows() -> list[tuple[bytes, str]]:
    noisy = {**ROW, "logprobs": [float("nan"), -1.0]}
    return [
        (b'{"prompt": "a", "completion": "\xff", "teacher": "t"}', "invalid UTF-8"),
        (b'{"prompt": "a", "comple', "malformed JSON"),
        (json.dumps({**ROW, "completion": "b " * 5000}).encode(), "longer than"),
        (json.dumps({"prompt": "a", "completion": "\ud800", "teacher": "t"}).encode(), "broken Unicode"),
        (b"[" * 100_000, "nested too deep"),
        (b"7" * 5000, "too many digits"),
        (json.dumps(noisy).encode(), ""),
    ]


@pytest.mark.parametrize(("line", "reason"), bad_rows())
def test_rows_are_quarantined_or_end_the_whole_by_policy(line, reason, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "rows.jsonl").write_bytes(json.dumps(ROW).encode() + b"\n" + line + b"\n")
    settings = Settings(grade=False, max_tokens=2000)
    found = prepare([tmp_path / "in"], tmp_path / "s", tokenizer=TOKENIZER, settings=settings)
    rows = quarantined(tmp_path / "s")
    if not reason:  # a log-probability that is none means: not recorded
        assert (len(found), rows) == (2, [])
        return
    assert [(row["file"], row["line"]) for row in rows] == [("in/rows.jsonl", 2)]
    assert reason in rows[0]["reason"]
    with pytest.raises(UserError, match=r"rows.jsonl:2 is bad"):
        prepare([tmp_path / "in"], tmp_path / "t", tokenizer=TOKENIZER, settings=settings, strict=True)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\x1f\x8b", b"PAR1", b"[]"])
def test_an_empty_or_broken_file_beside_good_ones_costs_only_itself(content, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.jsonl").write_bytes(content)
    (tmp_path / "in" / "good.jsonl").write_text(json.dumps(ROW) + "\n")
    assert len(prepared(tmp_path / "in", tmp_path / "s")) == 1


def test_a_killed_prepare_leaves_nothing_for_ever(tmp_path, shards):
    """SIGKILL runs no `finally`: the next prepare of the folder tidies up."""
    left = tmp_path / ".s.partial-999999"
    left.mkdir()
    (left / "traces-00000.array_record").write_bytes(b"x")
    prepared(tmp_path / "in", tmp_path / "s")
    assert not left.exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
