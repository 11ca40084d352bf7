"""The battery as pytest fixtures: `pytest_plugins = ["mixdistill.check.fixture"]` in a conftest.py or test file.

def test_my_loss(check_loss):
    check_loss(my_loss)
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from mixdistill import check


@pytest.fixture(name="check_loss")
def _check_loss() -> Callable[..., None]:
    """`check_loss(loss, **options)` fails with every property of the battery that does not hold."""
    return _failing(check.check_loss)


@pytest.fixture(name="check_gate")
def _check_gate() -> Callable[..., None]:
    """`check_gate(gate, **options)` fails with every property of the battery that does not hold."""
    return _failing(check.check_gate)


@pytest.fixture(name="check_objective")
def _check_objective() -> Callable[..., None]:
    """`check_objective(objective)` fails with every property of the battery that does not hold."""
    return _failing(check.check_objective)


def _failing(run: Callable[..., Sequence[check.Finding]]) -> Callable[..., None]:
    def checked(what: Any, **options: Any) -> None:
        failed = [f"{finding.name}: {finding.detail}" for finding in run(what, **options) if finding.passed is False]
        if failed:
            pytest.fail("\n".join(failed), pytrace=False)

    return checked
