"""Products whose gradient uses the transposed weight, compressed as well."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse._compressed import kernel_support
from tests.compressed.accelerated import BOTH, whole


W = whole(16, 32)
X = whole(3, 2, 16, seed=1)
MASK = js.create_masks({"w": W}, [js.Rule("w", BOTH, axis=0)])["w"]


def both(pattern="2:4"):
    of = lambda w, mask: js.compress(w, pattern, mask=mask, axis=0)
    return of(W, MASK), of(W.T, MASK.T)


@pytest.mark.parametrize("pattern", ["2:4", BOTH])
def test_gradients_are_those_of_the_masked_weight(pattern):
    forward, transposed = both(pattern)
    g = whole(3, 2, 32, seed=2)

    def loss(x, values, transposed):
        weight = js.Compressed(values, forward.indices, forward.pattern, -2)
        return jnp.sum(g * js.nm_matmul(x, weight, transposed=transposed))

    by_x, by_values = jax.jit(jax.grad(loss, (0, 1)))(X, forward.values, transposed)
    np.testing.assert_array_equal(by_x, g @ np.where(MASK, W, 0).T)
    dense = np.einsum("abi,abo->io", X, g)
    by_weight = js.compress(dense, pattern, mask=MASK, axis=0)
    np.testing.assert_array_equal(by_values, by_weight.values)
    # That of another weight shows that it is used.
    zeros = jax.tree.map(jnp.zeros_like, transposed)
    assert not jax.grad(loss)(X, forward.values, zeros).any()


def test_a_weight_that_is_no_transpose_is_refused():
    forward, _ = both()
    with pytest.raises(ValueError, match=r"give compress\(w.T, mask=mask.T, axis=0\)"):
        js.nm_matmul(X, forward, transposed=forward)
    sideways = js.compress(W.T, mask=MASK.T, axis=1)
    with pytest.raises(ValueError, match="groups along axis -1"):
        js.nm_matmul(X, forward, transposed=sideways)


@pytest.mark.usefixtures("available")
def test_the_kernel_takes_weights_of_transposable_patterns():
    x = jnp.ones((4, 16), jnp.bfloat16)
    weight = js.compress(W.astype(jnp.bfloat16), BOTH, mask=MASK, axis=0)
    assert not kernel_support.unsupported_reason(x, weight)
