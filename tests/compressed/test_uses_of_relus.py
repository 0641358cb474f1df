"""Squared ReLUs that have other uses than one product, or other products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js


# Blocks of 4 x 4 without zeros: masks would drop half of them.
ONES = np.ones((4, 16, 16), "float32")
W = np.arange(4 * 16 * 16).reshape(4, 16, 16) % 3 - 1.0
square = lambda x: jax.nn.relu(x) ** 2


def in_bfloat16(*arrays):
    return [jnp.asarray(x, jnp.bfloat16) for x in arrays]


# Functions and the same in NumPy.
PLAIN = {
    "experts": (
        lambda w, x: jnp.einsum("ebf,efd->ebd", square(x), w),
        lambda w, x: np.einsum("ebf,efd->ebd", x, w),
    ),
    "vmap inside": (
        lambda w, x: jax.vmap(lambda w, x: square(x) @ w)(w, x),
        lambda w, x: x @ w,
    ),
    "two contracted axes": (
        lambda w, x: jnp.einsum("ebf,efd->bd", square(x), w),
        lambda w, x: np.einsum("ebf,efd->bd", x, w),
    ),
    "features first": (lambda w, x: w[0] @ square(x[0]), lambda w, x: w[0] @ x[0]),
}


@pytest.mark.parametrize("name", PLAIN)
def test_other_products_stay_as_they_are(name):
    fn, in_numpy = PLAIN[name]
    w, x = in_bfloat16(W, ONES)
    fast = js.accelerate(fn, None, activations=True, implementation="xla")
    np.testing.assert_array_equal(fast(w, x), in_numpy(W, ONES).astype("float32"))
    assert js.dropped_activations(fn, w, x) == {}


jitted_square = jax.jit(lambda relu: relu * relu)
plus_one = jax.jit(lambda relu: relu + 1)


def shares_its_relu(w, x):
    relu = jax.nn.relu(x)
    return relu**2 @ w + plus_one(relu)


def reports_its_relu(w, x):
    relu = jax.nn.relu(x)
    return relu**2 @ w + jnp.mean(relu * 16)


# Of the identity masks drop nothing.
IDENTITY = np.eye(16)
WITH_IDENTITY = {
    "square in a jitted function": (
        lambda w, x: jitted_square(jax.nn.relu(x)) @ w,
        W[0],
    ),
    "relu in a jitted function": (shares_its_relu, W[0] + IDENTITY + 1),
    "multiple of the relu": (reports_its_relu, W[0] + 1),
}


@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("name", WITH_IDENTITY)
def test_relus_have_other_uses(name, implementation):
    fn, expected = WITH_IDENTITY[name]
    w, x = in_bfloat16(W[0], IDENTITY)
    options = {"activations": True, "implementation": implementation}
    fast = js.accelerate(fn, None, **options)
    np.testing.assert_array_equal(jax.jit(fast)(w, x), expected.astype("float32"))
    (shares,) = js.dropped_activations(fn, w, x).values()
    assert (shares.nonzero, shares.dropped) == (1 / 16, 0)


@pytest.mark.parametrize("relu", [jax.nn.relu, lambda w: jnp.maximum(w, 0)])
def test_relus_of_planned_weights(relu):
    weight = np.kron(np.eye(4), np.diag([1, 2, -3, 0]))  # 2:4 along both axes
    rules = [js.Rule("w", "2:4 transposable", axis=0)]
    fn = lambda params, x: relu(params["w"]) ** 2 @ x
    fast = js.accelerate(fn, rules, activations=True, implementation="xla")
    weight, x = in_bfloat16(weight, IDENTITY)
    squares = np.kron(np.eye(4), np.diag([1, 4, 0, 0]))
    np.testing.assert_array_equal(fast({"w": weight}, x), squares.astype("float32"))


@jax.custom_jvp
def second_relu(first, second):
    del first
    return jnp.maximum(second, 0)


second_relu.defjvps(None, lambda tangent, _, __, second: tangent * (second > 0))


def test_functions_of_two_arguments_are_no_relus():
    fn = lambda w, x: second_relu(-x, x) ** 2 @ w
    w, x = in_bfloat16(W[0], ONES[0])
    fast = js.accelerate(fn, None, activations=True, implementation="xla")
    np.testing.assert_array_equal(fast(w, x), (ONES[0] @ W[0]).astype("float32"))


def test_errors_name_activations():
    fn = lambda w, x: square(x) @ w
    w, x = in_bfloat16(W[0], ONES[0])
    fast = js.accelerate(fn, None, activations=True, implementation="cuda")
    if jax.default_backend() != "gpu":
        with pytest.raises(ValueError, match=r"^the square of a ReLU: .*\(16, 16\)"):
            fast(w, x)


def test_a_required_square_is_missing():
    fn = lambda w, x: (2 * square(x)) @ w
    w, x = in_bfloat16(W[0], ONES[0])
    with pytest.raises(ValueError, match="no product of a squared ReLU"):
        js.accelerate(fn, None, activations=True, implementation="cuda")(w, x)
