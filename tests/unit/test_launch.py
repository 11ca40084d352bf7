"""Files for engines: each is accepted by the engine's own rules, says the same command, and holds no secret."""

import copy
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from mixdistill.cli import main
from mixdistill.errors import UserError
from mixdistill.launch import jobset, skypilot, slurm, tpu_vm, xpk
from mixdistill.launch.engines import ENGINES
from mixdistill.launch.job import Job
from mixdistill.launch.machines import machine

# What the JobSet API demands of the fields that we write (jobset.x-k8s.io/v1alpha2), and no others.
JOBSET = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
                "namespace": {"type": "string"},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        },
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["replicatedJobs"],
            "properties": {
                "failurePolicy": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "maxRestarts": {"type": "integer", "minimum": 0},
                        "rules": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["action"],
                                "properties": {
                                    "action": {
                                        "enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
                                    },
                                    "onJobFailureReasons": {"type": "array", "items": {"type": "string"}},
                                },
                            },
                        },
                    },
                },
                "replicatedJobs": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["name", "template"],
                        "properties": {
                            "name": {"type": "string"},
                            "replicas": {"type": "integer", "minimum": 1},
                            "template": {"type": "object", "required": ["spec"]},
                        },
                    },
                },
            },
        },
    },
}


def job(name: str = "v5e-16", **changes) -> Job:
    about = {"recipe": "my recipes.py:mixed", "workdir": "/mnt/it's here", "changes": ('a="b c"',)}
    return Job(**{"name": "mixed", "machine": machine(name), **about, **changes})


WORDS = ["mixdistill", "train", "my recipes.py:mixed", "--set", 'a="b c"', "--workdir", "/mnt/it's here"]


@pytest.mark.parametrize(
    ("name", "chips", "hosts", "topology"),
    [
        ("v5e-8", 8, 2, "2x4"),
        ("2xv5e-16", 16, 4, "4x4"),
        ("v5e-16", 16, 4, "4x4"),
        ("v6e-256", 256, 64, "16x16"),
        ("v5p-8", 4, 1, "2x2x1"),
        ("v5p-128", 64, 16, "4x4x4"),
        ("h200-8", 8, 1, ""),
        ("h200-64", 64, 8, ""),
        ("h100-2", 2, 1, ""),
        ("cpu-8", 8, 1, ""),
    ],
)
def test_machines(name, chips, hosts, topology):
    found = machine(name)
    assert (found.chips, found.hosts, found.topology) == (chips, hosts, topology)
    assert found.chips_a_host * hosts == chips


@pytest.mark.parametrize(
    "name", ["v5e-12", "v5p-7", "v5p-1", "h200-12", "h200-0", "v4-8", "cpu", "cpu-0", "h200", "0xv5e-16"]
)
def test_a_machine_that_does_not_exist_lists_those_that_do(name):
    with pytest.raises(UserError, match=r"v5p-|slices are counted"):
        machine(name)


def test_a_jobset_is_valid_in_both_its_parts():
    given = {
        "image": "img:1",
        "volume": ("disk:/mnt",),
        "environment": ("TOKEN=secret/key",),
        "queue": "q",
        "spot": True,
    }
    for name in ("v5e-16", "h200-16", "v5p-128"):
        found = yaml.safe_load(jobset.write(job(name, namespace="n", priority="high", reservation="r", **given)))
        jsonschema.validate(found, JOBSET)
        inner = _inner(found)
        kubernetes_validate.validate(inner, kubernetes_validate.latest_version(), strict=True)
        pod = inner["spec"]["template"]["spec"]
        assert inner["spec"]["parallelism"] == inner["spec"]["completions"] == machine(name).hosts
        assert shlex.split(pod["containers"][0]["command"][2]) == ["exec", *WORDS, "--distributed"]
        assert pod["priorityClassName"] == "high"
        assert pod["nodeSelector"]["cloud.google.com/reservation-name"] == "r"
        assert {"name": "disk", "mountPath": "/mnt"} in pod["containers"][0]["volumeMounts"]


