"""Sparsities by the shapes of leaves, by hand and in exact fractions."""

from fractions import Fraction

import jax
import numpy as np
import pytest

import jaxsparse as js


def shapes(**sizes):
    return {
        name: {"kernel": jax.ShapeDtypeStruct(shape, "float32")}
        for name, shape in sizes.items()
    }


def plan_of(tree, sparsity):
    return js.plan_sparsity(tree, js.Unstructured(sparsity), dense_head=False)


def kept_of(plan):
    """Weights kept by leaf; all of a dense one."""
    sizes = {leaf.path: int(np.prod(leaf.shape)) for leaf in plan.leaves}
    return {
        leaf.path: sizes[leaf.path]
        if leaf.pattern is None
        else round(sizes[leaf.path] * (1 - leaf.pattern.sparsity))
        for leaf in plan.leaves
    }


def test_two_matrices_by_hand():
    """(8 + 8) and (32 + 32) of 80 share 218 weights: 43.6 and 174.4."""
    plan = js.distribute_by_erdos_renyi(plan_of(shapes(a=(8, 8), b=(32, 32)), 0.8))
    assert kept_of(plan) == {"a/kernel": 44, "b/kernel": 174}


def test_a_convolution_counts_its_kernel_sizes():
    """(3 + 3 + 8 + 16) of 3x3x8x16 and (64 + 32) of 64x32, half of 1152 + 2048."""
    tree = {
        "Conv_0": {"kernel": jax.ShapeDtypeStruct((3, 3, 8, 16), "float32")},
        "Dense_0": {"kernel": jax.ShapeDtypeStruct((64, 32), "float32")},
    }
    plan = js.distribute_by_erdos_renyi(plan_of(tree, 0.5))
    share = Fraction(1600, 30 + 96)
    assert kept_of(plan) == {
        "Conv_0/kernel": round(30 * share),
        "Dense_0/kernel": round(96 * share),
    }


def test_what_deserves_more_than_all_of_its_weights_is_dense():
    """Half of 16 + 4096 weights; of 8 + 128 shares the small leaf would get 121."""
    plan = js.distribute_by_erdos_renyi(plan_of(shapes(a=(4, 4), b=(64, 64)), 0.5))
    assert plan["a/kernel"].decision.startswith("dense: Erdos-Renyi")
    assert kept_of(plan) == {"a/kernel": 16, "b/kernel": 2056 - 16}


def test_axes_that_act_together_count_as_one():
    """Attention's query (16, 4, 8) is a 16 x 32 matrix, stacked layers are two."""
    tree = {
        "w": jax.ShapeDtypeStruct((2, 16, 4, 8), "float32"),
        "v": jax.ShapeDtypeStruct((32, 32), "float32"),
    }

    def fn(params, x):
        def layer(x, w):
            return x + (x @ w.reshape(16, 32))[:, :16], None

        x, _ = jax.lax.scan(layer, x, params["w"])
        return x.repeat(2, 1) @ params["v"]

    args = (jax.ShapeDtypeStruct((3, 16), "float32"),)
    plan = js.plan_sparsity(
        tree, js.Unstructured(0.5), fn=fn, args=args, dense_head=False
    )
    assert (plan["w"].batch, plan["w"].contracted, plan["w"].output) == (
        (0,),
        (1,),
        (2, 3),
    )
    kept = kept_of(js.distribute_by_erdos_renyi(plan))
    share = Fraction(1024, 2 * 48 + 64)
    assert kept == {"w": round(2 * 48 * share), "v": round(64 * share)}


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8, 0.9, 0.99])
@pytest.mark.parametrize("shared", [False, True])
def test_the_whole_keeps_its_sparsity_within_a_weight_a_leaf(sparsity, shared):
    rng = np.random.default_rng(int(100 * sparsity))
    sizes = {f"l{i}": tuple(map(int, rng.integers(1, 90, 2))) for i in range(12)}
    plan = plan_of(shapes(**sizes), sparsity)
    if shared:
        plan = js.distribute_by_erdos_renyi(plan)
    total = sum(a * b for a, b in sizes.values())
    assert abs(sum(kept_of(plan).values()) - (1 - sparsity) * total) <= len(sizes)


def test_masks_hit_the_counts_with_ties():
    rng = np.random.default_rng(0)
    tree = {
        "a": {"kernel": rng.integers(-2, 3, (8, 8)).astype(np.float32)},
        "b": {"kernel": rng.integers(-2, 3, (32, 32)).astype(np.float32)},
    }
    plan = js.distribute_by_erdos_renyi(plan_of(tree, 0.8))
    masks = js.create_masks(tree, plan)
    assert (int(masks["a"]["kernel"].sum()), int(masks["b"]["kernel"].sum())) == (
        44,
        174,
    )


def test_other_patterns_stay_as_they_are():
    rules = [js.Rule("a/.*", "2:4", sizes=None), js.Rule(".*", js.Unstructured(0.5))]
    plan = js.plan_sparsity(shapes(a=(8, 8), b=(32, 32)), rules, dense_head=False)
    assert js.distribute_by_erdos_renyi(plan) == plan  # alone, `b` keeps its half
    with pytest.raises(ValueError, match="no leaf of this plan"):
        js.distribute_by_erdos_renyi(
            js.plan_sparsity(shapes(b=(32, 32)), "2:4", dense_head=False)
        )
