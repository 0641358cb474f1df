"""Random programs: what is called free leaves them as they are.

They are traced with JAX, and run with NumPy in float64.
"""

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

from jaxsparse._channels import channel_groups
from tests.channels.permuting import difference, permuted
from tests.channels.random_programs import STEPS, program
from tests.thorough import thorough


def is_stable(run, params):
    """Whether rounding does not decide what `argmax` returns."""
    others = {name: w * (1 + 1e-12) for name, w in params.items()}
    result = run(params)
    usable = np.isfinite(result).all() and np.abs(result).max() > 1e-6
    return usable and difference(run, params, others, ()) < 1e-9


@pytest.mark.sweep
@thorough(300)
@given(st.lists(st.sampled_from(STEPS), max_size=10), st.integers(0, 2**31))
def test_free_groups_of_random_programs_can_be_permuted(kinds, seed):
    fn, params, x = program(kinds, seed)
    shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, "float32"), params)
    groups = channel_groups(fn, shapes, jax.ShapeDtypeStruct(x.shape, "float32"))
    free = [group for group in groups if not group.fixed]
    run = lambda params: fn(params, x, np)
    if free and is_stable(run, params):
        for seed in range(3):
            assert difference(run, params, permuted(params, free, seed), ()) < 1e-9


def test_random_programs_have_free_groups():
    """So that the property above is not empty."""
    rng = np.random.default_rng(0)
    free = 0
    for seed in range(20):
        kinds = [STEPS[i] for i in rng.integers(len(STEPS), size=5)]
        fn, params, x = program(kinds, seed)
        groups = channel_groups(fn, params, x)
        free += sum(not group.fixed for group in groups)
    assert free >= 10
