"""Which channels of heads, or of fused parts, have orders of their own."""

import jax
import jax.numpy as jnp
import pytest

from jaxsparse._channels import channel_groups
from tests.trace.tracing import shape


def heads(change):
    """Two heads of four channels, changed between two products."""
    params = {"up": shape(3, 2, 4), "down": shape(2, 4, 5)}

    def fn(p, x):
        return jnp.einsum(
            "bhd,hde->be", change(jnp.einsum("bi,ihd->bhd", x, p["up"])), p["down"]
        )

    return [
        (g.index, g.size) for g in channel_groups(fn, params, shape(6, 3)).of("up", 2)
    ]


@pytest.mark.parametrize(
    ("change", "groups"),
    [
        (jnp.tanh, [((2,), 4)]),
        (lambda x: x - x.mean(2, keepdims=True), [((2,), 4)]),
        # Channels of different heads meet: they have one order.
        (lambda x: x - x.mean(1, keepdims=True), [((), 4)]),
        (lambda x: x + x[:, ::-1], [((), 4)]),
        (lambda x: jnp.cumsum(x, 1), [((), 4)]),
        (
            lambda x: x + jnp.einsum("bhd,bgd->bhg", x, x).sum(2, keepdims=True),
            [((), 4)],
        ),
        (lambda x: jnp.concatenate([x, x[:, :1]], 1)[:, 1:], [((), 4)]),
        (lambda x: x[:, jnp.argsort(x[0].sum(1))], [((), 4)]),
        (lambda x: x * jax.nn.softmax(x, 1), [((), 4)]),
    ],
)
def test_heads_have_separate_orders_unless_their_channels_meet(change, groups):
    assert heads(change) == groups


def fused(change):
    """Queries, keys and values in one array: where those are that share an order."""
    params = {"up": shape(3, 12), "down": shape(4, 5)}

    def fn(p, x):
        x = change((x @ p["up"]).reshape(-1, 3, 4))
        scores = (x[:, 0] * x[:, 1]).sum(1, keepdims=True)
        return (scores * x[:, 2]) @ p["down"]

    groups = channel_groups(fn, params, shape(6, 3)).of("up", 1)
    ranges = [[x.slices[1][0] for x in g.members if x.path == "up"] for g in groups]
    return sorted(ranges)


@pytest.mark.parametrize(
    ("change", "starts"),
    [
        (lambda x: x, [[0, 4], [8]]),
        (jnp.tanh, [[0, 4], [8]]),
        (lambda x: x - x.mean(2, keepdims=True), [[0, 4], [8]]),
        (lambda x: x - x.mean(1, keepdims=True), [[0, 4, 8]]),
        (lambda x: x + x[:, ::-1], [[0, 4, 8]]),
        (lambda x: jnp.cumsum(x, 1), [[0, 4, 8]]),
        (lambda x: jnp.roll(x, 1, 1) + x, [[0, 4, 8]]),
        (lambda x: x * jnp.einsum("bij,bkj->bik", x, x).sum(1)[..., None], [[0, 4, 8]]),
    ],
)
def test_what_is_taken_apart_has_separate_orders_unless_it_meets(change, starts):
    assert fused(change) == starts


def test_positions_that_are_not_taken_share_an_order():
    params = {"up": shape(3, 12), "down": shape(4, 5)}
    fn = lambda p, x: (x @ p["up"]).reshape(-1, 3, 4)[:, 2] @ p["down"]
    groups = channel_groups(fn, params, shape(6, 3)).of("up", 1)
    members = [
        (g.size, [x.slices[1] for x in g.members if x.path == "up"]) for g in groups
    ]
    assert sorted(members) == [(2, [(0, 8)]), (4, [(0, 8), (8, 12)])]


def test_what_lies_interleaved_shares_an_order():
    params = {"up": shape(3, 12), "down": shape(4, 5)}

    def fn(p, x):
        x = (x @ p["up"]).reshape(-1, 4, 3)
        return ((x[..., 0] * x[..., 1]).sum(1, keepdims=True) * x[..., 2]) @ p["down"]

    (group,) = channel_groups(fn, params, shape(6, 3)).of("up", 1)
    assert [(x.path, x.view) for x in group.members] == [
        ("down", (4, 5)),
        ("up", (3, 4, 3)),
    ]


def test_positions_may_meet_after_they_were_taken_apart():
    params = {"up": shape(3, 12), "down": shape(4, 5)}

    def fn(p, x):
        x = (x @ p["up"]).reshape(-1, 3, 4)
        scores = (x[:, 0] * x[:, 1]).sum(1, keepdims=True)
        return (scores * (x + x[:, ::-1])[:, 2]) @ p["down"]

    groups = channel_groups(fn, params, shape(6, 3)).of("up", 1)
    assert [[x.slices[1][0] for x in g.members if x.path == "up"] for g in groups] == [
        [0, 4, 8]
    ]


def test_heads_that_look_each_other_up_have_one_order_of_channels():
    params = {"up": shape(3, 2, 4), "which": shape(2, 2), "down": shape(2, 4, 5)}

    def fn(p, x):
        x = jnp.einsum("bi,ihd->bhd", x, p["up"])
        x = x + x[:, jnp.argmax(p["which"], 1)]
        return jnp.einsum("bhd,hde->be", x, p["down"])

    groups = channel_groups(fn, params, shape(6, 3))
    assert [(g.index, g.size, g.fixed) for g in groups.of("up", 1)] == [((), 2, "")]
    assert [(g.index, g.size, g.fixed) for g in groups.of("up", 2)] == [((), 4, "")]
