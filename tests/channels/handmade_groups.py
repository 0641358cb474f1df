"""Small models, and their channel groups written by hand."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from jaxsparse import ChannelGroup, ChannelGroups, ChannelMember


FIXED = "meets an input of the model"


def member(path, shape, axis, role, view=None, channel=None, indices=()):
    """A member that takes the whole of a leaf."""
    slices = tuple((0, size) for size in shape)
    channel = axis if channel is None else channel
    return ChannelMember(path, slices, view or shape, channel, indices, axis, role)


def random_params(shapes, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda shape: rng.normal(size=shape) / shape[0] ** 0.5
    return {k: jnp.asarray(draw(x), jnp.float32) for k, x in shapes.items()}


MLP = {"up": (16, 64), "bias": (64,), "down": (64, 32)}


def mlp(params, x):
    hidden = jax.nn.relu(x @ params["up"] + params["bias"])
    return hidden @ params["down"]


def mlp_groups():
    members = (
        member("up", (16, 64), 1, "output"),
        member("bias", (64,), 0, "elementwise"),
        member("down", (64, 32), 0, "input"),
    )
    inputs = (member("up", (16, 64), 0, "input"),)
    return ChannelGroups(
        (
            ChannelGroup(16, (), inputs, FIXED, FIXED),
            ChannelGroup(64, (), members, "", ""),
        )
    )


STACKED = {"up": (3, 16, 32), "down": (3, 32, 16)}


def stacked(params, x):
    """Three MLPs in a loop, behind each other."""

    def layer(x, weights):
        return x + jax.nn.relu(x @ weights["up"]) @ weights["down"], None

    return jax.lax.scan(layer, x, params)[0]


def stacked_groups():
    members = (
        member("up", (3, 16, 32), 2, "output", indices=(0,)),
        member("down", (3, 32, 16), 1, "input", indices=(0,)),
    )
    return ChannelGroups((ChannelGroup(32, (3,), members, "", ""),))


HEADS = {"value": (16, 32), "mixing": (4, 8, 8), "out": (64, 16)}


def heads(params, x):
    """Attention without queries: two value heads, each shared by two mixing heads."""
    value = (x @ params["value"]).reshape(8, 2, 16)
    shared = jnp.repeat(value, 2, axis=1)
    mixed = jnp.einsum("hst,thd->shd", params["mixing"], shared)
    return mixed.reshape(8, 64) @ params["out"]


def heads_groups():
    members = (
        member("value", (16, 32), 1, "output", (16, 2, 16), 2, (1,)),
        member("out", (64, 16), 0, "input", (2, 2, 16, 16), 2, (0,)),
    )
    return ChannelGroups((ChannelGroup(16, (2,), members, "", ""),))


MODELS = {
    "mlp": (mlp, MLP, mlp_groups),
    "stacked": (stacked, STACKED, stacked_groups),
    "heads": (heads, HEADS, heads_groups),
}


INPUTS = jax.random.normal(jax.random.key(9), (8, 16))


def setting(name, pattern="2:4", seed=0):
    """A function, its parameters, their plan and the channel groups."""
    fn, shapes, groups = MODELS[name]
    params = random_params(shapes, seed)
    plan = js.plan_sparsity(params, pattern, fn=fn, args=(INPUTS,), dense_head=False)
    return fn, params, plan, groups()


@cache
def permuted(name):
    fn, params, plan, groups = setting(name)
    result = js.permute_channels(params, plan, fn, (INPUTS,), groups=groups)
    return fn, params, plan, result
