"""Losses that train a sparse network to do what the dense one does.

Both compare with a teacher, so they need no labels: any text or images will do.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxsparse._patterns import wide_float
from jaxsparse._trees import PyTree


def distillation_loss(
    logits: Float[Array, "... class"],
    teacher_logits: Float[Array, "... class"],
    *,
    temperature: ArrayLike = 1.0,
    top_k: int | None = None,
    weights: ArrayLike | None = None,
) -> Float[Array, ""]:
    """Returns how far predictions are from those of a teacher, to be minimised.

    The Kullback-Leibler divergence of the teacher's distribution from the student's,
    `KL(teacher || student)`, both at a temperature, times the temperature squared, so
    that gradients keep their size; the mean over tokens. Hinton et al., "Distilling the
    Knowledge in a Neural Network" (2015, arXiv:1503.02531).

    It is computed in float32 and keeps nothing of the size of the logits for the
    gradient but the logits themselves.

    Args:
      logits: the predictions of the student, floats of any dtype, classes along the
        last axis.
      teacher_logits: those of the teacher, of the same shape. They have no gradient. A
        class may have the logit `-inf`.
      temperature: divides the logits of both; may be traced.
      top_k: the number of the teacher's largest logits that are compared one by one.
        All other classes count as a single one, which has the sum of their
        probabilities. So the loss is zero exactly where the two agree on these `k + 1`
        classes, and never above that of all classes. Probabilities that are normalised
        over `k` classes instead make a student overconfident (Anshumann et al. 2025,
        arXiv:2503.16870).
      weights: how much each token counts, of the shape of the leading axes; 0 for
        padding. The default is 1.

    Returns:
      A scalar, float32 or wider; 0 if all weights are 0.

    Raises:
      ValueError: shapes do not fit, or `top_k` or the temperature is not positive.
      TypeError: logits that are not floats.

    >>> teacher = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    >>> print(distillation_loss(jnp.zeros((1, 3)), teacher).round(4))
    0.0589
    >>> print(distillation_loss(teacher + 1, teacher))
    0.0
    """
    _check_pair(logits, teacher_logits)
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_k is not None and top_k >= logits.shape[-1]:
        top_k = None
    # Recomputed for the gradient: its intermediates are larger than the logits.
    divergence = jax.checkpoint(partial(_divergence, top_k=top_k))(
        logits, lax.stop_gradient(teacher_logits), temperature
    )
    counts = _token_weights(weights, divergence)
    total = jnp.sum(counts)
    # Not a product: predictions for padding may be NaN.
    weighted = jnp.where(counts == 0, 0, counts * divergence)
    return _ratio(jnp.sum(weighted), total)


def feature_loss(
    features: PyTree, teacher_features: PyTree, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    """Returns the relative mean squared error of features, to be minimised.

    `sum((f - t) ** 2) / sum(t ** 2)` over all tokens, in float32: 1 for features that
    are zero, whatever the scale of the teacher's. FitNets (Romero et al. 2015,
    arXiv:1412.6550) train on features; here student and teacher have the same shapes.

    Args:
      features: an array of any shape, or a tree of arrays, such as the outputs of
        several layers, each of which counts equally.
      teacher_features: those of the teacher, alike. They have no gradient.
      weights: how much each token counts, of the shape of the leading axes of every
        array; 0 for padding. The default is 1.

    Returns:
      A scalar, float32 or wider; 0 for features of a teacher that are all zero.

    Raises:
      ValueError: shapes or trees do not fit, or there are no arrays.
      TypeError: features that are not floats.

    >>> print(feature_loss(jnp.array([1.0, 2.0]), jnp.array([1.0, 3.0])))
    0.1
    """
    errors = jax.tree.leaves(
        jax.tree.map(partial(_relative_error, weights), features, teacher_features)
    )
    if not errors:
        raise ValueError("feature_loss needs at least one array of features, got none")
    return sum(errors[1:], errors[0]) / jnp.asarray(len(errors), errors[0].dtype)


def _divergence(
    logits: Array, teacher_logits: Array, temperature: ArrayLike, *, top_k: int | None
) -> Float[Array, "..."]:
    """Returns the divergence of every token, times the temperature squared."""
    dtype = wide_float(logits.dtype, teacher_logits.dtype)
    warmth = jnp.asarray(temperature, dtype)
    scaled = logits.astype(dtype) / warmth
    teacher_scaled = teacher_logits.astype(dtype) / warmth
    student = jax.nn.log_softmax(scaled)
    teacher = jax.nn.log_softmax(teacher_scaled)
    if top_k is None:
        terms = _terms(teacher, student)
        return jnp.sum(terms, axis=-1) * warmth**2
    others = _outside_top(teacher_scaled, top_k)
    terms = jnp.where(others, 0, _terms(teacher, student))
    rest = _terms(_log_sum(teacher, others), _log_sum(student, others))
    return (jnp.sum(terms, axis=-1) + rest) * warmth**2


def _terms(teacher: Array, student: Array) -> Array:
    """Returns `p * (log p - log q)` from logarithms; 0 where the teacher's `p` is."""
    is_possible = teacher > -jnp.inf
    gap = jnp.where(is_possible, teacher - student, 0)
    return jnp.where(is_possible, jnp.exp(teacher) * gap, 0)


