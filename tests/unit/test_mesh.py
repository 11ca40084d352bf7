import jax
import pytest
from jax.sharding import AxisType, PartitionSpec

from mixdistill.errors import UserError
from mixdistill.mesh import FSDP, TENSOR, Rules, check_divides, make_mesh, sharding, shardings


def test_axes_that_are_not_named_have_size_one_and_minus_one_is_the_rest():
    assert dict(make_mesh({"fsdp": -1, "tensor": 2}).shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    assert make_mesh({"data": 8}).axis_types == (AxisType.Auto,) * 3
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
