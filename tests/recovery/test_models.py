"""Adapters and learned masks of Flax NNX and Equinox models, trained by Optax."""

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsparse as js


X = jax.random.normal(jax.random.key(0), (12, 16))


def nnx_model():
    rngs = nnx.Rngs(0)
    layers = [nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 16, rngs=rngs)]
    graph, state = nnx.split(nnx.Sequential(*layers))
    return state, lambda state, x: nnx.merge(graph, state)(x)


def equinox_model():
    model = eqx.nn.MLP(16, 16, 32, depth=1, key=jax.random.key(0))
    return model, lambda model, x: jax.vmap(model)(x)


@pytest.mark.sweep
@pytest.mark.parametrize("make", [nnx_model, equinox_model])
def test_a_step_changes_adapters_and_logits_of_a_model(make):
    params, fn = make()
    plan = js.plan_sparsity(params, "2:4", fn=fn, args=(X,), dense_head=False)
    masks = js.create_masks(params, plan)
    pruned, target = js.mask_params(params, masks), fn(params, X)

    def adapted(adapters):
        return js.apply_adapters(pruned, adapters, masks)

    def softened(logits):
        soft = js.learned_masks(logits, key=jax.random.key(1), temperature=4.0)
        return jax.tree.map(lambda w, m: w if m is None else w * m, params, soft)

    def improve(build, tree):
        tx = optax.adam(1e-3)
        loss = lambda tree: js.feature_loss(fn(build(tree), X), target)

        @jax.jit
        def step(tree):
            before, slope = jax.value_and_grad(loss)(tree)
            updates, _ = tx.update(slope, tx.init(tree), tree)
            tree = optax.apply_updates(tree, updates)
            return tree, loss(tree) < before

        tree, is_better = step(tree)
        assert is_better
        return tree

    key = jax.random.key(2)
    adapters = improve(adapted, js.create_adapters(params, plan, rank=2, key=key))
    merged = adapted(adapters)
    logits = improve(softened, js.init_mask_logits(params, plan, masks=masks))
    learned = js.mask_params(params, js.learned_masks(logits))
    for tree in (merged, learned):
        assert jax.tree.structure(tree) == jax.tree.structure(params)
        js.check_sparsity(tree, plan)
    np.testing.assert_allclose(fn(merged, X), fn(pruned, X), atol=0.1)
