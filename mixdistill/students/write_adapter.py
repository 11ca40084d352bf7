"""Adapters as PEFT reads them: adapter_config.json and adapter_model.safetensors."""

import json
import tempfile
from pathlib import Path

import jax
import numpy as np

from mixdistill.errors import UserError
from mixdistill.students import safetensors_file
from mixdistill.students.adapters import ADAPTERS, Lora, adapted
from mixdistill.students.safetensors_file import Spec
from mixdistill.students.student import Params, Student
from mixdistill.students.tensor_names import Entry, entries
from mixdistill.students.trees import at


def save_peft(student: Student, lora: Lora, params: Params, folder: Path | str, *, base: str = "") -> None:
    """Writes the adapters of `with_adapters(student, lora)`; `base` names the model they belong to. Raises `UserError`
    when the folder exists, for foreign modules, and for a matrix that PEFT's linear layers do not have (embeddings)."""
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists already; give a folder that does not")
    if student.config is None:
        raise UserError("this student is a foreign module; only adapters of decoders can be written for PEFT")
    matrices = adapted(student.axes, lora)
    known = {entry.path: entry for entry in entries(student.config, matrices)}
    strange = ["/".join(path) for path in matrices if path not in known or not known[path].inputs]
    if strange:
        raise UserError(f"PEFT's LoRA of linear layers has no {', '.join(strange)}; merge it with `export --to`")
    tensors: dict[str, np.ndarray] = {}
    for path in matrices:
        tensors |= _tensors(known[path], jax.device_get(at(params[ADAPTERS], path)), lora.rank)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(entry.name.split(".")[-2] for entry in known.values()),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as unfinished:
        inner = Path(unfinished) / "folder"
        inner.mkdir()
        (inner / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
        specs = {name: Spec(value.dtype.name, value.shape) for name, value in tensors.items()}
        safetensors_file.write(inner / "adapter_model.safetensors", specs, tensors.items())
        inner.rename(folder)


def _tensors(entry: Entry, adapter: dict[str, np.ndarray], rank: int) -> dict[str, np.ndarray]:
    """PEFT keeps A as [rank, in] and B as [out, rank]."""
    a, b = adapter["a"], adapter["b"]
    if not entry.layered:
        a, b = a[None], b[None]
    tensors = {}
    for name, one, other in zip(entry.names(len(a)), a, b, strict=True):
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = one.reshape(-1, rank).T
        tensors[f"{module}.lora_B.weight"] = other.reshape(rank, -1).T
    return tensors
