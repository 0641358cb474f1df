"""A group without channels is the function without what reads them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse._channels import channel_groups
from jaxsparse._channels.member_view import read_member, take_channels, write_member
from tests.channels.image_models import conv
from tests.channels.permuting import difference, drawn
from tests.channels.plain_models import attend, draw, vectors


def swiglu():
    params = draw(norm=(6,), gate=(6, 12), up=(6, 12), down=(12, 5))

    def fn(p, x):
        h = x * p["norm"]
        return (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]

    return fn, params, (vectors(3, 6),), ("down", 0)


def convolution_with_batch_norm():
    params = draw(
        first=(3, 3, 3, 8),
        second=(1, 1, 8, 5),
        **dict.fromkeys(("mean", "var", "scale", "bias"), (8,)),
    )
    params["var"] = jnp.abs(params["var"]) + 1

    def fn(p, x):
        x = (conv(x, p["first"]) - p["mean"]) * jax.lax.rsqrt(p["var"] + 1e-5)
        return conv(jax.nn.relu(x * p["scale"] + p["bias"]), p["second"])

    return fn, params, (vectors(2, 4, 4, 3),), ("second", 2)


def values_of_heads():
    """The channels of each of three value heads, in two query heads each."""
    params = draw(q=(8, 6, 4), k=(8, 3, 4), v=(8, 3, 4), o=(3, 2, 4, 5))

    def fn(p, x):
        q, k, v = (jnp.einsum("bsd,dhk->bshk", x, p[name]) for name in "qkv")
        q = q.reshape(*x.shape[:2], 3, 2, 4)
        scores = jax.nn.softmax(jnp.einsum("bqhgd,bkhd->bhgqk", q, k))
        mixed = jnp.einsum("bhgqk,bkhd->bqhgd", scores, v)
        return jnp.einsum("bqhgd,hgde->bqe", mixed, p["o"])

    return fn, params, (vectors(2, 3, 8),), ("o", 2)


def whole_heads():
    params = draw(q=(8, 3, 4), k=(8, 3, 4), v=(8, 3, 4), o=(3, 4, 5))

    def fn(p, x):
        q, k, v = (jnp.einsum("bsd,dhk->bshk", x, p[name]) for name in "qkv")
        mixed = attend(q, k, v).reshape(*x.shape[:2], *v.shape[2:])
        return jnp.einsum("bqhd,hde->bqe", mixed, p["o"])

    return fn, params, (vectors(2, 3, 8),), ("o", 0)


def mlp():
    params = draw(up=(6, 12), bias=(12,), down=(12, 5))
    fn = lambda p, x: jax.nn.gelu(x @ p["up"] + p["bias"]) @ p["down"]
    return fn, params, (vectors(3, 6),), ("down", 0)


QUICK = ["[swiglu]", "[values_of_heads]"]


@pytest.mark.sweep(keep=QUICK)
@pytest.mark.parametrize(
    "model",
    [mlp, swiglu, convolution_with_batch_norm, values_of_heads, whole_heads],
)
def test_without_a_channel_is_as_if_nothing_read_it(model):
    fn, params, args, consumer = model()
    params = {path: np.asarray(leaf) for path, leaf in drawn(params).items()}
    (group,) = channel_groups(fn, params, *args).of(*consumer)
    assert group.kept == ""
    rng = np.random.default_rng(0)
    all_channels = np.broadcast_to(np.arange(group.size), (*group.index, group.size))
    kept = np.sort(rng.permuted(all_channels, axis=-1)[..., :-1])
    smaller, unread = dict(params), dict(params)
    for member in group.members:
        smaller[member.path] = take_channels(smaller[member.path], member, kept)
        if member.role == "input":
            leaf = unread[member.path]
            view = np.moveaxis(
                read_member(leaf, member).copy(),
                (*member.indices, member.channel),
                range(len(member.indices) + 1),
            )
            for index in np.ndindex(*group.index):
                (gone,) = set(range(group.size)) - set(kept[index].tolist())
                view[(*index, gone)] = 0
            view = np.moveaxis(
                view,
                range(len(member.indices) + 1),
                (*member.indices, member.channel),
            )
            unread[member.path] = write_member(leaf, member, view)
    before = sum(leaf.size for leaf in params.values())
    assert sum(leaf.size for leaf in smaller.values()) < before
    assert difference(jax.jit(fn), unread, smaller, args) < 1e-5
