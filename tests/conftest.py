"""Eight host devices for every test, and compiled programs kept beside the checkout: set before jax is imported."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

# Most of the suite's time is compilation: a third of it is saved where code for small arrays is not polished, and most
# programs are the same as last time and in the other test process.
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

# What a shell starts in the background ignores Ctrl-C, and so does whatever that starts; tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """A file's tests stay in one process, as its fixtures are costly; but each study is a unit of its own."""
    for item in items:
        alone = item.path.name == "test_studies.py"
        item.add_marker(pytest.mark.xdist_group(item.nodeid if alone else str(item.path)))
