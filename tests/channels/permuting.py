"""Permutes channels of parameters, and compares what a function then returns."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse._channels.member_view import take_channels
from jaxsparse._trees import flatten, is_array


def drawn(params, seed=0):
    """Parameters near those given, so that no two channels are the same."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        if not is_array(leaf) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        noise = 0.1 * rng.normal(size=leaf.shape)
        return jnp.asarray(np.asarray(leaf) + noise, leaf.dtype)

    return jax.tree.map(draw, params)


def permuted(params, groups, seed=0):
    """Parameters with the channels of these groups in another order."""
    rng = np.random.default_rng(seed)
    leaves = flatten(params)
    new = dict(leaves.by_path)
    for group in groups:
        old = np.broadcast_to(np.arange(group.size), (*group.index, group.size))
        order = rng.permuted(old, axis=-1)
        while (order == old).all():
            order = rng.permuted(old, axis=-1)
        for member in group.members:
            array = np.asarray(new[member.path])
            new[member.path] = take_channels(array, member, order)
    return leaves.unflatten(new)


def difference(fn, params, other, args):
    """The largest difference of the outputs, relative to the largest output."""
    outputs = lambda params: np.concatenate(
        [np.ravel(x) for x in jax.tree.leaves(fn(params, *args))]
    )
    before = outputs(params)
    return np.abs(outputs(other) - before).max() / np.abs(before).max()
