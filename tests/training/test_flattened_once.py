"""A traced update walks each tree at most twice by path, and makes one plan."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsparse as js
from jaxsparse._plans import plan as plans
from jaxsparse._training import inner_state
from jaxsparse._trees import paths


PARAMS = {
    f"layer_{i}": {"kernel": jnp.ones((16, 8)), "bias": jnp.ones(8)} for i in (0, 1)
}
FRACTION = optax.constant_schedule(0.3)
TRANSFORMS = {
    "fixed": lambda inner: js.wrap_optimizer(inner, "2:4"),
    "scheduled": lambda inner: js.wrap_optimizer(
        inner, "2:4", schedule=js.cubic_schedule(2, 9), every=2
    ),
    "last link": lambda inner: optax.chain(inner, js.keep_params_sparse("2:4")),
    "RigL": lambda inner: js.regrow_by_gradient(inner, "2:4", fraction=FRACTION),
    "SET": lambda inner: js.regrow_at_random(
        inner, "2:4", key=jax.random.key(0), fraction=FRACTION
    ),
    "SR-STE": lambda inner: optax.chain(js.add_sr_ste_decay("2:4", every=3), inner),
}


@pytest.fixture
def walks(monkeypatch):
    """The structures of all trees that are walked by path, and all plans."""
    walked, planned = [], []

    def counted(walk, tree_of):
        def count(*args, **options):
            walked.append(jax.tree.structure(tree_of(args)))
            return walk(*args, **options)

        return count

    for module in (paths, inner_state):
        for name, tree_of in (
            ("tree_flatten_with_path", lambda args: args[0]),
            ("tree_map_with_path", lambda args: args[1]),
        ):
            if hasattr(module, name):
                walk = getattr(module, name)
                monkeypatch.setattr(module, name, counted(walk, tree_of))
    decide = plans._decide
    monkeypatch.setattr(
        plans, "_decide", lambda *a, **k: planned.append(a) or decide(*a, **k)
    )
    return walked, planned


@pytest.mark.parametrize("name", TRANSFORMS)
def test_an_update_walks_each_tree_at_most_twice_and_plans_once(walks, name):
    walked, planned = walks
    tx = TRANSFORMS[name](optax.adamw(0.1))
    state = tx.init(PARAMS)
    walked.clear()
    planned.clear()
    jax.jit(tx.update).lower(PARAMS, state, PARAMS)
    masks = jax.tree.structure(js.get_masks(state))
    assert 1 <= walked.count(jax.tree.structure(PARAMS)) <= 2
    assert 1 <= walked.count(masks) <= 2
    assert len(planned) == 1
