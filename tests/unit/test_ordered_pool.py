import operator
import os
import time

import pytest

from mixdistill.errors import UserError
from mixdistill.traces.ordered_pool import ordered_map


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers):
    sleeps = [0.05, 0.0, 0.02, 0.0, 0.0, 0.01] * 3
    began = time.monotonic()
    assert list(ordered_map(time.sleep, sleeps, workers=workers)) == [None] * len(sleeps)
    assert time.monotonic() - began < 60
    assert list(ordered_map(operator.neg, range(30), workers=workers)) == [-i for i in range(30)]


def test_jobs_are_read_only_a_little_ahead():
    read = []

    def jobs():
        for i in range(1000):
            read.append(i)
            yield i

    results = ordered_map(operator.neg, jobs(), workers=2)
    assert next(results) == 0
    results.close()
    assert len(read) < 20


def test_error_of_a_job_is_raised_here():
    with pytest.raises(TypeError):
        list(ordered_map(operator.neg, [1, "a", 2], workers=2))


def test_dead_worker_is_named():
    with pytest.raises(UserError, match="a worker process died"):
        list(ordered_map(os._exit, [3], workers=2))
