import ast
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse as js
from jaxsparse._plans import PlanError


PARAMS = {"Dense_0": {"kernel": jnp.ones((16, 8)), "bias": jnp.ones(8)}}


def test_an_unknown_pattern_names_the_spelling():
    with pytest.raises(ValueError, match=r"unknown pattern 'banana'.*'2:4'"):
        js.plan_sparsity(PARAMS, "banana")


@pytest.mark.parametrize("pattern", ["5:4", "0:4", "2:65", (3, 2)])
def test_numbers_out_of_range_are_refused(pattern):
    with pytest.raises(ValueError, match="1 <= n <= m <= 64"):
        js.plan_sparsity(PARAMS, pattern)


@pytest.mark.parametrize("pattern", [4, None, ["2:4"], (2.0, 4), {"a": "2:4"}])
def test_other_types_are_refused_as_patterns(pattern):
    # The library's own error, or that of the type checker that tests run with.
    words = r"give a pattern, a list of Rule or a Plan|Expected type: .*Rule"
    with pytest.raises(TypeError, match=words):
        js.plan_sparsity(PARAMS, pattern)


def test_a_tree_in_the_place_of_the_plan_is_not_printed():
    tree = {"up": {"kernel": jnp.ones((64, 128), bool)}}
    words = r"got a tree of arrays: .* masks=$|Expected type: .*Rule"
    with pytest.raises(TypeError, match=words):
        js.wrap_optimizer(optax.sgd(0.1), tree).init(tree)


def test_an_invalid_regular_expression_is_refused():
    with pytest.raises(ValueError, match=r"regular expression.*'\(a'"):
        js.Rule("(a", "2:4")


def test_a_rule_that_matches_nothing_is_refused_and_shows_a_path():
    with pytest.raises(ValueError, match=r"(?s)'Dense'.*none of the 2.*'Dense_0/bias'"):
        js.plan_sparsity(PARAMS, [js.Rule("Dense", "2:4"), js.Rule(".*", "2:4")])


def test_a_rule_that_is_a_path_and_does_not_match_it_shows_the_expression_to_write():
    # The name of a weight in e3nn-jax, in which `[0,0]` means one character.
    path = "mix/w[0,0] 32x0e,64x0e"
    params = {"mix": {"w[0,0] 32x0e,64x0e": jnp.ones((32, 64))}}
    with pytest.raises(ValueError, match="regular expression") as error:
        js.plan_sparsity(params, [js.Rule(path, "2:4", axis=0)])
    expression = ast.literal_eval(str(error.value).split("write ")[1])
    plan = js.plan_sparsity(params, [js.Rule(expression, "2:4", axis=0)])
    assert plan[path].axis == 0
    with pytest.raises(ValueError, match="regular expression") as error:
        js.Rule("w[0", None)
    expression = ast.literal_eval(str(error.value).split("write ")[1])
    assert js.Rule(expression, None).matches("w[0")


