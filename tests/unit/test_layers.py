"""Imports run one way: a room may import only rooms above it (docs/architecture.md lists them in the same order)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the bottom of the stack to the top: a room may import itself and any room before it.
ROOMS = [
    "errors",
    "traces",
    "mesh",
    "chips",
    "data",
    "students",
    "kernels",
    "signals",
    "losses",
    "gates",
    "objective",
    "memory",
    "routers",
    "check",
    "optimizers",
    "diagnostics",
    "generation",
    "recipe",
    "evaluation",
    "training",
    "plan",
    "reports",
    "launch",
    "studies",
    "commands",
    "cli",
]
HOST_ONLY = ("errors", "traces", "chips", "cli")  # no jax, no flax: they run in data workers and before `--help`


def modules() -> Iterator[Path]:
    return (
        path
        for path in (ROOT / "mixdistill").rglob("*.py")
        if path.parent != ROOT / "mixdistill" or path.stem != "__init__"
    )


def room(path: Path) -> str:
    return path.relative_to(ROOT / "mixdistill").parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_rooms(path: Path) -> set[str]:
    names = (name.split(".") for name in imports(path))
    return {parts[1] for parts in names if parts[0] == "mixdistill" and len(parts) > 1} & set(ROOMS)


def test_every_room_has_its_place():
    assert {room(path) for path in modules()} <= set(ROOMS)


@pytest.mark.parametrize("path", sorted(modules()), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path):
    below = set(ROOMS[: ROOMS.index(room(path)) + 1])
    assert imported_rooms(path) <= below


@pytest.mark.parametrize("path", sorted(modules()), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_students_import_flax_and_host_rooms_import_no_jax(path: Path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert "flax" not in roots or room(path) == "students"
    assert not (roots & {"jax", "jaxlib", "optax"}) or room(path) not in HOST_ONLY


def test_nothing_of_the_product_imports_experiments():
    assert not [path for path in modules() if any(name.split(".")[0] == "experiments" for name in imports(path))]


def test_help_loads_no_heavy_library():
    code = (
        "import sys, contextlib, io\n"
        "from mixdistill.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    try: main(['--help'])\n"
        "    except SystemExit: pass\n"
        "print(*sorted({'jax', 'flax', 'grain', 'numpy', 'pyarrow', 'tokenizers'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []
