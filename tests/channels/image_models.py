"""Small models of images as plain functions: `name() -> (fn, params, args)`."""

import jax
import jax.numpy as jnp
from jax import lax

from tests.channels.plain_models import attend, draw, layer_norm, rms_norm, vectors


def conv(x, kernel, groups=1, stride=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def u_net():
    """Skips are concatenated, in an order of their own."""
    params = draw(
        enter=(3, 3, 2, 4),
        down=(3, 3, 4, 6),
        middle=(3, 3, 6, 6),
        up=(3, 3, 10, 5),
        out=(1, 1, 5, 2),
    )

    def fn(p, x):
        skip = jax.nn.relu(conv(x, p["enter"]))
        y = jax.nn.relu(conv(skip, p["down"], stride=2))
        y = jax.nn.relu(conv(y, p["middle"]))
        y = jnp.repeat(jnp.repeat(y, 2, axis=1), 2, axis=2)
        y = jnp.concatenate([y, skip], -1)
        return conv(jax.nn.relu(conv(y, p["up"])), p["out"])

    return fn, params, (vectors(1, 4, 4, 2),)


def grouped_convolutions():
    """Two groups; then depthwise with two outputs a channel."""
    params = draw(
        enter=(1, 1, 3, 8), grouped=(3, 3, 4, 6), depth=(3, 3, 1, 12), out=(12, 5)
    )

    def fn(p, x):
        x = jax.nn.relu(conv(x, p["enter"]))
        x = jax.nn.relu(conv(x, p["grouped"], groups=2))
        x = jax.nn.relu(conv(x, p["depth"], groups=6))
        return x.mean((1, 2)) @ p["out"]

    return fn, params, (vectors(2, 4, 4, 3),)


def flattened_nchw():
    """Channels are the major factor of what the head contracts."""
    params = draw(kernel=(6, 3, 3, 3), bias=(6,), head=(24, 5))

    def fn(p, x):
        x = lax.conv_general_dilated(x, p["kernel"], (2, 2), "SAME")
        x = jax.nn.relu(x + p["bias"][:, None, None])
        return x.reshape(len(x), -1) @ p["head"]

    return fn, params, (vectors(2, 3, 4, 4),)


def mlp_mixer():
    """Products along positions and along channels in turn."""
    params = draw(
        patch=(12, 8),
        norm=(8,),
        tokens=(4, 6),
        back=(6, 4),
        up=(8, 10),
        down=(10, 8),
        out=(8, 5),
    )

    def fn(p, x):
        x = x.reshape(2, 2, 2, 2, 2, 3).swapaxes(2, 3).reshape(2, 4, 12) @ p["patch"]
        y = rms_norm(x, p["norm"]).swapaxes(1, 2)
        x = x + (jax.nn.gelu(y @ p["tokens"]) @ p["back"]).swapaxes(1, 2)
        x = x + jax.nn.gelu(x @ p["up"]) @ p["down"]
        return x.mean(1) @ p["out"]

    return fn, params, (vectors(2, 4, 4, 3),)


def class_token():
    """An encoder with learned positions, a class token, and LayerNorm."""
    params = draw(
        patch=(6, 8),
        token=(1, 1, 8),
        positions=(1, 5, 8),
        scale=(8,),
        bias=(8,),
        q=(8, 2, 4),
        k=(8, 2, 4),
        v=(8, 2, 4),
        o=(2, 4, 8),
        head=(8, 5),
    )

    def fn(p, x):
        x = x @ p["patch"]
        first = jnp.broadcast_to(p["token"], (len(x), 1, 8))
        x = jnp.concatenate([first, x], 1) + p["positions"]
        h = layer_norm(x, p["scale"], p["bias"])
        q, k, v = (jnp.einsum("bsd,dhk->bshk", h, p[name]) for name in "qkv")
        x = x + attend(q, k, v) @ p["o"].reshape(8, 8)
        return x[:, 0] @ p["head"]

    return fn, params, (vectors(2, 4, 6),)
