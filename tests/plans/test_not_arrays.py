"""Trees that also hold leaves which are not arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse as js
from tests.plans.test_plan import tree


def test_leaves_that_are_no_arrays_share_a_row():
    """As in a module of Equinox that was not partitioned."""
    params = tree(layers__kernel=(16, 8)) | {"act": jnp.tanh, "rate": 0.1, "norm": None}
    params["name"] = "mlp"
    plan = js.plan_sparsity(params)
    assert str(plan).splitlines() == [
        "leaf           shape  plan",
        "layers/kernel  16x8   2:4 along axis 0",
        "3 leaves       -      dense: not an array",
        "total          128    1 of 1 pruned: 50.0 % of weights",
    ]
    assert [plan[path].shape for path in ("act", "rate", "name")] == [None] * 3
    assert len(plan.as_dict()["leaves"]) == 4
    params["layers"] = {"kernel": jnp.ones((16, 8))}
    line = str(js.sparsity_report(params)).splitlines()[-2]
    assert line.startswith("3 leaves ")
    assert line.endswith(" dense: not an array")
    alone = js.plan_sparsity({**tree(layers__kernel=(16, 8)), "act": jnp.tanh})
    assert str(alone).splitlines()[-2].startswith("act ")


class Parameter:
    """A variable that is a leaf of a tree and holds an array, as in Penzai."""

    def __init__(self, value):
        self.value = value


@pytest.mark.parametrize("more", [{}, {"scale": jnp.ones(())}])
def test_a_variable_that_holds_arrays_is_refused_with_the_remedy(more):
    held = {"up": Parameter(jnp.ones((16, 16))), "down": Parameter([jnp.ones(16)])}
    with pytest.raises(ValueError, match="nothing prunable") as error:
        js.plan_sparsity({**held, **more})
    assert (
        "dense: a Parameter, not an array; give the arrays that it holds, in Penzai "
        "those of pz.unbind_params"
    ) in str(error.value)
    plan = js.plan_sparsity({**held, **tree(a__kernel=(16, 8))})
    assert [leaf.path for leaf in plan.sparse] == ["a/kernel"]
    assert "\n2 leaves" in str(plan)


def test_numbers_are_arrays_in_a_step_that_is_compiled():
    params = {"w": jnp.arange(1.0, 9)[:, None], "rate": 0.5}
    fn = lambda params, x: (x @ params["w"]).sum() * params["rate"]
    rules = [js.Rule("w", "2:4", sizes=None)]
    x = jnp.ones((1, 8))
    plan = js.plan_sparsity(params, rules, fn=fn, args=(x,), dense_head=False)
    tx = js.wrap_optimizer(optax.sgd(1.0), plan)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(fn)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for rate, kept in [(0.5 - 36, 0.5), (0.5 - 36 - 20, 0.5 - 35.5)]:
        params, state = step(params, state)
        weights = [0, 0, 3 - kept, 4 - kept, 0, 0, 7 - kept, 8 - kept]
        np.testing.assert_array_equal(params["w"][:, 0], weights)
        assert params["rate"] == rate
    js.check_sparsity(params, plan)
