"""Permutes channels of parameters, and compares what a function then returns."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse._channels import take_channels
from jaxsparse._trees import flatten, is_array


def drawn(params, seed=0):
    """Parameters near those given, so that no two channels are the same."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        if not is_array(leaf) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        noise = rng.normal(size=leaf.shape) * 0.1
        return jnp.asarray(leaf + noise, leaf.dtype)

    return jax.tree.map(draw, params)


def permuted(params, groups, seed=0):
    """Parameters with the channels of these groups in another order."""
    rng = np.random.default_rng(seed)
    leaves = flatten(params)
    arrays = {
        path: np.asarray(leaf)
        if is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.number)
        else leaf
        for path, leaf in leaves.by_path.items()
    }
    for group in groups:
        old = np.broadcast_to(np.arange(group.size), (*group.index, group.size))
        order = rng.permuted(old, axis=-1)
        while (order == old).all():
            order = rng.permuted(old, axis=-1)
        for member in group.members:
            arrays[member.path] = take_channels(arrays[member.path], member, order)
    return leaves.unflatten(arrays)


def difference(fn, params, others, args):
    """The largest difference, relative to the largest output."""
    of = lambda params: np.concatenate(
        [np.ravel(x) for x in jax.tree.leaves(fn(params, *args))]
    )
    before = of(params)
    return [np.abs(of(other) - before).max() / np.abs(before).max() for other in others]
