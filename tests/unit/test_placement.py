from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mixdistill.data.placement import part_of, place, rows_held, share
from mixdistill.errors import UserError
from mixdistill.mesh import FSDP, TENSOR, make_mesh

BATCH = {"tokens": np.arange(8 * 3).reshape(8, 3).astype(np.int32), "topk": np.zeros((8, 3, 2), np.float32)}


@pytest.mark.parametrize(
    ("shape", "rules", "rows"),
    [({"data": 8}, FSDP, 1), ({"data": 2, "fsdp": 4}, FSDP, 1), ({"fsdp": 2, "tensor": 4}, TENSOR, 4)],
)
def test_rows_lie_over_the_batch_axes(shape, rules, rows):
    mesh = make_mesh(shape)
    placed = place(BATCH, mesh, rules)
    for name, array in placed.items():
        assert isinstance(array, jax.Array)
        assert array.sharding.spec == PartitionSpec(("data", "fsdp"))
        assert {shard.data.shape for shard in array.addressable_shards} == {(rows, *BATCH[name].shape[1:])}
        np.testing.assert_array_equal(array, BATCH[name])
    assert share(mesh, rules, 8) == (0, 1)


class Device(SimpleNamespace):
    __hash__ = object.__hash__


def devices(*spans: tuple[int, slice]) -> Any:
    """A sharding whose devices belong to these processes and hold these rows."""
    held = {Device(process_index=process): (span,) for process, span in spans}
    return SimpleNamespace(devices_indices_map=lambda shape: held)


def test_processes_that_hold_the_same_rows_read_the_same_part():
    # Four processes of one device each: rows split in two, each half on two processes.
    split = devices((0, slice(0, 4)), (1, slice(4, 8)), (2, slice(0, 4)), (3, slice(4, 8)))
    held = rows_held(split, 8)
    assert [part_of(held, 8, process) for process in range(4)] == [(0, 2), (1, 2), (0, 2), (1, 2)]


def test_a_process_reads_all_rows_of_its_devices():
    split = devices((0, slice(0, 2)), (0, slice(2, 4)), (1, slice(4, 6)), (1, slice(6, None)))
    assert rows_held(split, 8) == {0: (0, 1, 2, 3), 1: (4, 5, 6, 7)}
    assert part_of(rows_held(split, 8), 8, 1) == (1, 2)


def test_processes_may_not_overlap_in_part():
    held = rows_held(devices((0, slice(0, 4)), (0, slice(4, 8)), (1, slice(4, 8))), 8)
    with pytest.raises(UserError, match="overlap in part"):
        part_of(held, 8, 0)
