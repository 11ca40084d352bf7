"""`mixdistill serve` on a trained workdir, as a client sees it: the words of the sampler, and newer weights in time."""

import dataclasses
import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from mixdistill.cli import main
from mixdistill.data.mixture import Mixture
from mixdistill.generation.policy import Policy
from mixdistill.generation.remote import Server, complete_remotely
from mixdistill.generation.sampler import complete
from mixdistill.losses.cross_entropy import cross_entropy
from mixdistill.objective import Objective, Term
from mixdistill.recipe import Recipe, Stage, fingerprint
from mixdistill.students.families import tiny
from mixdistill.traces.worlds.chain import CHAIN
from mixdistill.traces.worlds.write import write_world
from mixdistill.training.loop import run
from mixdistill.training.workdir import open_trained

TOKENIZER = CHAIN.tokenizer()
PROMPTS = [TOKENIZER.encode("? 1 2 3 :"), TOKENIZER.encode("? 9 8 :")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two train steps with both checkpoints."""
    folder = tmp_path_factory.mktemp("serve")
    write_world(CHAIN, folder / "shards", {"F": 40}, seed=0)
    source = Mixture(shards=str(folder / "shards"), rows=4, length=32)
    recipe = Recipe(
        name="served",
        student=dataclasses.replace(tiny(TOKENIZER.vocab_size), layers=1, unroll=1),
        stages=(Stage("imitate", 2, source, Objective({"nll": Term(cross_entropy)})),),
        mesh={},
        checkpoint_every=1,
    )
    run(recipe, folder / "run", devices=jax.devices()[:1], quiet=True)
    return folder / "run", fingerprint(recipe)[:12]


def ask(url, name, **settings):
    limits = {"max_new": 6, "eos_id": TOKENIZER.eos_id, "vocab_size": TOKENIZER.vocab_size, "seed": 3}
    return complete_remotely(Server(url, name, **settings), PROMPTS, policy=Policy(temperature=1.2), **limits)


def test_a_trained_student_behind_an_endpoint(trained):
    workdir, recipe = trained
    newer = workdir / "checkpoints" / "2"
    hidden = newer.rename(workdir / "2")  # not there yet
    command = [sys.executable, "-m", "mixdistill.cli", "serve", str(workdir), "--port", "0", "--follow"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "XLA_FLAGS": ""})
    try:
        assert process.stdout
        said = process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+/v1", said)[0]
        assert f"run (weights {recipe}-1)" in said
        for train_step in (1, 2):
            if train_step == 2:
                hidden.rename(newer)
            answers = ask(url, "run", version=f"{recipe}-{train_step}", retries=0)
            assert answers.versions == [f"{recipe}-{train_step}"] * 2
            found = open_trained(workdir, train_step=train_step)
            for i, (prompt, got) in enumerate(zip(PROMPTS, answers.completions, strict=True)):
                settings = {"max_new": 6, "eos_id": TOKENIZER.eos_id, "policy": Policy(temperature=1.2), "seed": 3 + i}
                (alone,) = complete(found.student, found.params, [prompt], **settings)
                np.testing.assert_array_equal(got.tokens, alone.tokens)
                np.testing.assert_allclose(got.logprobs, alone.logprobs, atol=1e-5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.communicate()


def test_what_is_refused(trained, tmp_path, capsys):
    workdir, _ = trained
    for arguments, words in (
        ([str(tmp_path)], "no run at"),
        ([str(workdir), "--train-step", "7"], "known: 1, 2"),
        ([str(workdir), "--host", "0.0.0.0"], "needs a token"),
    ):
        assert main(["serve", *arguments]) == 2
        assert words in capsys.readouterr().err
