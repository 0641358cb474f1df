"""Plain models whose channels can be taken out, with sizes that follow the leaves."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def draw(shapes, seed=0):
    rng = np.random.default_rng(seed)
    scaled = lambda s: rng.normal(size=s) / np.sqrt(max(np.prod(s[:-1]), 1))
    return {name: jnp.asarray(scaled(s), np.float32) for name, s in shapes.items()}


def convolution(x, kernel):
    axes = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)


CNN = {
    "conv1": (3, 3, 2, 16),
    "scale": (16,),
    "shift": (16,),
    "mean": (16,),
    "variance": (16,),
    "conv2": (3, 3, 16, 24),
    "bias2": (24,),
    "dense": (24, 5),
}


def first_convolution(params, x):
    """A convolution with batch normalisation."""
    x = convolution(x, params["conv1"])
    x = (x - params["mean"]) * lax.rsqrt(jnp.square(params["variance"]) + 1e-3)
    return jax.nn.relu(x * params["scale"] + params["shift"])


def cnn(params, x):
    """Two convolutions, and a mean over pixels."""
    x = first_convolution(params, x)
    x = jax.nn.relu(convolution(x, params["conv2"]) + params["bias2"])
    return x.mean((1, 2)) @ params["dense"]


#: Four queries to each of three key and value heads of size 16.
ATTENTION = {
    "norm": (20,),
    "query": (20, 3, 4, 8),
    "key": (20, 3, 8),
    "value": (20, 3, 16),
    "out": (3, 4, 16, 20),
}


def attention(params, x):
    """Grouped-query attention, `(batch, token, 20)` to the same, behind a norm."""
    h = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * params["norm"]
    query = jnp.einsum("btd,dkgh->btkgh", h, params["query"])
    key = jnp.einsum("btd,dkh->btkh", h, params["key"])
    value = jnp.einsum("btd,dkh->btkh", h, params["value"])
    scores = jnp.einsum("btkgh,bskh->bkgts", query, key)
    mixed = jnp.einsum("bkgts,bskh->btkgh", jax.nn.softmax(scores), value)
    return x + jnp.einsum("btkgh,kghd->btd", mixed, params["out"])


EXPERTS = {
    "router": (12, 6),
    "gate": (6, 12, 16),
    "up": (6, 12, 16),
    "down": (6, 16, 12),
}


def experts(params, x):
    """A mixture of experts: each token of `(token, 12)` is sent to two of them."""
    logits = x @ params["router"]
    chosen, numbers = lax.top_k(logits, 2)
    one_hot = jax.nn.one_hot(numbers, logits.shape[-1], dtype=x.dtype)
    weights = jnp.einsum("tk,tke->te", jax.nn.softmax(chosen), one_hot)
    sent = jnp.einsum("te,td->etd", (weights > 0).astype(x.dtype), x)
    hidden = jax.nn.silu(jnp.einsum("etd,edh->eth", sent, params["gate"]))
    hidden = hidden * jnp.einsum("etd,edh->eth", sent, params["up"])
    outputs = jnp.einsum("eth,ehd->etd", hidden, params["down"])
    return x + jnp.einsum("te,etd->td", weights, outputs)


STACK = {"up": (3, 8, 32), "bias": (3, 32), "down": (3, 32, 8)}


def stack(params, x):
    """Three layers in a loop, each with hidden channels of its own."""

    def layer(x, layer):
        hidden = jax.nn.gelu(x @ layer["up"] + layer["bias"])
        return x + hidden @ layer["down"], None

    return lax.scan(layer, x, params)[0]
