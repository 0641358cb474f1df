"""`check_sparsity` names the faults of every leaf; reports state what masks keep."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js


def test_check_names_every_leaf_and_its_first_bad_group():
    a = np.zeros((16, 8), np.float32)
    a[8:11, 5] = 1.0  # the group that starts at (8, 5) keeps three
    b = np.zeros((2, 16, 8), np.float32)
    b[1, 4:8, 0] = np.nan
    good = np.zeros((16, 8), np.float32)
    good[::2] = 1.0
    rules = [js.Rule(".*", "2:4", axis=-2)]
    with pytest.raises(ValueError, match="not sparse as planned") as error:
        js.check_sparsity({"a": a, "b": b, "good": good}, rules)
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert "'a' of shape (16, 8)" in lines[1]
    assert "1 of 32 groups" in lines[1]
    assert lines[1].endswith("the first, with 3, starts at (8, 5)")
    assert lines[2].endswith("the first, with 4, starts at (1, 4, 0)")


def test_an_error_has_the_faults_of_leaves_by_path():
    dense = np.ones((16, 8), np.float32)
    rules = [
        js.Rule("a", js.NM(2, 4, transposable=True), axis=0),
        js.Rule("[bc]", js.Unstructured(0.5, across_leaves=True), axis=0),
    ]
    tree = {"a": dense, "b": dense, "c": dense}
    with pytest.raises(ValueError, match="not sparse as planned") as error:
        js.check_sparsity(tree, rules)
    copy = pickle.loads(pickle.dumps(error.value))
    assert str(copy) == str(error.value)
    faults = copy.faults
    assert sorted(faults) == ["a", "b", "c"]
    along_both = faults["a"].splitlines()
    assert [line.startswith("'a' of shape (16, 8)") for line in along_both] == [
        True
    ] * 2
    # Leaves that share a threshold share their fault, which the text states once.
    assert faults["b"] == faults["c"]
    # 16 x 8 weights have 32 groups along either axis; b and c have 256 weights.
    every_weight = "256 of 256 weights are not zero"
    both_axes = "32 of 32 groups; 32 of 32 groups"
    assert copy.counts == {"a": both_axes, "b": every_weight, "c": every_weight}
    lines = str(error.value).splitlines()[1:]
    assert lines == [f"  {line}" for line in (*along_both, faults["b"])]


def test_subnormal_weights_are_not_zeros():
    weight = np.zeros((16, 8), np.float32)
    weight[:3, 0] = 1e-42
    with pytest.raises(ValueError, match=r"with 3, starts at \(0, 0\)"):
        js.check_sparsity({"kernel": weight})
    weight[0, 0] = -0.0
    js.check_sparsity({"kernel": weight})


def test_a_report_states_zeros_magnitude_kept_and_non_finite_values():
    weight = np.tile(np.array([1.0, 2.0, 3.0, 4.0], np.float32), 4)[:, None]
    weight = np.repeat(weight, 8, axis=1)
    broken = weight.copy()
    broken[0, 0], broken[1, 1] = np.nan, np.inf
    params = {
        "a": {"kernel": weight},
        "b": {"kernel": broken, "bias": np.zeros(8, np.float32)},
        "c": {"kernel": np.where(weight > 2, weight, 0)},
    }
    report = {leaf.path: leaf for leaf in js.sparsity_report(params)}
    # Of 1 + 2 + 3 + 4 the mask keeps 3 + 4.
    assert report["a/kernel"].magnitude_kept == pytest.approx(0.7)
    assert report["a/kernel"].sparsity == 0.0
    assert report["b/kernel"].nonfinite == 2
    assert report["b/bias"].reason == "bias, norm or scalar"
    assert report["b/bias"].magnitude_kept is None
    assert report["c/kernel"].sparsity == 0.5
    assert report["c/kernel"].magnitude_kept == 1.0
    assert "2 values are NaN or infinite" in str(js.sparsity_report(params))


def test_a_report_on_masks_says_what_they_keep():
    weight = jnp.arange(1.0, 129.0).reshape(16, 8)
    mask = np.zeros((16, 8), bool)
    mask[8:] = True
    report = js.sparsity_report({"w": weight, "b": jnp.ones(3)}, {"w": mask, "b": None})
    kept = sum(range(65, 129)) / sum(range(1, 129))
    assert next(iter(report)).magnitude_kept is None  # the bias comes first
    assert report.leaves[1].magnitude_kept == pytest.approx(kept)
