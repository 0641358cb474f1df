"""Channel groups written by hand, and the models that have them."""

import jax

from jaxsparse import ChannelGroup, ChannelGroups, ChannelMember


def whole(path, shape, axis, role, view=None, channel=None, indices=()):
    """A member that takes the whole of a leaf."""
    slices = tuple((0, size) for size in shape)
    channel = axis if channel is None else channel
    return ChannelMember(path, slices, view or shape, channel, indices, axis, role)


def mlp_groups(width, hidden, outputs):
    """The hidden channels of `mlp`, and the inputs, which are fixed."""
    group = ChannelGroup(
        hidden,
        (),
        (
            whole("up/kernel", (width, hidden), 1, "output"),
            whole("up/bias", (hidden,), 0, "elementwise"),
            whole("down/kernel", (hidden, outputs), 0, "input"),
        ),
        "",
        "",
    )
    fixed = ChannelGroup(
        width,
        (),
        (whole("up/kernel", (width, hidden), 0, "input"),),
        "meets an input of the model",
        "meets an input of the model",
    )
    return ChannelGroups((fixed, group))


def mlp_params(key, width, hidden, outputs):
    keys = jax.random.split(key, 3)
    return {
        "up": {
            "kernel": jax.random.normal(keys[0], (width, hidden)),
            "bias": jax.random.normal(keys[1], (hidden,)),
        },
        "down": {"kernel": jax.random.normal(keys[2], (hidden, outputs))},
    }


def mlp(params, x):
    hidden = jax.nn.relu(x @ params["up"]["kernel"] + params["up"]["bias"])
    return hidden @ params["down"]["kernel"]