def test_the_validation_catches_a_misspelt_field():
    found = yaml.safe_load(jobset.write(job(image="img:1")))
    wrong = copy.deepcopy(found)
    wrong["spec"]["replicatedJobs"][0]["template"]["spec"]["paralelism"] = 4
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(_inner(wrong), kubernetes_validate.latest_version(), strict=True)
    wrong = found | {"sepc": {}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, JOBSET)


def _inner(found: dict) -> dict:
    spec = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": spec}


def test_a_tpu_slice_has_its_labels_and_a_gpu_job_its_coordinator():
    pod = jobset.jobset(job("2xv6e-256", image="i"))["spec"]["replicatedJobs"][0]
    assert pod["replicas"] == 2
    selector = pod["template"]["spec"]["template"]["spec"]["nodeSelector"]
    assert selector == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "16x16",
    }
    env = _inner(jobset.jobset(job("h200-16", image="i")))["spec"]["template"]["spec"]["containers"][0]["env"]
    assert [item["name"] for item in env] == ["JAX_COORDINATOR_ADDRESS", "MIXDISTILL_PROCESSES", "MIXDISTILL_PROCESS"]
    assert env[0]["value"] == "mixed-slice-0-0.mixed:8476"


def _what_matters(found: dict) -> dict:
    """Of a JobSet: what decides where it runs and what happens when it fails; names and the command are one's own."""
    replicated = found["spec"]["replicatedJobs"][0]
    inner = replicated["template"]["spec"]
    pod = inner["template"]["spec"]
    return {
        "apiVersion": found["apiVersion"],
        "annotations": found["metadata"]["annotations"],
        "maxRestarts": found["spec"]["failurePolicy"]["maxRestarts"],
        "rules": found["spec"]["failurePolicy"]["rules"],
        "replicas": replicated["replicas"],
        **{name: inner[name] for name in ("parallelism", "completions", "backoffLimit")},
        **{name: pod[name] for name in ("restartPolicy", "nodeSelector", "hostNetwork", "dnsPolicy")},
        "terminationGracePeriodSeconds": pod["terminationGracePeriodSeconds"],
        "limits": pod["containers"][0]["resources"]["limits"],
    }


def test_a_jobset_is_that_of_xpk_where_it_matters():
    """The fixture has these fields of what xpk writes for the command of our own xpk engine."""
    recorded = json.loads((Path(__file__).parents[1] / "golden" / "xpk_2xv5e-16.json").read_text())
    assert _what_matters(jobset.jobset(job("2xv5e-16", image="img:1"))) == recorded


@pytest.mark.skipif(shutil.which("xpk") is None, reason="xpk is not installed")
def test_the_fixture_is_what_xpk_writes():
    words = xpk.words(job("2xv5e-16", image="img:1", cluster="c", project="p", zone="us-central2-b"))
    words += ["--dry-run", "--skip-validation"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    text = done.stdout[done.stdout.index("apiVersion: jobset") :]
    found = yaml.safe_load(text[: text.index("\n[XPK]")])
    recorded = json.loads((Path(__file__).parents[1] / "golden" / "xpk_2xv5e-16.json").read_text())
    assert _what_matters(found) == recorded


def test_a_batch_script_is_bash_and_asks_for_what_it_needs(tmp_path):
    text = slurm.write(job("h200-16", partition="gpu", time="1-00:00", environment=("HF_TOKEN",)))
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE))
    assert options["nodes"] == "2"
    assert options["gpus-per-node"] == "8"
    assert options["signal"] == "TERM@120"
    assert options["open-mode"] == "append"
    assert options["export"] == "PATH,HOME,HF_TOKEN"
    assert "requeue" in options
    assert "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7" in text
    assert shlex.split(text.splitlines()[-1])[2:] == [*WORDS, "--distributed"]
    _is_bash(text)


