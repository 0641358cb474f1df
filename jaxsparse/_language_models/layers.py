"""The layers of decoders, as functions of arrays."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


_Queries = Float[Array, "batch token head feature"]
_Keys = Float[Array, "batch token kv_head feature"]

#: Activations by their names in `config.json`.
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


def rms_norm(x: Array, gain: Array, epsilon: float) -> Array:
    """Divides features by their root mean square, and multiplies them by a gain."""
    square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(square + epsilon) * gain.astype(x.dtype)


def layer_norm(x: Array, gain: Array, bias: Array, epsilon: float) -> Array:
    """Normalises features to mean zero and variance one, then scales and shifts."""
    # `jax.nn.standardize` subtracts two large numbers where features have a large mean.
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    scaled = centred * jax.lax.rsqrt(variance + epsilon)
    return scaled * gain.astype(x.dtype) + bias.astype(x.dtype)


def linear(params: Mapping[str, Array], name: str, x: Array) -> Array:
    """Applies a linear layer, with a bias if `params` has one.

    Weights are `(out, in)`. They are cast to the dtype of `x`.
    """
    y = x @ params[f"{name}.weight"].astype(x.dtype).T
    bias = params.get(f"{name}.bias")
    return y if bias is None else y + bias.astype(x.dtype)


def causal_attention(
    query: _Queries, key: _Keys, value: _Keys, window: int | None = None
) -> Float[Array, "batch token features"]:
    """Returns the mixed values of all heads, side by side.

    Args:
      query: the queries; several consecutive heads share one head of keys and values.
      key: the keys.
      value: the values.
      window: the number of tokens, itself included, that a token sees; None for all
        before it.
    """
    # `jax.nn.dot_product_attention` computes its softmax in float32, also for float64.
    batch, length, heads, size = query.shape
    grouped = query.reshape(batch, length, key.shape[2], -1, size)
    scores = jnp.einsum("btkgf,bskf->bkgts", grouped, key) * size**-0.5
    distance = np.arange(length)[:, None] - np.arange(length)
    visible = distance >= 0
    if window is not None:
        visible &= distance < window
    scores = jnp.where(visible, scores, -jnp.inf)
    mixed = jnp.einsum("bkgts,bskf->btkgf", jax.nn.softmax(scores, axis=-1), value)
    return mixed.reshape(batch, length, heads * size)
