"""What the tests of `accelerate` share."""

import jax
import numpy as np

import jaxsparse as js


BOTH = js.NM(2, 4, transposable=True)


def whole(*shape, seed=0, high=2):
    """Small whole numbers: sums and products of a few of them are exact."""
    rng = np.random.default_rng(seed)
    return rng.integers(-high, high + 1, shape).astype(np.float32)


def planned(fn, params, *args, pattern=BOTH):
    rules = [js.Rule(".*", pattern, sizes=None)]
    plan = js.plan_sparsity(params, rules, fn=fn, args=args, dense_head=False)
    masked = js.mask_params(params, js.create_masks(params, plan))
    return masked, plan


def primitives(jaxpr, inside=()):
    """All equations with the primitives that they are in, outermost first."""
    for eqn in jaxpr.eqns:
        yield inside, eqn
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                body = getattr(value, "jaxpr", value)
                yield from primitives(body, (*inside, eqn.primitive.name))


def _is_jaxpr(x):
    return hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns")


def calls(fn, *args, name):
    """Around each call of a jitted function of this name, the primitives it is in."""
    closed = jax.make_jaxpr(fn)(*args)
    return [
        inside
        for inside, eqn in primitives(closed.jaxpr)
        if eqn.params.get("name") == name
    ]


def agrees(fn, params, *args, pattern=BOTH, products):
    """Whether value and gradients are exactly those of `fn`, by so many products."""
    params, plan = planned(fn, params, *args, pattern=pattern)
    fast = js.accelerate(fn, plan, implementation="xla")
    run = jax.jit(jax.value_and_grad(fast))
    jax.tree.map(
        np.testing.assert_array_equal,
        run(params, *args),
        jax.value_and_grad(fn)(params, *args),
    )
    assert len(calls(jax.value_and_grad(fast), params, *args, name="decompress")) == (
        products
    )
    return params, plan, fast
