import itertools

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mixdistill.data.packing import fill


def best_sum(sizes: list[int], space: int) -> int:
    """Tries every choice that holds the first size."""
    choices = itertools.product((False, True), repeat=len(sizes) - 1)
    sums = (sizes[0] + sum(itertools.compress(sizes[1:], choice)) for choice in choices)
    return max(total for total in sums if total <= space)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=9), st.integers(20, 60))
@example([20], 20)
@example([1, 20, 20, 20], 60)
@settings(max_examples=200, deadline=None)
def test_fills_best_with_the_oldest(sizes, space):
    chosen = fill(sizes, space)
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    assert sum(sizes[i] for i in chosen) == best_sum(sizes, space)


def test_prefers_the_older_of_equal_ones():
    assert fill([3, 4, 4, 4, 4], 11) == [0, 1, 2]
    assert fill([5, 2, 1, 2, 1], 8) == [0, 1, 2]
