import pytest

from tests.sharding.eight_devices import run_on_eight_devices


CODE = """
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxsparse as js

kind = AxisType[sys.argv[1]]
mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
rng = np.random.default_rng(0)
draw = lambda *sizes: rng.normal(size=sizes).astype("float32")
params = {"up": draw(16, 64), "bias": draw(64), "down": draw(64, 32)}
specs = {"up": P(None, "a"), "bias": P("a"), "down": P("a", "b")}
x = draw(512, 16)


plain = lambda p, x: jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"]
plan = js.plan_sparsity(
    params, js.PerOutput(0.5), fn=plain, args=(x,), dense_head=False
)
statistics = js.collect_statistics(plain, params, [x], plan=plan)
groups = js.channel_groups(plain, params, x)
put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
sharded = {name: put(leaf, specs[name]) for name, leaf in params.items()}
# 32 channels are divided by four shards; 30 are not, and are replicated.
for size in (32, 30):
    shrink = lambda tree: js.shrink_params(
        tree, sizes={"up": size}, statistics=statistics, groups=groups
    )
    alone, together = shrink(params), shrink(sharded)
    for name, leaf in together.params.items():
        np.testing.assert_allclose(leaf, alone.params[name], rtol=1e-4, atol=1e-5)
        names = [n if n != "a" or size == 32 else None for n in specs[name]]
        target = NamedSharding(mesh, P(*names))
        assert leaf.sharding.is_equivalent_to(target, leaf.ndim), (name, leaf.sharding)
    grown = js.grow_back(together, together.params)
    for name, leaf in js.grow_back(alone, alone.params).items():
        np.testing.assert_allclose(grown[name], leaf, rtol=1e-4, atol=1e-5)


def update(stats, x):
    new = {"mean": x.mean(0), "var": x.var(0)}
    return {name: 0.9 * old + 0.1 * new[name] for name, old in stats.items()}


stats = {"mean": put(jnp.zeros(16), P("a")), "var": put(jnp.ones(16), P("a"))}
with jax.set_mesh(mesh):
    renewed = js.recalibrate_batch_stats(update, stats, [put(x, P(None, "a"))])
wide = x.astype(np.float64)
np.testing.assert_allclose(renewed["mean"], wide.mean(0), rtol=1e-4, atol=1e-5)
np.testing.assert_allclose(renewed["var"], wide.var(0), rtol=1e-4)
for name, leaf in renewed.items():
    assert leaf.sharding.is_equivalent_to(stats[name].sharding, 1), name
"""


@pytest.mark.sweep(full=["Auto"])
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_leaves_stay_sharded(kind):
    run_on_eight_devices("-c", CODE, kind)
