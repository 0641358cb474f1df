"""Unstructured, block and channel patterns on trees, against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from tests import reference


RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(12, 8)).astype(np.float32)
OTHER = (3 * RNG.normal(size=(8, 16))).astype(np.float32)
TREE = {"Dense_0": {"kernel": KERNEL, "bias": np.ones(8, np.float32)}}
TWO = {"Dense_0": {"kernel": KERNEL}, "Dense_1": {"kernel": OTHER}}


def top(scores, kept):
    order = sorted(range(scores.size), key=lambda i: (-scores.flat[i], i))
    return np.isin(np.arange(scores.size), order[:kept]).reshape(scores.shape)


def plan_of(tree, pattern):
    return js.plan_sparsity(tree, pattern, dense_head=False)


@pytest.mark.parametrize("packed", [False, True])
def test_unstructured_keeps_the_largest_of_a_leaf(packed):
    plan = plan_of(TREE, js.Unstructured(0.9))
    masks = js.create_masks(TREE, plan, packed=packed)
    expected = top(abs(KERNEL), 10)  # of 96; 9.6 to the nearest weight
    mask = np.asarray(masks["Dense_0"]["kernel"])
    if packed:
        np.testing.assert_array_equal(mask, reference.pack(expected, 0))
    else:
        np.testing.assert_array_equal(mask, expected)
    assert masks["Dense_0"]["bias"] is None
    pruned = js.mask_params(TREE, masks)
    np.testing.assert_array_equal(
        pruned["Dense_0"]["kernel"], np.where(expected, KERNEL, 0)
    )
    js.check_sparsity(pruned, plan)


def top_of_rows(scores, kept, rows):
    """Returns the mask of the highest scores of each row; `rows` are row axes."""
    mask = np.zeros(scores.shape, bool)
    for index in np.ndindex(*(scores.shape[axis] for axis in rows)):
        row = [slice(None)] * scores.ndim
        for axis, i in zip(rows, index, strict=True):
            row[axis] = i
        mask[tuple(row)] = top(scores[tuple(row)], kept)
    return mask


@pytest.mark.parametrize("packed", [False, True])
def test_every_output_keeps_as_many_as_every_other(packed):
    plan = plan_of(TREE, js.PerOutput(0.7))
    assert plan["Dense_0/kernel"].decision == "70% per output"
    expected = top_of_rows(abs(KERNEL), 4, (1,))  # of 12; 3.6 to the nearest weight
    masks = js.create_masks(TREE, plan, packed=packed)
    mask = np.asarray(masks["Dense_0"]["kernel"])
    wanted = reference.pack(expected, 0) if packed else expected
    np.testing.assert_array_equal(mask, wanted)
    pruned = js.mask_params(TREE, masks)
    js.check_sparsity(pruned, plan)
    pruned["Dense_0"]["kernel"] = np.array(pruned["Dense_0"]["kernel"])
    pruned["Dense_0"]["kernel"][:, 5] = 1
    with pytest.raises(ValueError, match=r"1 of 8 outputs keep more than 4; the first"):
        js.check_sparsity(pruned, plan)


@pytest.mark.sweep
def test_outputs_of_convolutions_stacks_and_attention_by_scores_and_ties():
    """Outputs are the pairs of a batch and an output axis; windows are summed over."""
    rng = np.random.default_rng(3)
    whole = lambda *sizes: rng.integers(-2, 3, sizes).astype(np.float32)  # many ties
    tree = {"conv": whole(3, 2, 4, 5), "stack": whole(2, 6, 4), "heads": whole(4, 3, 5)}

    def fn(params, x, y):
        windows = jax.lax.conv_general_dilated(
            x,
            params["conv"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        stack = jnp.einsum("bi,lio->blo", y, params["stack"])
        return (
            windows.sum()
            + stack.sum()
            + jnp.einsum("bhd,hdo->bo", windows[:, :4, :3, 0], params["heads"])
        )

    rules = [js.Rule(".*", js.PerOutput(0.5), sizes=None)]
    args = jax.ShapeDtypeStruct((2, 6, 6, 4), "float32"), jnp.ones((2, 6))
    plan = js.plan_sparsity(tree, rules, fn=fn, args=args, dense_head=False)
    masks = js.create_masks(tree, plan, scores=tree)
    expected = {
        "conv": top_of_rows(tree["conv"], 12, (3,)),
        "stack": top_of_rows(tree["stack"], 3, (0, 2)),
        "heads": top_of_rows(tree["heads"], 6, (2,)),
    }
    jax.tree.map(np.testing.assert_array_equal, masks, expected)
    js.check_sparsity(js.mask_params(tree, masks), plan)


def test_one_threshold_across_leaves():
    plan = plan_of(TWO, js.Unstructured(0.75, across_leaves=True))
    masks = js.create_masks(TWO, plan)
    together = np.concatenate([abs(KERNEL).ravel(), abs(OTHER).ravel()])
    expected = top(together, 56)  # a quarter of 96 + 128
    flat = [np.asarray(masks[name]["kernel"]).ravel() for name in TWO]
    np.testing.assert_array_equal(np.concatenate(flat), expected)
    js.check_sparsity(js.mask_params(TWO, masks), plan)
    with pytest.raises(ValueError, match=r"1 more leaves, 75% unst.*: 224 of 224 wei"):
        js.check_sparsity(TWO, plan)


def test_across_leaves_of_several_dtypes():
    tree = {
        "Dense_0": {"kernel": jnp.asarray(KERNEL, jnp.bfloat16)},
        "Dense_1": {"kernel": jnp.asarray(OTHER, jnp.float16)},
    }
    plan = plan_of(tree, js.Unstructured(0.5, across_leaves=True))
    with jax.numpy_dtype_promotion("strict"):
        masks = js.create_masks(tree, plan)
    values = [np.asarray(x["kernel"]).astype(np.float64) for x in tree.values()]
    expected = top(abs(np.concatenate([v.ravel() for v in values])), 112)
    flat = [np.asarray(masks[name]["kernel"]).ravel() for name in tree]
    np.testing.assert_array_equal(np.concatenate(flat), expected)


@pytest.mark.parametrize("shape", [(4, 4), (1, 8), (6, 2), (12, 8)])
def test_blocks_with_the_largest_sums_stay(shape):
    height, width = shape
    pattern = js.Block(shape, 0.5)
    rows, columns = 12 // height, 8 // width
    sums = np.zeros((rows, columns))
    for i in range(12):
        for j in range(8):
            sums[i // height, j // width] += abs(float(KERNEL[i, j]))
    blocks = top(sums, round(rows * columns / 2))
    expected = np.kron(blocks, np.ones(shape, bool)).astype(bool)
    plan = plan_of(TREE, pattern)
    masks = js.create_masks(TREE, plan)
    np.testing.assert_array_equal(masks["Dense_0"]["kernel"], expected)
    js.check_sparsity(js.mask_params(TREE, masks), plan)


def test_channels_with_the_largest_sums_stay_layer_by_layer():
    """A stack of two layers (2, 12, 8): each layer has channels of its own."""
    stack = np.stack([KERNEL, 2 * RNG.normal(size=(12, 8))]).astype(np.float32)

    def scanned(params, x):
        return jax.lax.scan(
            lambda x, w: (jnp.tanh(x @ w)[:, :1] + x, None), x, params["w"]
        )

    plan = js.plan_sparsity(
        {"w": stack},
        [js.Rule("w", js.Channel(0.25))],
        fn=scanned,
        args=(np.ones((3, 12), np.float32),),
        dense_head=False,
    )
    assert plan["w"].batch == (0,)
    masks = js.create_masks({"w": stack}, plan)
    expected = top(abs(stack.astype(np.float64)).sum(1), 12)
    np.testing.assert_array_equal(
        masks["w"], np.broadcast_to(expected[:, None, :], stack.shape)
    )
    js.check_sparsity(js.mask_params({"w": stack}, masks), plan)
    with pytest.raises(
        ValueError, match="16 of 16 channels are not zero, but at most 12"
    ):
        js.check_sparsity({"w": stack}, plan)


def test_given_scores_may_be_negative_and_sum_in_blocks():
    scores = {"Dense_0": {"kernel": -np.arange(96.0).reshape(12, 8)}}
    plan = plan_of(TREE, js.Block((6, 8), 0.5))
    masks = js.create_masks(TREE, plan, scores=scores)
    np.testing.assert_array_equal(
        masks["Dense_0"]["kernel"],
        np.repeat([[True], [False]], 6, 0) & np.ones(8, bool),
    )


def test_what_does_not_fit_stays_dense_with_the_reason():
    tree = {"Dense_0": {"kernel": KERNEL}, "Dense_1": {"kernel": OTHER}}
    plan = js.plan_sparsity(
        tree,
        [
            js.Rule("Dense_0/.*", js.Block((5, 4), 0.5)),
            js.Rule("Dense_1/.*", js.Unstructured(0.5)),
        ],
        dense_head=False,
    )
    assert plan["Dense_0/kernel"].decision == (
        "dense: axis 0 is not divisible by 5; pass Rule(..., Block(...)) of another "
        "shape"
    )
    vector = js.plan_sparsity(
        {"v": np.ones(16), "w": OTHER},
        [js.Rule("v", js.Channel(0.5), axis=0), js.Rule("w", js.Channel(0.5), axis=0)],
    )
    assert vector["v"].decision == "dense: no output axis"
    assert vector["w"].decision == "50% of channels"


def test_plans_and_reports_say_what_is_pruned():
    plan = plan_of(
        TWO,
        [
            js.Rule("Dense_0/.*", js.Block((4, 4), 0.5)),
            js.Rule(".*", js.Unstructured(0.9, across_leaves=True)),
        ],
    )
    assert str(plan).splitlines()[1:] == [
        "Dense_0/kernel  12x8   50% of 4x4 blocks along axes 0 and 1",
        "Dense_1/kernel  8x16   90% unstructured across leaves",
        # Half of 12 * 8, and 115 of 8 * 16, of 224.
        "total           224    2 of 2 pruned: 72.8 % of weights",
    ]
    report = js.sparsity_report(TWO, plan)
    assert "50% of 4x4 blocks along axes 0 and 1" in str(report)
    kept = np.sort(abs(OTHER).ravel())[-13:].sum() / abs(OTHER).sum()
    (_, other) = report
    np.testing.assert_allclose(other.magnitude_kept, kept, rtol=1e-5)


@pytest.mark.parametrize("sparsity", [0.0, 1.0, float("nan"), -0.5, 1.5])
def test_targets_that_are_no_fraction_are_refused(sparsity):
    message = "more than 0 and less than 1, got"
    for make in (js.Unstructured, js.Channel, lambda s: js.Block((4, 4), s)):
        with pytest.raises(ValueError, match=message):
            make(sparsity)


def test_blocks_have_two_sizes():
    for shape in ((4,), (4.0, 4), 4):
        with pytest.raises(TypeError):
            js.Block(shape, 0.5)
    with pytest.raises(ValueError, match=r"at least 1, got \(0, 4\)"):
        js.Block((0, 4), 0.5)


def test_empty_leaves_stay_dense():
    tree = {"a": {"kernel": np.ones((0, 8))}, "b": {"kernel": np.eye(16, 8)}}
    for pattern in ("2:4", js.Unstructured(0.5), js.Channel(0.5)):
        plan = plan_of(tree, pattern)
        assert plan["a/kernel"].decision == "dense: empty"
        assert js.create_masks(tree, plan)["a"]["kernel"] is None


def test_array_functions_take_nm_patterns_only():
    with pytest.raises(TypeError, match="use create_masks"):
        js.create_asp_mask(KERNEL, js.Unstructured(0.5))
