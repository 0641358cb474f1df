"""Tree functions on all kinds of trees that JAX users have."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict

import jaxsparse as js
from tests import reference


def kernel(seed, shape=(16, 8)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


W0, W1 = kernel(0), kernel(1, (32, 8))
BIAS = np.arange(8.0, dtype=np.float32)


def pruned(weight, axis=0):
    """Returns a weight pruned to 2:4 by the oracle."""
    mask = reference.best_mask_by_rank(weight, 2, 4, axis)
    return np.where(mask, weight, np.float32(0))


class Layer(nnx.Module):
    def __init__(self, weight):
        self.kernel = nnx.Param(jnp.asarray(weight))
        self.bias = nnx.Param(jnp.asarray(BIAS))


class Model(nnx.Module):
    def __init__(self):
        self.a = Layer(W0)
        self.layers = nnx.List([Layer(W1)])
        self.rngs = nnx.Rngs(0)


TREES = {
    "dict": {"a": {"kernel": W0, "bias": BIAS}, "layers": {"0": {"kernel": W1}}},
    "frozen": FrozenDict({"a": {"kernel": W0}, "b": {"kernel": W1}}),
    "list": [{"kernel": W0}, {"kernel": W1, "bias": BIAS}],
    "tuple": ({"kernel": W0, "step": np.int32(3)}, [{"kernel": W1}]),
    "none": {"a": {"kernel": W0}, "b": None, "c": {"kernel": W1}},
    "cut": {"a": {"kernel": W0}, "b": optax.MaskedNode(), "c": {"kernel": W1}},
    "callable": {"f": jax.nn.relu, "a": {"kernel": W0}, "b": {"kernel": W1}},
    "integer": {"a": {"kernel": W0}, "count": jnp.arange(4), "b": {"kernel": W1}},
    "key": {"a": {"kernel": W0}, "rng": jax.random.key(0), "b": {"kernel": W1}},
    "bool": {"a": {"kernel": W0}, "flags": np.ones(4, bool), "b": {"kernel": W1}},
    "nnx_state": nnx.state(Model()),
    "nnx_params": nnx.state(Model(), nnx.Param),
    "nnx_module": Model(),
}


def leaves_of(tree):
    return [x for x in jax.tree.leaves(tree) if hasattr(x, "shape")]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", TREES)
def test_every_kind_of_tree_is_pruned_alike(name, packed):
    tree = TREES[name]
    masks = js.create_masks(tree, "2:4", packed=packed)
    sparse = js.mask_params(tree, masks)
    assert jax.tree.structure(sparse) == jax.tree.structure(tree)
    weights = {(16, 8): pruned(W0), (32, 8): pruned(W1)}
    seen = 0
    for before, after in zip(leaves_of(tree), leaves_of(sparse), strict=True):
        expected = weights.get(before.shape)
        if expected is None:
            assert after is before
        else:
            np.testing.assert_array_equal(np.asarray(after), expected)
            seen += 1
    assert seen == 2
    js.check_sparsity(sparse, "2:4")
    report = str(js.sparsity_report(tree, "2:4"))
    assert report.count("2:4 along axis 0") == 2


def test_shapes_are_enough_for_plans_and_for_tracing_masks():
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREES["list"]))
    plan = js.plan_sparsity(shapes)
    assert plan == js.plan_sparsity(TREES["list"])
    masks = jax.eval_shape(lambda p: js.create_masks(p, plan, packed=True), shapes)
    assert masks[0]["kernel"] == jax.ShapeDtypeStruct((2, 8), jnp.uint8)


def test_masks_map_beside_their_params():
    tree = TREES["dict"]
    masks = js.create_masks(tree)
    kept = jax.tree.map(lambda w, m: w.size if m is None else int(m.sum()), tree, masks)
    assert kept == {"a": {"kernel": 64, "bias": 8}, "layers": {"0": {"kernel": 128}}}


def test_masks_fit_whatever_container_has_the_same_paths():
    model = Model()
    for source in (model, nnx.state(model), nnx.state(model, nnx.Param)):
        masks = js.create_masks(source)
        sparse = js.mask_params(nnx.state(model, nnx.Param), masks)
        np.testing.assert_array_equal(sparse.a.kernel[...], pruned(W0))


def test_a_packed_mask_is_the_little_endian_bits_along_the_group_axis():
    masks = js.create_masks(TREES["dict"], packed=True)
    oracle = reference.best_mask_by_rank(W0, 2, 4, 0)
    np.testing.assert_array_equal(masks["a"]["kernel"], reference.pack(oracle, 0))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(16, 8, 5), (4, 20, 9), (1, 1, 12), (8, 1, 3)])
def test_masks_packed_along_any_axis_are_understood(axis, shape):
    weight = kernel(2, shape)
    mask = np.random.default_rng(3).random(shape) < 0.5
    expected = np.where(mask, weight, np.float32(0))
    for either in (mask, reference.pack(mask, axis)):
        result = js.mask_params({"w": weight}, {"w": either})["w"]
        np.testing.assert_array_equal(result, expected)


def test_masking_makes_exact_positive_zeros_of_anything():
    weight = np.array([[np.nan], [-np.inf], [-0.0], [-3.0]], np.float32)
    mask = np.zeros((4, 1), bool)
    result = np.asarray(js.mask_params({"w": weight}, {"w": mask})["w"])
    np.testing.assert_array_equal(result.view(np.uint32), 0)
    kept = js.mask_params({"w": weight}, {"w": ~mask})["w"]
    np.testing.assert_array_equal(
        np.asarray(kept).view(np.uint32), weight.view(np.uint32)
    )


def test_scores_replace_magnitudes_and_may_be_negative():
    scores = -np.abs(W0)  # keep the smallest
    masks = js.create_masks({"kernel": W0}, scores={"kernel": scores})
    expected = reference.best_mask_by_rank(1 / np.abs(W0), 2, 4, 0)
    np.testing.assert_array_equal(masks["kernel"], expected)


def test_scores_order_infinities_zeros_and_nan():
    scores = np.array([-np.inf, -0.0, 0.0, np.nan, -1.0, np.inf, -2.0, 3.0], np.float32)
    weight = np.ones((8, 1), np.float32)
    rules = [js.Rule(".*", "2:4", sizes=None)]
    masks = js.create_masks(
        {"kernel": weight}, rules, scores={"kernel": scores[:, None]}
    )
    # Of the tied zeros the first; NaN above all; minus infinity is never chosen.
    expected = [False, True, False, True, False, True, False, True]
    np.testing.assert_array_equal(masks["kernel"][:, 0], expected)


def test_sparsity_counts_exact_zeros_only():
    tiny = np.float32(1e-42)  # subnormal: float comparison on a CPU calls it zero
    params = {
        "a": np.array([0.0, -0.0, tiny, np.nan], np.float32),
        "f": jax.nn.relu,
        "key": jax.random.key(0),
        "n": np.array([0, 1, 2, 3]),
    }
    assert float(js.sparsity(params)) == 3 / 8
    assert float(js.sparsity({})) == 0.0


def test_sparsity_is_traceable():
    params = {"w": jnp.eye(8)}
    assert float(jax.jit(js.sparsity)(params)) == 56 / 64


def test_equinox_modules_keep_their_callables():
    model = eqx.nn.MLP(16, 8, 32, 2, key=jax.random.key(0))
    rules = [js.Rule(r".*weight", "2:4", axis=-1)]
    sparse = js.mask_params(model, js.create_masks(model, rules))
    js.check_sparsity(sparse, rules)
    for before, after in zip(model.layers, sparse.layers, strict=True):
        expected = pruned(np.asarray(before.weight), axis=1)
        np.testing.assert_array_equal(after.weight, expected)
    assert sparse(jnp.ones(16)).shape == (8,)


def test_a_shared_layer_is_refused_by_name():
    class Tied(nnx.Module):
        def __init__(self):
            self.first = Layer(W0)
            self.second = self.first

    model = Tied()
    calls = [
        lambda: js.plan_sparsity(model),
        lambda: js.create_masks(model),
        lambda: js.mask_params(model, {}),
        lambda: js.sparsity(model),
        lambda: js.flax_axes(model),
        lambda: js.check_sparsity({"inside": model}),
        lambda: js.sparsity_report(model),
        lambda: js.MagnitudeSearcher().search(model),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"first/.*second/.*nnx.state.*nnx.update"):
            call()


def test_a_shared_layer_stays_shared_through_its_state():
    class Tied(nnx.Module):
        def __init__(self):
            self.first = Layer(W0)
            self.second = self.first

    model = Tied()
    state = nnx.state(model, nnx.Param)
    nnx.update(model, js.mask_params(state, js.create_masks(state)))
    assert model.first is model.second
    np.testing.assert_array_equal(model.second.kernel[...], pruned(W0))


def test_the_magnitude_searcher_returns_params_masks_and_plan():
    params = TREES["dict"]
    plan = js.plan_sparsity(params)
    searcher: js.Searcher = js.MagnitudeSearcher(plan, packed=True)
    result = searcher.search(params, statistics="not needed")
    assert result.plan is plan
    np.testing.assert_array_equal(result.params["a"]["kernel"], pruned(W0))
    oracle = reference.best_mask_by_rank(W0, 2, 4, 0)
    np.testing.assert_array_equal(
        result.masks["a"]["kernel"], reference.pack(oracle, 0)
    )


def test_tree_functions_run_under_vmap_and_strict_promotion():
    stack = {"kernel": jnp.stack([kernel(i) for i in range(3)])}
    prune = lambda p: js.mask_params(p, js.create_masks(p, packed=True))
    with jax.numpy_dtype_promotion("strict"):
        result = jax.jit(jax.vmap(prune))(stack)
    for i in range(3):
        np.testing.assert_array_equal(result["kernel"][i], pruned(kernel(i)))


AXIS_0 = [js.Rule("a|b", "2:4", axis=0), js.Rule(".*", None)]


def test_donated_leaves_are_masked_in_their_own_memory():
    params = {"a": jnp.asarray(W0), "dense": jnp.asarray(BIAS), "b": jnp.asarray(W1)}
    masks = js.create_masks(params, AXIS_0)
    pointers = {name: leaf.unsafe_buffer_pointer() for name, leaf in params.items()}
    masked = js.mask_params(params, masks, donate=True)
    np.testing.assert_array_equal(masked["a"], pruned(W0))
    np.testing.assert_array_equal(masked["b"], pruned(W1))
    assert masked["dense"] is params["dense"]
    assert params["a"].is_deleted()
    assert not params["dense"].is_deleted()
    after = {name: leaf.unsafe_buffer_pointer() for name, leaf in masked.items()}
    assert after == pointers


def test_donation_inside_a_trace_leaves_the_callers_arrays_alone():
    params = {"a": jnp.asarray(W0)}
    masks = js.create_masks(params, AXIS_0)
    mask = jax.jit(lambda params: js.mask_params(params, masks, donate=True))
    np.testing.assert_array_equal(mask(params)["a"], pruned(W0))
    assert not params["a"].is_deleted()


def test_an_array_that_is_two_leaves_is_not_donated():
    weight = jnp.asarray(W0)
    params = {"a": weight, "b": weight}
    masks = js.create_masks(params, AXIS_0)
    with pytest.raises(ValueError, match=r"'a' and 'b' are the same array.*\(16, 8\)"):
        js.mask_params(params, masks, donate=True)
    assert not weight.is_deleted()
    dense = {"a": weight, "b": {"shared": BIAS, "again": BIAS}}
    masks = js.create_masks(dense, AXIS_0)
    masked = js.mask_params(dense, masks, donate=True)
    np.testing.assert_array_equal(masked["a"], pruned(W0))