def test_xpk_skypilot_and_tpu_vm_say_the_same_command():
    words = xpk.words(job(image="img:1", cluster="c"))
    assert shlex.split(words[-1].removeprefix("--command=")) == [*WORDS, "--distributed"]
    assert "--tpu-type=v5litepod-16" in words
    task = skypilot.task(job("h100-16", environment=("TOKEN",)))
    assert task["num_nodes"] == 2
    assert task["resources"]["accelerators"] == "H100:8"
    assert task["secrets"] == {"TOKEN": None}
    assert shlex.split(task["run"].splitlines()[-1])[1:] == [*WORDS, "--distributed"]
    script = tpu_vm.write(job(project="p", zone="z", environment=("TOKEN=name",), spot=True))
    _is_bash(script)
    remote = next(word for word in shlex.split(script) if word.startswith("--command="))
    assert shlex.split(remote.split("; exec ")[1]) == [*WORDS, "--distributed"]
    assert "secrets versions access latest --secret=name" in remote


@pytest.mark.skipif(shutil.which("sky") is None, reason="SkyPilot is not installed")
def test_skypilot_reads_its_task(tmp_path, monkeypatch):
    python = Path(shutil.which("sky")).parent / "python"
    monkeypatch.setenv("HOME", str(tmp_path))  # SkyPilot writes there
    read = "import sky, sys; task = sky.Task.from_yaml(sys.argv[1]); print(task.num_nodes, task.resources)"
    for name, nodes, chips in (("h100-16", "2", "'H100': 8"), ("v5e-16", "1", "'tpu-v5e-16': 1")):
        path = tmp_path / f"{name}.yaml"
        path.write_text(skypilot.write(job(name, spot=True)), encoding="utf-8")
        done = subprocess.run([python, "-c", read, path], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(nodes)
        assert chips in done.stdout


def _is_bash(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_no_file_holds_a_value_of_the_environment(monkeypatch):
    monkeypatch.setenv("TOKEN", "sesame-4711")
    machines = {"gke": "TOKEN=secret/key", "slurm": "TOKEN", "skypilot": "TOKEN", "tpu-vm": "TOKEN=name"}
    for engine, reference in machines.items():
        given = {"environment": (reference,), "image": "i", "project": "p", "zone": "z"}
        text = ENGINES[engine].write(job(**given))
        assert "TOKEN" in text
        assert "sesame" not in text


@pytest.mark.parametrize(
    ("engine", "changes", "message"),
    [
        (slurm, {"environment": ("TOKEN=sesame",)}, "holds no values"),
        (jobset, {"environment": ("TOKEN",), "image": "i"}, "NAME=SECRET/KEY"),
        (jobset, {"environment": ("TOKEN=x",), "image": "i"}, "NAME=SECRET/KEY"),
        (jobset, {}, "needs --image"),
        (jobset, {"image": "i", "volume": ("disk",)}, "CLAIM:PATH"),
        (xpk, {"image": "i"}, "needs --cluster"),
        (skypilot, {"machine": machine("2xv5e-16")}, "one slice here"),
        (xpk, {"image": "i", "cluster": "c", "environment": ("A",)}, "--on gke"),
        (tpu_vm, {"project": "p"}, "needs --zone"),
    ],
)
def test_what_an_engine_lacks_is_said(engine, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        engine.write(job(**changes))


@pytest.mark.parametrize("changes", [{"name": "Mixed"}, {"name": "a" * 41}, {"environment": ("A B",)}])
def test_names_are_checked(changes):
    with pytest.raises(UserError):
        job(**changes)


def test_the_command_writes_a_file_and_refuses_what_the_engine_would_pass_over(tmp_path, capsys):
    recipe = f"{Path(__file__).parents[1] / 'resume' / 'toy_recipes.py'}:steered"
    words = ["launch", recipe, "--workdir", "w", "--topology", "h200-16"]
    assert main([*words, "--on", "slurm", "--out", str(tmp_path / "job")]) == 0
    assert "srun" in (tmp_path / "job").read_text()
    assert main([*words, "--on", "slurm", "--queue", "q"]) == 2
    assert "slurm does not use --queue; it uses --partition" in capsys.readouterr().err
    assert main([*words, "--on", "slurm", "--set", "sede=3"]) == 2
    assert "seed" in capsys.readouterr().err  # the nearest setting
    assert main([*words, "--on", "slurm", "--submit"]) == 2
    assert "--out" in capsys.readouterr().err
