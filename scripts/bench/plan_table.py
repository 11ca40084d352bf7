"""The table of docs/pods.md: known shapes planned for machines that are not here.

    python scripts/bench/plan_table.py [ROW ...]

Each row is a compilation of minutes; give numbers of rows to plan those alone. TPUs need libtpu, GPUs the plugin of the
cuda extra. The recipes are `mixdistill plan scripts/bench/plan_table.py:NAME --topology ...`, with --fast.
"""

import dataclasses
import sys

from mixdistill.data.mixture import Mixture
from mixdistill.gates import worst_token
from mixdistill.losses import cross_entropy
from mixdistill.mesh import preset
from mixdistill.objective import Objective, Term
from mixdistill.plan.worker import ask
from mixdistill.recipe import Recipe, Stage
from mixdistill.students import families
from mixdistill.students.config import DecoderConfig

GIB = 2**30
ROWS = (
    ("qwen3_0_6b", "v5e-16", 32),
    ("qwen3_0_6b", "h200-8", 32),
    ("qwen3_1_7b", "v5e-16", 32),
    ("qwen3_1_7b", "h200-8", 16),
    ("qwen3_8b", "v5p-128", 64),
    ("llama3_1_8b", "h200-8", 16),
    ("llama3_1_8b", "v6e-256", 256),
)


def qwen3_0_6b() -> Recipe:
    """596 million parameters."""
    return _recipe(families.qwen3_0_6b())


def qwen3_1_7b() -> Recipe:
    """1.7 billion."""
    return _recipe(families.qwen3_1_7b())


def qwen3_8b() -> Recipe:
    """8.2 billion."""
    return _recipe(families.qwen3_8b())


def llama3_1_8b() -> Recipe:
    """8.0 billion."""
    return _recipe(families.llama3_1_8b())


def _recipe(config: DecoderConfig) -> Recipe:
    objective = Objective({"imitate": Term(cross_entropy, gates=(worst_token,))})
    stage = Stage("imitate", 1000, Mixture(shards="shards", rows=32, length=2048), objective)
    student = dataclasses.replace(config, remat="full")
    return Recipe(name="shape", student=student, stages=(stage,), **preset("fsdp")._asdict())


def line(name: str, topology: str, rows: int) -> str:
    """One row in markdown."""
    request = {"recipe": f"{__file__}:{name}", "set": [f"stages.0.source.rows={rows}"], "changes": {}}
    (plan,) = ask({**request, "topology": topology, "stage": 0, "fast": True, "memory": None})["stages"]
    memory, roof = plan["memory"], plan["roofline"]
    state = (memory["params"] + memory["optimizer"]) / GIB
    rest = (plan["needed"] - memory["params"] - memory["optimizer"]) / GIB
    sent = sum(t["sent"] for t in plan["collectives"].values()) / GIB
    return (
        f"| {name} | {topology} | {plan['rows']} x {plan['length']} | {state:.2f} | {rest:.2f} | "
        f"{plan['needed'] / GIB:.2f} of {plan['capacity'] / GIB:.2f}{'' if plan['fits'] else ': no'} | {sent:.2f} | "
        f"{roof['seconds'] * 1e3:,.0f} ({roof['limit']}) | {roof['mfu']:.0%} | {roof['tokens_per_second']:,.0f} | "
        f"{plan['compiler']['seconds']:.0f} |"
    )


if __name__ == "__main__":
    for row in [ROWS[int(number)] for number in sys.argv[1:]] or ROWS:
        print(line(*row), flush=True)
