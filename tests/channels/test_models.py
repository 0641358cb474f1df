"""What is called free leaves the function as it is; what is fixed does not."""

import jax
import pytest

from jaxsparse._channels import channel_groups
from tests.channels.models import MODELS
from tests.channels.permuting import difference, drawn, permuted


#: Groups that are fixed although any order of them gives the same function.
TOO_CAREFUL = {
    "nothing_but_a_total": [(11, "`cumsum`")],
}

QUICK = ["[decoder]", "[mixture_of_experts]", "[resnet]", "total]"]


@pytest.mark.sweep(keep=QUICK)
@pytest.mark.parametrize("name", MODELS)
def test_free_groups_can_be_permuted_and_no_other(name):
    fn, params, args = MODELS[name]()
    params = drawn(params)
    groups = channel_groups(fn, params, *args)
    free = [group for group in groups if not group.fixed]
    fixed = [group for group in groups if group.fixed]
    run = jax.jit(fn)
    assert difference(run, params, permuted(params, free), args) < 1e-5
    careful = [
        group
        for group in fixed
        if difference(run, params, permuted(params, [group]), args) < 1e-5
    ]
    found = [(group.size, group.fixed) for group in careful]
    assert found == TOO_CAREFUL.get(name, [])


def test_few_of_the_fixed_groups_could_be_free():
    """Of all groups of all models at most a fifth, so that the table stays honest."""
    careful = sum(map(len, TOO_CAREFUL.values()))
    assert careful <= len(MODELS) // 5