def _outside_top(logits: Array, k: int) -> Bool[Array, "... class"]:
    """Returns which classes are not among the `k` largest; ties keep the lower index.

    A comparison, not a scatter, so that it is fused with what it selects.
    """
    values, indices = lax.top_k(logits, k)
    lowest = values[..., -1:]
    last = jnp.max(
        jnp.where(values == lowest, indices, -1), axis=-1, keepdims=True
    )  # of the classes that share the lowest value
    index = lax.broadcasted_iota(indices.dtype, logits.shape, logits.ndim - 1)
    return (logits < lowest) | ((logits == lowest) & (index > last))


def _log_sum(logs: Array, selected: Bool[Array, "... class"]) -> Array:
    """Returns the logarithm of the sum of selected probabilities; -inf if it is 0."""
    logs = jnp.where(selected, logs, -jnp.inf)
    peak = lax.stop_gradient(jnp.max(logs, axis=-1, keepdims=True))
    is_possible = peak > -jnp.inf
    # Where nothing is selected the sum is 1, since log(0) has no gradient.
    shifted = jnp.where(is_possible, logs - jnp.where(is_possible, peak, 0), -jnp.inf)
    total = jnp.sum(jnp.exp(shifted), axis=-1)
    possible = jnp.squeeze(is_possible, -1)
    log_sum = jnp.log(jnp.where(possible, total, 1)) + jnp.squeeze(peak, -1)
    return jnp.where(possible, log_sum, -jnp.inf)


def _relative_error(
    weights: ArrayLike | None, features: Any, teacher_features: Any
) -> Float[Array, ""]:
    _check_pair(features, teacher_features)
    dtype = wide_float(features.dtype, teacher_features.dtype)
    target = lax.stop_gradient(teacher_features).astype(dtype)
    counts = _token_weights(weights, target)
    error = jnp.where(counts == 0, 0, features.astype(dtype) - target)
    target = jnp.where(counts == 0, 0, target)
    return _ratio(jnp.sum(counts * error**2), jnp.sum(counts * target**2))


def _token_weights(weights: ArrayLike | None, values: Array) -> Float[Array, "..."]:
    """Returns weights of the shape of the values, from those of the leading axes."""
    if weights is None:
        return jnp.ones(values.shape, values.dtype)
    counts = jnp.asarray(weights)
    if counts.shape != values.shape[: counts.ndim]:
        raise ValueError(
            f"weights of shape {counts.shape} do not fit tokens of shape "
            f"{values.shape}: they are one number for each token, so their shape is "
            "that of the leading axes"
        )
    counts = counts.astype(values.dtype)
    counts = counts.reshape(counts.shape + (1,) * (values.ndim - counts.ndim))
    return jnp.broadcast_to(counts, values.shape)


def _ratio(part: Array, whole: Array) -> Array:
    """Returns `part / whole`, and 0 with no gradient if `whole` is 0."""
    is_zero = whole == 0
    return jnp.where(is_zero, 0, part / jnp.where(is_zero, 1, whole))


def _check_pair(student: Any, teacher: Any) -> None:
    if student.shape != teacher.shape or not student.shape:
        raise ValueError(
            f"the student's array has shape {student.shape} and the teacher's "
            f"{teacher.shape}: they must have the same shape, with at least one axis"
        )
    for array in (student, teacher):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"student and teacher must be floats, got {array.dtype}")
