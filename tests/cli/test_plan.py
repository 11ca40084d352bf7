"""`mixdistill plan` as people run it, for host devices; for a TPU where libtpu is installed."""

import importlib.util
import json
from pathlib import Path

import pytest

from mixdistill.cli import main

TOY = f"{Path(__file__).parents[1] / 'resume' / 'toy_recipes.py'}:steered"


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mixdistill" / "plan"


def test_a_plan_for_host_devices(capsys, kept):
    assert main(["plan", TOY, "--topology", "cpu-8", "--stage", "0", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["stages"]
    assert (found["chips"], found["mesh"], found["cached"]) == (8, {"fsdp": 8}, False)
    # 32 x 16 + 16 x 32 + 32 x 16 + 16 x 32 numbers of 4 bytes on 8 devices, and two moments
    assert found["memory"]["params"] == 2048 * 4 // 8
    assert 2 * 1024 <= found["memory"]["optimizer"] <= 2 * 1024 + 64
    assert found["collectives"]
    assert len(list(kept.glob("*.json"))) == 1
    # Again, from what was kept, where memory is too small: exit code 1, by how much, and what would help.
    assert main(["plan", TOY, "--topology", "cpu-8", "--stage", "0", "--hbm", "0.000001"]) == 1
    said = capsys.readouterr().out
    assert "DOES NOT FIT" in said
    assert "too much" in said
    assert "what would help" in said
    assert len(list(kept.glob("*.json"))) == 1


def test_unknown_topologies_and_meshes_that_do_not_fit(capsys, kept):
    assert main(["plan", TOY, "--topology", "v5e-17"]) == 2
    assert "known: cpu-1" in capsys.readouterr().err
    assert main(["plan", TOY, "--topology", "cpu-8", "--set", "mesh={'data': 3}"]) == 2
    assert "there are 8 cpu devices" in capsys.readouterr().err
    assert not kept.exists()


@pytest.mark.tpu
def test_a_plan_for_a_tpu(capsys):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'mixdistill[tpu]'")
    assert main(["plan", TOY, "--topology", "v5e-4", "--stage", "0", "--fast", "--price", "1.2"]) == 0
    said = capsys.readouterr().out
    assert "of 15.75 GiB" in said
    assert "at 1.2 a chip-hour" in said
