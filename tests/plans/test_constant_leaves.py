"""Leaves whose weights are all equal, so that ties decide which are kept."""

import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxsparse as js
from tests.sharding.eight_devices import run_on_eight_devices


RNG = np.random.default_rng(0)
NOTE = "2:4 along axis 0, constant: ties decide"


def signs(shape):
    return RNG.choice([-1.0, 1.0], shape).astype(np.float32)


@pytest.mark.parametrize(
    ("leaf", "is_constant"),
    [
        (np.zeros((16, 8), np.float32), True),
        (jnp.zeros((16, 8), jnp.bfloat16), True),
        (jnp.full((16, 8), 0.1, jnp.float8_e4m3fn), True),
        (np.full((16, 8), -3, np.int8), True),
        (np.full((16, 8), 3, ml_dtypes.int4), True),
        (signs((16, 8)), True),  # magnitudes are equal
        (np.where(np.eye(16, 8) > 0, 0.0, -0.0), True),  # both zeros rank the same
        (np.eye(16, 8)[::-1].copy(), False),  # the first row is constant
        (np.r_[np.zeros(127), 1e-45].reshape(16, 8).astype("float32"), False),
        (jnp.zeros((16, 8)).at[15, 7].set(1e-45), False),  # subnormals are ranked
        (np.full((16, 8), 2**31 - 1, np.int32), True),
        (np.r_[np.full(127, 2**24), 2**24 + 1].reshape(16, 8), False),  # not as floats
        (np.full((16, 8), np.nan, np.float32), True),  # all NaNs rank the same
        (jax.ShapeDtypeStruct((16, 8), "float32"), False),
    ],
)
def test_a_plan_says_that_ties_decide(leaf, is_constant):
    params = {"a": {"kernel": leaf}, "bias": np.zeros(8, np.float32)}
    plan = js.plan_sparsity(params, "2:4")
    assert plan["a/kernel"].decision == (NOTE if is_constant else NOTE.split(",")[0])
    assert "constant" not in plan["bias"].decision
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        report = js.sparsity_report(params, "2:4")
        assert report.leaves[0].decision == plan["a/kernel"].decision


def test_a_note_is_added_to_others_and_follows_the_weights():
    params = {
        "w": RNG.normal(size=(16, 16)).astype(np.float32),
        "v": np.zeros((16, 16), np.float32),
    }
    fn = lambda p, x: x @ (p["w"] + p["v"])
    plan = js.plan_sparsity(params, fn=fn, args=(np.ones((2, 16)),))
    assert plan["v"].decision == "2:4 along axis 0, until merged, constant: ties decide"
    assert plan["w"].decision == "2:4 along axis 0, until merged"
    swapped = {"w": params["v"], "v": params["w"]}
    v, w = js.sparsity_report(swapped, plan)
    assert v.decision == "2:4 along axis 0, until merged"
    assert w.decision == "2:4 along axis 0, until merged, constant: ties decide"


def test_create_masks_warns_once_of_all_constant_leaves():
    kernel = RNG.normal(size=(16, 8)).astype(np.float32)
    params = {
        "a": {"kernel": np.zeros((16, 8), np.float32)},
        "b": {"kernel": jnp.ones((16, 8))},
        "c": {"kernel": kernel},
    }
    with pytest.warns(UserWarning, match="ties decide") as warned:
        masks = js.create_masks(params)
    (warning,) = warned
    assert "['a/kernel', 'b/kernel'] are equal" in str(warning.message)
    assert "random_scores" in str(warning.message)
    # The same half of the inputs for every output, as the warning says.
    expected = np.tile([[True], [True], [False], [False]], (4, 8))
    np.testing.assert_array_equal(masks["a"]["kernel"], expected)

    scores = {**params, "a": params["c"], "b": params["c"], "c": params["b"]}
    with pytest.warns(UserWarning, match=r"all scores of \['c/kernel'\]"):
        js.create_masks(params, scores=scores)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = js.random_scores(params, jax.random.key(0))
        mask = np.asarray(js.create_masks(params, scores=scores)["a"]["kernel"])
        jax.jit(js.create_masks)(params)  # values are not known
        js.create_masks(params, [js.Rule("c/.*", "2:4")])
    assert len(np.unique(mask, axis=1).T) > 1
    assert (mask.reshape(4, 4, 8).sum(1) == 2).all()


def test_signalling_nans_are_no_reason_to_warn():
    bits = np.full((16, 8), 0x7F800001, np.uint32)
    kernel = np.where(np.arange(8) < 4, bits, 0x3F800000).astype(np.uint32)
    masks = js.create_masks({"kernel": kernel.view(np.float32)})
    assert (np.asarray(masks["kernel"]).reshape(4, 4, 8).sum(1) == 2).all()


def test_plans_under_a_trace_ask_for_no_values():
    def step(params):
        plan = js.plan_sparsity(params)
        assert "constant" not in str(plan)
        return js.mask_params(params, js.create_masks(params, plan))

    params = {"a": {"kernel": jnp.zeros((16, 8))}}
    assert jax.jit(step)(params)["a"]["kernel"].shape == (16, 8)
    jax.vmap(step)(jax.tree.map(lambda x: x[None], params))


def test_constants_of_a_traced_function_add_nothing_to_it():
    constant = {"kernel": jnp.zeros((16, 8))}
    other = {"kernel": jnp.arange(128.0).reshape(16, 8)}

    def pruner(params):
        return lambda x: js.mask_params(x, js.create_masks(params))

    programs = [jax.make_jaxpr(pruner(params))(other) for params in (constant, other)]
    assert str(programs[0]) == str(programs[1])
    first = jax.jit(pruner(constant))(other)["kernel"]
    # Ties keep rows 0 and 1 of each four.
    kept = np.tile([[True], [True], [False], [False]], (4, 8))
    np.testing.assert_array_equal(first, np.where(kept, other["kernel"], 0))


DEVICES = """
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxsparse as js

steps = np.kron(np.arange(8.0).reshape(4, 2), np.ones((4, 4)))  # shards are constant
values = {"zeros": np.zeros((16, 8)), "eye": np.eye(16, 8)[::-1], "steps": steps}
for kind in AxisType.Auto, AxisType.Explicit:
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    for spec in P("a", "b"), P("a"), P(None, "b"), P():
        put = lambda x: jax.device_put(x.astype("float32"), NamedSharding(mesh, spec))
        params = {name: {"kernel": put(x.copy())} for name, x in values.items()}
        one = {"kernel": jax.device_put(np.zeros((16, 8)), jax.devices()[5])}
        for current in None, mesh:
            with jax.set_mesh(current):
                plan = js.plan_sparsity(params | {"one": one})
                assert ["constant" in leaf.note for leaf in plan.leaves] == [
                    leaf.path in ("zeros/kernel", "one/kernel") for leaf in plan.leaves
                ], plan
"""


@pytest.mark.sweep
def test_shards_are_read_where_they_are():
    run_on_eight_devices("-c", DEVICES)


def test_weights_may_be_donated_after_they_were_planned():
    params = {"kernel": jnp.arange(1.0, 129.0).reshape(16, 8)}
    masks = js.create_masks(params, js.plan_sparsity(params))
    js.mask_params(params, masks, donate=True)
    assert params["kernel"].is_deleted()
    assert js.plan_sparsity(params)["kernel"].note == ""
