import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from mixdistill.errors import UserError
from mixdistill.mesh import CONTEXT, FSDP, PRESETS, TENSOR, Rules, check_divides, make_mesh, preset, sharding, shardings


def test_axes_that_are_not_named_have_size_one_and_minus_one_is_the_rest():
    assert dict(make_mesh({"fsdp": -1, "tensor": 2}).shape) == {"data": 1, "fsdp": 4, "context": 1, "tensor": 2}
    assert make_mesh({"data": 8}).axis_types == (AxisType.Auto,) * 4
    assert make_mesh({}, jax.devices()[:1]).size == 1


@pytest.mark.parametrize("shape", [{"data": 3}, {"fsdp": 16}, {"data": 4}, {"data": -1, "fsdp": -1}, {"fsdp": 0}, {}])
def test_a_mesh_that_does_not_fit_says_how_many_devices_there_are(shape):
    with pytest.raises(UserError, match="there are 8 cpu devices"):
        make_mesh(shape)


def test_unknown_axes_name_the_nearest():
    with pytest.raises(UserError, match=r"'fdsp'; did you mean 'fsdp'"):
        make_mesh({"fdsp": 8})
    with pytest.raises(UserError, match="rule for 'embed'"):
        Rules({"embed": "tensors"})


def test_rules_give_specs():
    assert FSDP.spec(("batch", "sequence")) == PartitionSpec(("data", "fsdp"), None)
    assert FSDP.spec(("vocab", "embed")) == PartitionSpec(None, "fsdp")
    assert TENSOR.spec(("layers", "embed", "mlp")) == PartitionSpec(None, "fsdp", "tensor")
    assert TENSOR.spec((None, "unheard of")) == PartitionSpec(None, None)


def test_one_mesh_axis_cannot_split_an_array_twice():
    with pytest.raises(UserError, match="twice over mesh axis 'tensor'"):
        TENSOR.spec(("heads", "mlp"))
    with pytest.raises(UserError, match="twice over mesh axis 'data'"):
        Rules({"batch": ("data", "data")})


def test_shardings_follow_a_tree_of_axes():
    mesh = make_mesh({"fsdp": 8})
    tree = {"a": {"w": ("embed", "mlp")}, "b": (None,)}
    assert shardings(mesh, FSDP, tree) == {
        "a": {"w": sharding(mesh, FSDP, ("embed", "mlp"))},
        "b": sharding(mesh, FSDP, (None,)),
    }


def test_sizes_must_divide():
    mesh = make_mesh({"fsdp": 8})
    check_divides(mesh, FSDP, ("embed", "mlp"), (16, 3), "w")
    with pytest.raises(UserError, match=r"w: axis 'embed' has size 12, which 8 devices"):
        check_divides(mesh, FSDP, ("embed", "mlp"), (12, 3), "w")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_use_all_devices_and_take_sizes(name):
    layout = preset(name)
    assert make_mesh(layout.mesh).size == 8
    assert preset("fsdp_tp", tensor=4).mesh == {"fsdp": -1, "tensor": 4}
    assert preset("fsdp_tp_context").rules.spec(("batch", "sequence")) == PartitionSpec(("data", "fsdp"), "context")


def test_unknown_presets_and_axes_are_refused():
    with pytest.raises(UserError, match=r"unknown preset 'fsdp_pt'; did you mean 'fsdp_tp'"):
        preset("fsdp_pt")
    with pytest.raises(UserError, match="unknown axis of preset fsdp: 'tensor'"):
        preset("fsdp", tensor=2)
    with pytest.raises(UserError, match="twice over mesh axis 'context'"):
        CONTEXT.spec(("sequence", "sequence"))


@dataclasses.dataclass(frozen=True)
class Slice:
    """A device as far as laying out slices needs one."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


def test_only_data_crosses_slices():
    devices = [Slice(number, number // 4) for number in range(8)]
    mesh = make_mesh({"data": 4, "fsdp": 2}, devices)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    np.testing.assert_array_equal(slices, np.broadcast_to(np.array([0, 0, 1, 1])[:, None, None, None], slices.shape))
    with pytest.raises(UserError, match="data has size 1, which 2 slices do not divide"):
        make_mesh({"fsdp": 8}, devices)
