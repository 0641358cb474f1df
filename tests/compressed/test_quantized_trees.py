"""Quantized trees with what JAX and others do to trees."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax import export

import jaxsparse as js
from tests.compressed import quantization_oracle as oracle
from tests.files.saved import assert_same
from tests.sharding.eight_devices import run_on_eight_devices


FORMATS = ["int8", "float8_e4m3fn"]
RULES = [js.Rule(".*kernel", "2:4", axis=0), js.Rule(".*", None)]


def wide(x):
    return np.asarray(x).astype(np.float64)


def params():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(32, 16)).astype(np.float32)
    return {"up": {"kernel": jnp.asarray(kernel), "bias": jnp.ones(16)}}


def forward(params, x):
    return x @ params["up"]["kernel"] + params["up"]["bias"]


def test_reports_and_checks():
    small = js.compress_params(params(), RULES, quantize="int8")
    js.check_sparsity(small, RULES)
    report = js.sparsity_report(small, RULES)
    kernel = {leaf.path: leaf for leaf in report}["up/kernel"]
    # 256 values, four bits for each of 128 groups, 16 scales of 4 bytes.
    assert (kernel.stored_bytes, kernel.dense_bytes) == (256 + 64 + 64, 2048)
    assert "384 of 2048 B  2:4 along axis 0; stored in int8" in str(report)
    zeros = np.mean(np.asarray(js.decompress_params(small)["up"]["kernel"]) == 0)
    np.testing.assert_allclose(js.sparsity(small["up"]["kernel"]), zeros)
    assert kernel.sparsity == zeros


def test_reports_of_shapes_name_the_leaf():
    compress = lambda params: js.compress_params(params, RULES, quantize="int8")
    shapes = jax.eval_shape(compress, params())
    shapes["up"]["bias"] = params()["up"]["bias"]
    for report in (js.sparsity_report, js.check_sparsity):
        with pytest.raises(
            TypeError, match=r"'up/kernel' of shape \(32, 16\) is a Sha"
        ):
            report(shapes, RULES)


def test_a_checkpoint_of_orbax(tmp_path):
    small = js.compress_params(params(), RULES, quantize="float8_e4m3fn")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", small)
        checkpointer.wait_until_finished()
        empty = jax.tree.map(ocp.utils.to_shape_dtype_struct, small)
        restored = checkpointer.restore(tmp_path / "run", empty)
    assert_same(restored, small)


@pytest.mark.sweep(keep=["int8"])
@pytest.mark.parametrize("quantize", ["int8", "float8_e4m3fn"])
def test_programs_that_are_exported(quantize):
    small, x = js.compress_params(params(), RULES, quantize=quantize), jnp.ones((2, 32))
    run = js.sparse_apply(forward)
    program = export.export(jax.jit(lambda small, x: (run(small, x), small)))(small, x)
    y, returned = export.deserialize(program.serialize()).call(small, x)
    np.testing.assert_array_equal(y, jax.jit(run)(small, x))
    assert_same(returned, small)


@pytest.mark.sweep
def test_donated_weights():
    small, x = js.compress_params(params(), RULES, quantize="int8"), jnp.ones((2, 32))
    expected = js.sparse_apply(forward)(small, x)
    twice = jax.jit(lambda w: jax.tree.map(lambda x: x, w), donate_argnums=0)
    moved = twice(jax.tree.map(jnp.copy, small))
    np.testing.assert_array_equal(js.sparse_apply(forward)(moved, x), expected)


SHARDED = """
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxsparse as js

weight = np.random.default_rng(0).normal(size=(64, 16)).astype("float32")
x = np.random.default_rng(1).normal(size=(8, 64)).astype("float32")
multiply = jax.jit(js.nm_matmul, static_argnames="quantize_activations")
# Over explicit axes JAX asks how to reduce, so only the outputs are sharded.
cases = [
    (AxisType.Auto, P("a", "b")),
    (AxisType.Auto, P(("a", "b"), None)),
    (AxisType.Explicit, P(None, ("a", "b"))),
]
for size in (None, 16):
    expected = js.quantize_compressed(js.compress(weight), group_size=size)
    dense = np.asarray(js.decompress(expected), np.float64)
    for kind, spec in cases:
        mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
        w = jax.device_put(weight, NamedSharding(mesh, spec))
        small = js.quantize_compressed(js.compress(w), group_size=size)
        for field in ("values", "indices", "scales"):
            got, wanted = getattr(small, field), getattr(expected, field)
            np.testing.assert_array_equal(got, wanted)
        assert small.values.sharding.is_equivalent_to(w.sharding, 2)
        product = multiply(x, small)
        np.testing.assert_allclose(product, x @ dense, rtol=1e-4, atol=1e-4)
        if size is None:
            got = multiply(x, small, quantize_activations=True)
            wanted = js.nm_matmul(x, expected, quantize_activations=True)
            np.testing.assert_allclose(got, wanted, rtol=1e-6)
"""


@pytest.mark.sweep
def test_sharded_weights_are_quantized_and_multiplied_as_on_one_device():
    run_on_eight_devices("-c", SHARDED)


@pytest.mark.sweep(keep=["int8"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_tree_is_quantized_where_it_is_compressed(name):
    rng = np.random.default_rng(5)
    params = {
        "up": {"kernel": rng.normal(size=(64, 32)).astype(ml_dtypes.bfloat16)},
        "bias": np.ones(32, np.float32),
    }
    small = js.compress_params(params, quantize=name)
    kernel = small["up"]["kernel"]
    assert kernel.nbytes == 64 * 32 // 2 + 64 * 32 // 8 + 4 * 32
    assert small["bias"] is params["bias"]
    dense = js.mask_params(params, js.create_masks(params))["up"]["kernel"]
    scales = oracle.absmax_scales(dense, name, [0])
    result = js.decompress_params(small)["up"]["kernel"]
    assert result.dtype == jnp.bfloat16
    half = 2.0**-8 * abs(wide(dense))  # rounded to bfloat16 again
    bound = oracle.half_step(wide(dense), scales, name) * (1 + 2.0**-8) + half
    assert (abs(wide(result) - wide(dense)) <= bound).all()


@pytest.mark.sweep
def test_axes_of_a_matmul_share_a_scale_in_a_tree():
    rng = np.random.default_rng(6)
    params = {"out": rng.normal(size=(2, 8, 5)).astype(np.float32)}
    fn = lambda params, x: jnp.einsum("bhk,hko->bo", x, params["out"])
    rules = [js.Rule(".*", "2:4", sizes=None)]
    args = (np.ones((3, 2, 8), np.float32),)
    plan = js.plan_sparsity(params, rules, fn=fn, args=args, dense_head=False)
    small = js.compress_params(params, plan, quantize="int8")
    assert small["out"].scales.shape == (1, 1, 5)


def test_a_format_is_checked_before_the_tree():
    with pytest.raises(ValueError, match=r"to 'int4': give one of \['int8', 'float8"):
        js.compress_params({}, quantize="int4")


def test_a_tree_names_the_leaf_that_cannot_be_quantized():
    plan = [js.Rule(".*", "2:4", axis=0, sizes=None)]
    params = {"a": {"w": jnp.full((8, 4), jnp.nan)}}
    with pytest.raises(ValueError, match=r"leaf 'a/w': .*NaN or infinite"):
        js.compress_params(params, plan, quantize="int8")
    with pytest.raises(TypeError, match=r"leaf 'w': .*int8 cannot be quantized"):
        js.compress_params({"w": jnp.ones((8, 4), "int8")}, plan, quantize="int8")