SEVERAL = {
    # name: (paths, what is given as a rule, what has to be written for it)
    "brackets": (["w[0]", "w0"], "w[0]", r"w\[0\]"),
    "plus": (["a+b", "aab"], "a+b", r"a\+b"),
    "a row": (["l0/w", "l1/w", "l2/w", "up"], "l{0..2}/w", r"l\d+/w"),
    "a row of two": (["l/w", "l0/w", "l1/w"], "l{0,1}/w", r"l\d+/w"),
    "a row with a dot": (["l.0.w", "l.1.w", "l.3.w"], "l.{0,1,3}.w", r"l\.\d+\.w"),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_a_rule_that_is_printed_so_does_not_match_something_else(name):
    paths, path, expression = SEVERAL[name]
    params = {path: jax.ShapeDtypeStruct((16, 8), "float32") for path in paths}
    rules = lambda path: [js.Rule(path, "1:4", axis=0), js.Rule(".*", "2:4", axis=0)]
    plan = js.plan_sparsity(params, [js.Rule(".*", "2:4", axis=0)])
    is_row = path not in paths
    assert not is_row or path in str(plan)
    with pytest.raises(
        ValueError, match="does not match the leaves of this name"
    ) as error:
        js.plan_sparsity(params, rules(path))
    assert ast.literal_eval(str(error.value).split("write ")[1]) == expression
    plan = js.plan_sparsity(params, rules(expression))
    sparser = [leaf.path for leaf in plan.leaves if leaf.pattern == js.NM(1, 4)]
    expected = [p for p in paths if any(x.isdigit() for x in p)] if is_row else [path]
    assert sorted(sparser) == sorted(expected)


def test_a_dot_in_a_name_is_fine():
    params = {"fc1.weight": jnp.ones((16, 16)), "fc2.weight": jnp.ones((16, 16))}
    rules = [js.Rule("fc1.weight", None), js.Rule(".*", "2:4")]
    plan = js.plan_sparsity(params, rules, layout="torch")
    assert [leaf.path for leaf in plan.sparse] == ["fc2.weight"]


def test_an_axis_out_of_range_names_the_leaf_and_its_shape():
    rule = js.Rule(".*kernel", "2:4", axis=2)
    with pytest.raises(ValueError, match=r"axis 2.*'Dense_0/kernel'.*\(16, 8\)"):
        js.plan_sparsity(PARAMS, [rule])


def test_weights_without_a_magnitude_order_stay_dense():
    weights = {
        "complex": jnp.ones((16, 8), jnp.complex64),
        "scale": jnp.ones((16, 8), jnp.float8_e8m0fnu),
        "real": jnp.arange(128.0).reshape(16, 8),
    }
    rules = [js.Rule(".*", "2:4", axis=0)]
    plan = js.plan_sparsity(weights, rules)
    assert [leaf.path for leaf in plan.sparse] == ["real"]
    assert plan["complex"].reason == "complex64 has no magnitude order"
    assert plan["scale"].reason == "float8_e8m0fnu has no magnitude order"
    masks = js.create_masks(weights, plan)
    pruned = js.mask_params(weights, masks)
    assert masks["complex"] is None
    assert (pruned["complex"] == weights["complex"]).all()
    with pytest.raises(ValueError, match=r"(?s)nothing prunable.*complex64"):
        js.plan_sparsity({"complex": weights["complex"]}, rules)


def test_a_complex_product_in_the_trace_stays_dense():
    params = {"complex": jnp.ones((16, 16), jnp.complex64), "real": jnp.ones((16, 8))}
    fn = lambda params, x: jnp.abs(x @ params["complex"]) @ params["real"]
    x = jnp.ones((2, 16))
    plan = js.plan_sparsity(params, "2:4", fn=fn, args=(x,), dense_head=False)
    assert [leaf.path for leaf in plan.sparse] == ["real"]
    assert plan["complex"].reason == "complex64 has no magnitude order"


def test_nothing_prunable_lists_every_reason():
    params = {"bias": jnp.ones(8), "Dense_0": {"kernel": jnp.ones((10, 8))}}
    with pytest.raises(ValueError, match="nothing prunable") as error:
        js.plan_sparsity(params)
    assert "bias, norm or scalar" in str(error.value)
    assert "axis 0 is not divisible by 4" in str(error.value)


@pytest.mark.parametrize(
    ("params", "rule", "path", "remedy"),
    [
        (PARAMS, js.Rule(".*kernel", "2:4", axis=2), "Dense_0/kernel", "rule_axis"),
        (PARAMS, js.Rule(".*", None), None, "rules"),
        (PARAMS, js.Rule("nothing", None), None, None),
    ],
)
def test_errors_carry_the_path_and_the_kind_of_the_remedy(params, rule, path, remedy):
    with pytest.raises(PlanError) as info:
        js.plan_sparsity(params, [rule])
    error = pickle.loads(pickle.dumps(info.value))
    assert (error.path, error.remedy) == (path, remedy)
    assert str(error) == str(info.value)
    assert error.problem in str(error)


def test_a_leaf_carries_the_kind_of_its_remedy():
    params = {**PARAMS, "experts": jnp.ones((4, 16, 8))}
    plan = js.plan_sparsity(params)
    assert plan["experts"].remedy == "fn_or_axis"
    assert plan["experts"].reason.endswith("; plan with fn=, or Rule(..., axis=...)")
    reworded = plan["experts"].with_remedies({"fn_or_axis": "use --axis"})
    assert reworded.reason == "ambiguous: 'experts' of rank 3; use --axis"
    assert plan["Dense_0/bias"].remedy is None


@pytest.mark.parametrize("params", [{}, None, {"a": None}, {"f": jax.nn.relu}])
def test_a_tree_without_arrays_has_an_empty_plan(params):
    assert js.plan_sparsity(params).sparse == ()


def test_two_leaves_with_one_path_are_refused():
    params = {"a/b": jnp.ones((16, 8)), "a": {"b": jnp.ones((16, 8))}}
    with pytest.raises(ValueError, match=r"two leaves have the path 'a/b'"):
        js.plan_sparsity(params)


def test_a_plan_of_another_tree_is_refused_by_leaf_and_both_shapes():
    plan = js.plan_sparsity(PARAMS)
    wider = {"Dense_0": {"kernel": jnp.ones((32, 8)), "bias": jnp.ones(8)}}
    with pytest.raises(ValueError, match=r"'Dense_0/kernel'.*\(16, 8\).*\(32, 8\)"):
        js.create_masks(wider, plan)
    with pytest.raises(ValueError, match=r"no leaf 'other'.*\(2,\)"):
        js.create_masks({**PARAMS, "other": jnp.ones(2)}, plan)
    with pytest.raises(ValueError, match=r"\['Dense_0/kernel'\].*does not have"):
        js.check_sparsity({"Dense_0": {"bias": jnp.ones(8)}}, plan)


def masks(mask):
    return {"Dense_0": {"kernel": mask, "bias": None}}


@pytest.mark.parametrize(
    "mask", [np.ones((8, 16), bool), np.ones((16, 2), np.uint8), np.ones(16, bool)]
)
def test_a_mask_of_another_shape_is_refused_by_leaf_and_both_shapes(mask):
    text = rf"\({', '.join(map(str, mask.shape))}.*'Dense_0/kernel'.*\(16, 8\)"
    with pytest.raises(ValueError, match=text):
        js.mask_params(PARAMS, masks(mask))


@pytest.mark.parametrize("mask", [jnp.ones((16, 8)), jnp.ones((16, 8), int), "mask"])
def test_a_mask_of_another_dtype_is_refused_by_leaf(mask):
    with pytest.raises(TypeError, match=r"'Dense_0/kernel'.*bool.*uint8"):
        js.mask_params(PARAMS, masks(mask))


def test_masks_of_another_tree_are_refused():
    whole = np.ones((16, 8), bool)
    with pytest.raises(ValueError, match=r"no entry for leaf 'Dense_0/bias'"):
        js.mask_params(PARAMS, {"Dense_0": {"kernel": whole}})
    with pytest.raises(ValueError, match=r"mask 'more' of shape \(16, 8\)"):
        js.mask_params(PARAMS, {**masks(whole), "more": whole})


def test_scores_that_do_not_fit_are_refused():
    scores = {"Dense_0": {"kernel": jnp.ones((8, 16))}}
    with pytest.raises(ValueError, match=r"'Dense_0/kernel'.*\(16, 8\).*\(8, 16\)"):
        js.create_masks(PARAMS, scores=scores)
    with pytest.raises(ValueError, match=r"'Dense_0/kernel'.*None"):
        js.create_masks(PARAMS, scores={})
