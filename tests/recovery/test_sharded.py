"""Recovery of sharded trees, over automatic and explicit axes, as on one device."""

import pytest

from tests.sharding.eight_devices import run_on_eight_devices


# In a separate process, since the number of devices is fixed once JAX has started.
CODE = """
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxsparse as js

kind = AxisType[sys.argv[1]]
mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
draw = lambda seed, *shape: np.random.default_rng(seed).normal(size=shape).astype("f")
key = jax.random.key(0)
same = lambda x, y, atol=1e-5: np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol)


def same_shards(x, weight):
    assert x.sharding.is_equivalent_to(weight.sharding, weight.ndim), x.sharding


weight, inputs = draw(0, 32, 16), draw(1, 64, 32)
fn = lambda params, x: x @ params["w"]
rules = [js.Rule(".*", "2:4", axis=0, sizes=None)]
plain = {"w": jnp.asarray(weight)}
plan = js.plan_sparsity(plain, rules)
logits = js.init_mask_logits(plain, plan)
soft = js.learned_masks(logits, key=key)
hard = js.learned_masks(logits)
adapters = js.create_adapters(plain, plan, rank=3, key=key)
adapters = jax.tree.map(lambda x: x + 0.1, adapters)
changed = js.apply_adapters(plain, adapters, hard)
statistics = js.collect_statistics(fn, plain, [inputs], plan=plan)
result = js.MagnitudeSearcher(plan).search(plain)
repaired = js.compensate_low_rank(plain, result, statistics, rank=2)

# Groups of four rows lie within a shard; on the last one all are split.
for spec in (P("a", "b"), P("a"), P(None, ("a", "b")), P(("a", "b"), None)):
    params = {"w": put(weight, spec)}
    sharded = js.init_mask_logits(params, plan)
    same(sharded["w"].values, logits["w"].values)
    if spec != P(("a", "b"), None):
        target = NamedSharding(mesh, P(*spec, *[None] * (3 - len(spec))))
        assert sharded["w"].values.sharding.is_equivalent_to(target, 3)
    masks = js.learned_masks(sharded)
    assert np.array_equal(masks["w"], hard["w"])
    same(js.learned_masks(sharded, key=key)["w"], soft["w"])
    if spec != P(("a", "b"), None):
        same_shards(js.learned_masks(sharded, key=key)["w"], params["w"])
        same_shards(masks["w"], params["w"])
    loss = lambda logits: jnp.sum(js.learned_masks(logits, key=key)["w"] ** 2)
    with jax.set_mesh(mesh):
        slope = jax.jit(jax.grad(loss))(sharded)
    same_shards(slope["w"].values, sharded["w"].values)
    moved = js.apply_adapters(params, adapters, masks)
    same(moved["w"], changed["w"])
    same_shards(moved["w"], params["w"])
    found = js.MagnitudeSearcher(plan).search(params)
    factors, report = js.compensate_low_rank(params, found, statistics, rank=2)
    same(factors["w"].product(), repaired.factors["w"].product(), atol=1e-3)
    errors = [x.leaves[0].compensated_error for x in (report, repaired.report)]
    same(*errors)
    assert js.allocate(plan, params, statistics, budget=0.5) == plan
    assert js.outlier_ratios(params, plan, statistics)["w"] == 0

student, teacher = draw(2, 8, 4, 16), draw(3, 8, 4, 16)
top_loss = jax.jit(lambda *pair: js.distillation_loss(*pair, top_k=3))
loss = jax.jit(js.distillation_loss)(student, teacher)
feature_loss = jax.jit(js.feature_loss)(student, teacher)
for spec in (P("a"), P("a", None, "b"), P(None, "a")):
    pair = [put(x, spec) for x in (student, teacher)]
    with jax.set_mesh(mesh):
        features = jax.jit(js.feature_loss)(*pair)
        value, slope = jax.jit(jax.value_and_grad(js.distillation_loss))(*pair)
    same(features, feature_loss)
    same(value, loss)
    same_shards(slope, pair[0])
    if spec != P("a", None, "b"):
        same(top_loss(*pair), top_loss(student, teacher))
"""


@pytest.mark.sweep(full=["Auto"])
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_what_is_sharded_stays_sharded(kind):
    run_on_eight_devices("-c", CODE, kind)
