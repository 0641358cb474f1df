"""Sharded leaves: channels stay on their device."""

import pytest

from tests.sharding.eight_devices import run_on_eight_devices


CODE = """
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxsparse as js
from tests.channels.handmade_groups import MODELS, random_params

kind = AxisType[sys.argv[1]]
mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
specs = {"up": P("b", "a"), "bias": P("a"), "down": P("a", None)}
_, shapes, groups = MODELS["mlp"]
params = {
    name: jax.device_put(leaf, NamedSharding(mesh, specs[name]))
    for name, leaf in random_params(shapes).items()
}
x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 16)), "float32")


def fn(params, x):
    if kind is AxisType.Explicit:
        whole = NamedSharding(mesh, P())
        params = {name: jax.sharding.reshard(w, whole) for name, w in params.items()}
    hidden = jax.nn.relu(x @ params["up"] + params["bias"])
    return hidden @ params["down"]


rules = [js.Rule("down", "2:4", axis=0), js.Rule(".*", None)]
result = js.permute_channels(params, rules, fn, (x,), groups=groups())
outputs, others = jax.jit(fn)(params, x), jax.jit(fn)(result.params, x)
np.testing.assert_allclose(outputs, others, rtol=1e-4, atol=1e-4)
order = result.permutations[1]
assert np.array_equal(order // 16, np.arange(64) // 16), order  # 16 on each device
assert not np.array_equal(order, np.arange(64))
assert result.gains[1].after > result.gains[1].before
for name, leaf in result.params.items():
    assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim)
    back = result.invert(result.params)[name]
    assert np.array_equal(back, params[name])
"""


@pytest.mark.sweep(full=["Auto"])
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_channels_stay_on_their_device(kind):
    run_on_eight_devices("-c", CODE, kind)
