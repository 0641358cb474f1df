"""REAP: scores of experts by what the router lets them add."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsparse._patterns import wide_float


def reap_scores(
    gates: Float[np.ndarray | Array, "..."], outputs: Float[np.ndarray | Array, "..."]
) -> Float[Array, " expert"]:
    """Returns how much each expert of a mixture adds to the tokens that it is sent.

    The mean of the gate times the norm of the expert's output, over the tokens whose
    gate is not zero. An expert that is sent no tokens has the score zero. Lasby et al.,
    "REAP the Experts" (2025, arXiv:2510.13999).

    `shrink_params(..., scores=lambda group: reap_scores(gates, outputs))` takes out the
    experts of the lowest scores. Of stacked layers they are
    `jax.vmap(reap_scores)(gates, outputs)`.

    Args:
      gates: the factors of the experts' outputs, of shape `(token, expert)`; zero where
        a token is not sent to the expert.
      outputs: the experts' outputs, of shape `(token, expert, feature)`, or their
        norms, of shape `(token, expert)`. Gates and norms of several batches are joined
        by `jnp.concatenate`. What an expert gives for tokens that it is not sent does
        not count.

    Returns:
      The scores, of shape `(expert,)`, in float32, or wider if the outputs are.

    Raises:
      ValueError: the outputs are not of the tokens and experts of the gates.

    >>> gates = jnp.array([[0.75, 0.25, 0.0], [0.5, 0.0, 0.5]])
    >>> norms = jnp.array([[1.0, 4.0, 9.0], [2.0, 9.0, 6.0]])
    >>> reap_scores(gates, norms)
    Array([0.875, 1.   , 3.   ], dtype=float32)
    """
    if gates.ndim != 2 or outputs.shape[:2] != gates.shape or outputs.ndim > 3:
        raise ValueError(
            f"gates of shape {gates.shape} need outputs of shape (tokens, experts, "
            f"features), or their norms of shape (tokens, experts), got {outputs.shape}"
        )
    dtype = wide_float(outputs.dtype)
    gates, norms = jnp.asarray(gates, dtype), jnp.asarray(outputs, dtype)
    if norms.ndim == 3:
        norms = jnp.linalg.norm(norms, axis=-1)
    sent = gates != 0
    added = jnp.where(sent, gates * norms, 0).sum(0)
    return added / jnp.maximum(sent.sum(0), 1).astype(dtype)
