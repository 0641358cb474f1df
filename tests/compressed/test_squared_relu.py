"""What the backward pass of sparse activations keeps, and computes from it."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse._compressed.compress_both import compress_squared_relu
from jaxsparse._compressed.squared_relu import roots_are_exact, squared_relu
from tests.compressed.accelerated import BOTH
from tests.compressed.forms_oracle import best_masks


def test_roots_of_rounded_squares_are_the_numbers():
    # All positive numbers of bfloat16 whose squares are normal.
    bits = np.arange(0x7F80, dtype=np.uint16)
    numbers = bits.view(ml_dtypes.bfloat16).astype(np.float64)
    normal = (numbers >= 2.0**-63) & (numbers < 2.0**64)
    numbers = numbers[normal].astype(ml_dtypes.bfloat16)
    roots = jax.jit(lambda x: jnp.sqrt(jnp.square(x)))(numbers)
    np.testing.assert_array_equal(np.asarray(roots), numbers)
    assert roots_are_exact(jnp.bfloat16)
    assert not roots_are_exact(jnp.float16)


def test_gradients_are_zero_where_nothing_is_kept():
    rng = np.random.default_rng(0)
    h = rng.normal(size=(16, 24)).astype(ml_dtypes.bfloat16)
    relu = np.maximum(h.astype(np.float32), 0)
    kept = best_masks(relu) & (relu > 0)
    g = np.where(kept, 2, np.inf).astype(ml_dtypes.bfloat16)
    best = compress_squared_relu(jnp.asarray(h), (-2,), kept=True)
    square = lambda h: squared_relu(h, best.kept, best.forms[0])
    (gradient,) = jax.vjp(square, jnp.asarray(h))[1](jnp.asarray(g))
    wanted = np.where(kept, 4 * relu, 0)
    np.testing.assert_array_equal(np.asarray(gradient, np.float32), wanted)


@pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="loops of this XLA keep what nobody reads"
)
@pytest.mark.parametrize("weights", [False, True])
def test_bytes_that_a_layer_keeps_for_its_gradient(weights):
    rows, width, hidden = 128, 32, 256

    def loss(params, x):
        def layer(x, p):
            return x + jax.nn.relu(x @ p["up"]) ** 2 @ p["down"], None

        return jnp.sum(jax.lax.scan(layer, x, params)[0].astype(jnp.float32) ** 2)

    def temporaries(layers):
        shapes = {"up": (layers, width, hidden), "down": (layers, hidden, width)}
        params, x = jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16),
            (shapes, (rows, width)),
            is_leaf=lambda x: isinstance(x, tuple) and isinstance(x[0], int),
        )
        rules = [js.Rule(".*", BOTH, sizes=None)]
        plan = js.plan_sparsity(params, rules, fn=loss, args=(x,), dense_head=False)
        plan = plan if weights else None
        fast = js.accelerate(loss, plan, activations=True, implementation="xla")
        compiled = jax.jit(jax.grad(fast)).lower(params, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def form(rows, columns):  # half of the values, and two bits for each of them
        return 2 * rows * columns // 2 + rows * columns // 8

    # Its input and one form of its squares, and both forms of weights, made before.
    expected = 2 * rows * width + form(rows, hidden)
    if weights:
        expected += 2 * (form(width, hidden) + form(hidden, width))
    assert temporaries(6) - temporaries(3) == 3 * expected
