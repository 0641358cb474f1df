"""Trees that also hold leaves which are not arrays."""

import jax.numpy as jnp
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
