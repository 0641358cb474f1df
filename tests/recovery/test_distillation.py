"""Distillation losses against NumPy in float64, closed forms, and what they save."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

import jaxsparse as js


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def divergence(student, teacher, temperature=1.0, top_k=None):
    """The divergence of each token, class by class, in float64."""
    losses = []
    for s, t in zip(student.astype(float), teacher.astype(float), strict=True):
        q, p = softmax(s / temperature), softmax(t / temperature)
        if top_k is not None:
            order = np.argsort(-t, kind="stable")
            top, rest = order[:top_k], order[top_k:]
            q = np.append(q[top], q[rest].sum())
            p = np.append(p[top], p[rest].sum())
        q, p = q[p > 0], p[p > 0]
        losses.append(temperature**2 * np.sum(p * np.log(p / q)))
    return np.array(losses)


compiled_loss = jax.jit(js.distillation_loss, static_argnames="top_k")


def pair(tokens=7, classes=13, scale=3.0, dtype=np.float32):
    draw = np.random.default_rng(0).normal
    return [jnp.asarray(scale * draw(size=(tokens, classes)), dtype) for _ in "st"]


@pytest.mark.sweep(keep=["None-2.5-bfloat16", "4-2.5-bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 4, 12, 13, 50])
def test_the_loss_is_the_mean_divergence(dtype, temperature, top_k):
    student, teacher = pair(dtype=dtype)
    loss = js.distillation_loss(student, teacher, temperature=temperature, top_k=top_k)
    k = None if top_k is None or top_k > 13 else top_k
    expected = divergence(np.array(student), np.array(teacher), temperature, k)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected.mean(), rtol=3e-6)


@pytest.mark.parametrize("top_k", [None, 3])
def test_equal_predictions_lose_nothing_and_have_no_gradient(top_k):
    logits = pair(dtype=jnp.bfloat16)[0]
    loss = lambda s: js.distillation_loss(s, logits, temperature=3.0, top_k=top_k)
    value, slope = jax.jit(jax.value_and_grad(loss))(logits)
    np.testing.assert_allclose(value, 0, atol=1e-6)  # rounding of a sum of terms near 1
    np.testing.assert_allclose(slope.astype(jnp.float32), 0, atol=1e-7)


def test_the_gradient_is_the_difference_of_the_probabilities():
    student, teacher = pair()
    loss = lambda s: js.distillation_loss(s, teacher, temperature=2.0)
    s, t = (np.array(x, np.float64) / 2 for x in (student, teacher))
    expected = 2.0 * (softmax(s) - softmax(t)) / len(s)
    np.testing.assert_allclose(jax.grad(loss)(student), expected, atol=1e-7)


@pytest.mark.sweep
@pytest.mark.parametrize("top_k", [None, 2])
def test_gradients_agree_with_differences_in_float64(top_k):
    with jax.enable_x64(True):
        student, teacher = pair(3, 5, 1.0, np.float64)
        weights = jnp.array([1.0, 0.0, 2.5])
        loss = lambda s, temperature: js.distillation_loss(
            jnp.asarray(s),
            teacher,
            temperature=jnp.asarray(temperature),
            top_k=top_k,
            weights=weights,
        )
        check_grads(jax.jit(loss), (student, jnp.array(1.5)), order=1)


def test_the_teacher_has_no_gradient():
    student, teacher = pair()
    assert not jax.grad(lambda t: js.distillation_loss(student, t))(teacher).any()
    assert not jax.grad(lambda t: js.feature_loss(student, t))(teacher).any()


@pytest.mark.sweep(keep=["[3]"])
@pytest.mark.parametrize("k", range(1, 13))
def test_the_rest_as_one_class_never_loses_more_than_all_classes(k):
    student, teacher = pair()
    loss = js.distillation_loss(student, teacher, top_k=k)
    finer = js.distillation_loss(student, teacher, top_k=k + 1)
    assert loss <= finer + 1e-6


@pytest.mark.sweep
def test_of_equal_logits_the_lower_index_is_compared():
    teacher = jnp.array([[1.0, 2.0, 1.0, 1.0]])
    student = jnp.array([[0.5, -1.0, 0.0, 2.0]])
    expected = divergence(np.array(student), np.array(teacher), top_k=2)[0]
    loss = compiled_loss(student, teacher, top_k=2)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.sweep(keep=["None", "2"])
@pytest.mark.parametrize("top_k", [None, 2, 3, 4])
def test_classes_that_cannot_be_are_not_compared(top_k):
    """As those that pad a vocabulary."""
    minus = -np.inf
    teacher = jnp.array([[1.0, minus, 0.0, 2.0, minus]])
    student = jnp.array([[0.0, minus, 1.0, 1.0, minus]])
    possible = np.array([0, 2, 3])
    loss = lambda s: js.distillation_loss(s, teacher, top_k=top_k)
    value, slope = jax.jit(jax.value_and_grad(loss))(student)
    s, t = np.array(student)[:, possible], np.array(teacher)[:, possible]
    k = None if top_k is None or top_k >= 3 else top_k
    np.testing.assert_allclose(value, divergence(s, t, top_k=k)[0], rtol=1e-6)
    assert jnp.isfinite(slope).all()
    assert not slope[0, [1, 4]].any()


@pytest.mark.sweep
@pytest.mark.parametrize("top_k", [None, 3])
def test_confident_predictions_are_exact(top_k):
    """Probabilities of all but one class that a float32 would round to 0 or 1."""
    teacher = jnp.array([[60.0, 0.0, -5.0, 1.0, 2.0]])
    student = jnp.array([[90.0, 3.0, -80.0, 0.0, 10.0]])
    expected = divergence(np.array(student), np.array(teacher), top_k=top_k)[0]
    flipped = divergence(np.array(teacher), np.array(student), top_k=top_k)[0]
    at_most = {"rtol": 1e-5, "atol": 1e-24}
    loss = compiled_loss
    np.testing.assert_allclose(loss(student, teacher, top_k=top_k), expected, **at_most)
    np.testing.assert_allclose(loss(teacher, student, top_k=top_k), flipped, **at_most)
    far = loss(jnp.array([[0.0, 300.0]]), jnp.array([[0.0, -300.0]]), top_k=1)
    np.testing.assert_allclose(far, 300.0, rtol=1e-6)


@pytest.mark.sweep
def test_padding_is_not_counted_whatever_it_holds():
    student, teacher = pair(6)
    weights = jnp.array([[1, 1, 0], [2, 0, 1]])
    student = student.at[2].set(jnp.nan).reshape(2, 3, 13)
    teacher = teacher.at[4].set(jnp.nan).reshape(2, 3, 13)
    loss = compiled_loss(student, teacher, weights=weights)
    kept = [0, 1, 3, 5]
    rows = [np.array(x).reshape(6, 13)[kept] for x in (student, teacher)]
    expected = np.average(divergence(*rows), weights=[1, 1, 2, 1])
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    whole = compiled_loss(student[1], teacher[0], weights=jnp.array([1, 0, 0]))
    rows = np.array(student[1, :1]), np.array(teacher[0, :1])
    np.testing.assert_allclose(whole, divergence(*rows)[0], rtol=1e-6)
    assert compiled_loss(student, teacher, weights=0 * weights) == 0


@pytest.mark.sweep
@pytest.mark.parametrize("top_k", [None, 4])
def test_nothing_wider_than_the_logits_is_kept_for_the_gradient(top_k):
    student, teacher = pair(64, 512, dtype=jnp.bfloat16)
    loss = lambda s: js.distillation_loss(s, teacher, temperature=2.0, top_k=top_k)
    _, backward = jax.jit(partial(jax.vjp, loss))(student)
    kept = sum(x.nbytes for x in jax.tree.leaves(backward))
    assert kept <= student.nbytes + teacher.nbytes + 64 * 32


def test_losses_are_compiled_and_mapped():
    student, teacher = (x.reshape(2, 4, 13) for x in pair(8))
    weights = jnp.array([[1.0, 2.0, 0.0, 1.0], [1.0, 1.0, 1.0, 3.0]])
    loss = lambda s, t, w: js.distillation_loss(
        s, t, temperature=2.0, top_k=3, weights=w
    )
    mapped = jax.jit(jax.vmap(loss))(student, teacher, weights)
    for i in range(2):
        rows = np.array(student[i]), np.array(teacher[i]), 2.0, 3
        expected = np.average(divergence(*rows), weights=weights[i])
        np.testing.assert_allclose(mapped[i], expected, rtol=1e-5)


def test_features_are_compared_relative_to_the_teacher():
    student, teacher = pair(6)
    rows = [np.array(x, np.float64) for x in (student, teacher)]
    expected = ((rows[0] - rows[1]) ** 2).sum() / (rows[1] ** 2).sum()
    np.testing.assert_allclose(js.feature_loss(student, teacher), expected, rtol=1e-6)
    scaled = js.feature_loss(1e3 * student, 1e3 * teacher)
    np.testing.assert_allclose(scaled, expected, rtol=1e-6)
    assert js.feature_loss(0 * teacher, teacher) == 1
    assert js.feature_loss(student, 0 * teacher) == 0
    low = js.feature_loss(student.astype(jnp.bfloat16), teacher.astype(jnp.bfloat16))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, expected, rtol=0.02)


def test_features_of_several_layers_count_equally_and_padding_does_not():
    student, teacher = pair(6)
    trees = [
        {"a": x, "b": (10 * x[:, :4].reshape(6, 2, 2),)} for x in (student, teacher)
    ]
    weights = np.array([1.0, 0.0, 2.0, 1.0, 0.0, 1.0])
    trees[0]["a"] = trees[0]["a"].at[1].set(jnp.nan)

    def error(s, t):
        s, t = (np.array(x, np.float64).reshape(6, -1)[weights > 0] for x in (s, t))
        w = weights[weights > 0, None]
        return (w * (s - t) ** 2).sum() / (w * t**2).sum()

    expected = (error(student, teacher) + error(student[:, :4], teacher[:, :4])) / 2
    loss = js.feature_loss(*trees, weights=weights)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: js.distillation_loss(x, x[1:]), ValueError, "must have the same"),
        (lambda x: js.distillation_loss(x, x, top_k=0), ValueError, "at least 1"),
        (lambda x: js.distillation_loss(x, x, temperature=0), ValueError, "positive"),
        (
            lambda x: js.distillation_loss(x, x, weights=jnp.ones(3)),
            ValueError,
            "leading axes",
        ),
        (lambda x: js.feature_loss(x.astype(int), x), TypeError, "floats"),
        (lambda x: js.feature_loss(x, x.T), ValueError, "must have the same"),
        (lambda _: js.feature_loss({}, {}), ValueError, "at least one"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call(pair()[0])


@pytest.mark.sweep
def test_masks_hold_while_gradients_are_accumulated():
    """And the average of the gradients makes the step, as that of one larger batch."""
    keys = jax.random.split(jax.random.key(0), 3)
    dense = {"kernel": jax.random.normal(keys[0], (16, 8))}
    masks = js.create_masks(dense, "2:4")
    batches = jax.random.normal(keys[1], (4, 5, 16))
    start = js.mask_params(dense, masks)

    def loss(params, x):
        return js.distillation_loss(x @ params["kernel"], x @ dense["kernel"])

    def train(tx, batches):
        @jax.jit
        def step(params, state, x):
            updates, state = tx.update(jax.grad(loss)(params, x), state, params)
            return optax.apply_updates(params, updates), state

        params, state = start, tx.init(start)
        for x in batches:
            params, state = step(params, state, x)
            assert not params["kernel"][~masks["kernel"]].any()
        return params, state

    inner = js.wrap_optimizer(optax.adam(0.1), masks=masks)
    slow, state = train(optax.MultiSteps(inner, 2), batches)
    fast, _ = train(inner, batches.reshape(2, 10, 16))
    np.testing.assert_allclose(slow["kernel"], fast["kernel"], rtol=1e-5, atol=1e-6)
    assert (slow["kernel"] != start["kernel"]).any()
    kept = js.mask_params(jax.tree.map(jnp.ones_like, dense), js.get_masks(state))
    assert (kept["kernel"] == masks["kernel"]).all()
    assert state.inner_opt_state.count == 2
