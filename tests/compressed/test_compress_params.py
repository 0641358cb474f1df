"""Compressed trees against masked ones."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import jaxsparse as js
from tests.compressed.layout_oracle import assert_same_bits, masked, random_weight
from tests.sharding.eight_devices import run_on_eight_devices


def tree():
    rng = np.random.default_rng(0)
    kernel = lambda: jnp.asarray(random_weight(rng, (16, 8), np.float32))
    return {
        "a": {"kernel": kernel(), "bias": kernel()[0]},
        "b": {"kernel": kernel()},
        "c": {"kernel": kernel()},
        "d": {"kernel": kernel()},
    }


RULES = [
    js.Rule("a/.*", "2:4"),
    js.Rule("b/.*", js.Unstructured(0.5)),
    js.Rule("c/.*", "1:2"),
    js.Rule("d/.*", "2:4 transposable"),
]


def assert_trees_are_equal(result, expected):
    assert jax.tree.structure(result) == jax.tree.structure(expected)
    jax.tree.map(assert_same_bits, result, jax.tree.map(np.asarray, expected))


def test_sparsity_counts_zeros_that_are_not_stored():
    params = {"a": jnp.arange(1.0, 33.0).reshape(16, 2), "b": jnp.array([0.0, 1.0])}
    rules = [js.Rule("a", "1:4", axis=0, sizes=None)]
    small = js.compress_params(params, rules)
    assert isinstance(small["a"], js.Compressed)
    assert js.sparsity(small) == np.float32(25 / 34)  # 24 of 32 and 1 of 2
    assert jax.jit(js.sparsity)(small) == np.float32(25 / 34)


@pytest.mark.sweep
@pytest.mark.parametrize("given", ["no masks", "masks", "packed masks"])
def test_decompressed_params_equal_masked_params(given):
    params, plan = tree(), js.plan_sparsity(tree(), RULES, dense_head=False)
    masks = js.create_masks(params, plan, packed=given == "packed masks")
    result = js.compress_params(
        params, plan, masks=None if given == "no masks" else masks
    )
    kinds = {name: type(result[name]["kernel"]) for name in result}
    assert [name for name in kinds if kinds[name] is js.Compressed] == ["a", "d"]
    assert result["a"]["bias"] is params["a"]["bias"]
    assert result["d"]["kernel"].pattern == js.NM(2, 4, transposable=True)
    expected = js.mask_params(params, masks)
    assert_trees_are_equal(js.decompress_params(result), expected)
    assert_trees_are_equal(jax.jit(js.decompress_params)(result), expected)
    again = js.compress_params(expected, plan)  # nothing more is pruned
    assert_trees_are_equal(js.decompress_params(again), expected)


def test_leaves_without_a_mask_stay_dense():
    params, plan = tree(), js.plan_sparsity(tree(), RULES, dense_head=False)
    masks = js.create_masks(params, plan)
    masks["a"]["kernel"] = None
    result = js.compress_params(params, plan, masks=masks)
    assert result["a"]["kernel"] is params["a"]["kernel"]


@pytest.mark.sweep
def test_models_of_flax_and_equinox():
    net = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
    state = nnx.state(net, nnx.Param)
    rules = [js.Rule(".*kernel", "2:4", axis=0), js.Rule(".*weight", "2:4", axis=1)]
    plan = js.plan_sparsity(state, rules[:1])
    expected = js.mask_params(state, js.create_masks(state, plan))
    result = js.decompress_params(js.compress_params(state, plan))
    assert_trees_are_equal(result, expected)

    mlp = eqx.nn.MLP(16, 16, 32, depth=1, key=jax.random.key(0))
    plan = js.plan_sparsity(mlp, rules[1:])
    small = js.compress_params(mlp, plan)
    assert small.layers[0].weight.nbytes == mlp.layers[0].weight.nbytes * 17 / 32
    np.testing.assert_array_equal(
        js.decompress_params(small)(jnp.ones(16)),
        js.mask_params(mlp, js.create_masks(mlp, plan))(jnp.ones(16)),
    )


def test_errors_name_the_leaf():
    params, plan = tree(), js.plan_sparsity(tree(), RULES, dense_head=False)
    masks = jax.tree.map(lambda x: np.ones(x.shape, bool), params)
    with pytest.raises(ValueError, match=r"'a/bias' .*'dense: bias"):
        js.compress_params(params, plan, masks=masks)
    masks["a"]["bias"] = None
    with pytest.raises(ValueError, match=r"leaf 'a/kernel': the mask keeps 4 of a gr"):
        js.compress_params(params, plan, masks=masks)


def test_a_checkpoint_of_orbax(tmp_path):
    params = js.compress_params(tree(), [RULES[0], js.Rule(".*", None)])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", params)
        checkpointer.wait_until_finished()
        empty = jax.tree.map(ocp.utils.to_shape_dtype_struct, params)
        restored = checkpointer.restore(tmp_path / "run", empty)
    assert restored["a"]["kernel"].pattern == js.NM(2, 4)
    assert_trees_are_equal(restored, params)


SHARDED = """
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxsparse as js
from tests import reference
from tests.compressed.layout_oracle import compressed

weight = np.random.default_rng(0).normal(size=(64, 16)).astype("float32")
x = np.ones((4, 64), "float32")
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    for n, m in ((2, 4), (1, 8)):
        mask = reference.top_n_mask(weight, n, m, 0)
        dense, packed = np.where(mask, weight, 0), reference.pack(mask, 0)
        values, indices = compressed(weight, mask, n, m, 0)
        for spec, given in ((P("a", "b"), packed), (P(("a", "b"), None), mask)):
            sharded = jax.device_put(weight, NamedSharding(mesh, spec))
            result = js.compress(sharded, (n, m), mask=given)
            np.testing.assert_array_equal(result.values, values)
            np.testing.assert_array_equal(result.indices, indices)
            back = js.decompress(result)
            np.testing.assert_array_equal(back, dense)
            assert back.sharding.is_equivalent_to(sharded.sharding, 2)
            np.testing.assert_allclose(js.nm_matmul(x, result), x @ dense, rtol=1e-4)
"""


@pytest.mark.sweep
def test_sharded_weights_are_compressed_as_on_one_device():
    run_on_eight_devices("-c", SHARDED)


def test_pruned_weights_are_plus_zero_even_where_they_were_nan():
    weight = np.full((16, 8), np.nan, np.float32)
    mask = np.zeros(weight.shape, bool)
    mask[::4] = True
    rules = [js.Rule(".*", "2:4", axis=0)]
    result = js.compress_params({"w": weight}, rules, masks={"w": mask})
    assert_same_bits(js.decompress_params(result)["w"], masked(weight, mask))


UNDER_A_MESH = """
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxsparse as js

mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
weight = np.random.default_rng(0).normal(size=(64, 128)).astype("float32")
wanted = js.mask_params({"w": weight}, {"w": js.create_asp_mask(weight)})["w"]
compress = lambda w: js.compress(w, axis=0)
with jax.set_mesh(mesh):
    for spec in (P("a", "b"), P(None, "b"), P("a", None), P(("a", "b"), None)):
        sharded = jax.device_put(weight, NamedSharding(mesh, spec))
        for run in (compress, jax.jit(compress)):
            np.testing.assert_array_equal(js.decompress(run(sharded)), wanted)
"""


@pytest.mark.sweep(full=["test_weights_are_compressed_under"])
def test_weights_are_compressed_under_an_explicit_mesh():
    run_on_eight_devices("-c", UNDER_A_MESH)
