"""Groups of small models, written down by hand from their formulas."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxsparse._channels import channel_groups
from tests.channels.models import MODELS
from tests.trace.tracing import shape


def described(groups):
    """The free groups: size for each index, then each member's range and role."""
    lines = []
    for group in groups:
        if not group.fixed:
            sizes = "x".join(map(str, (*group.index, group.size)))
            members = sorted(
                f"{x.path}[{x.axis}, {x.slices[x.axis][0]}:{x.slices[x.axis][1]}] "
                f"{x.role[:3]}"
                for x in group.members
            )
            lines.append(f"{sizes}: {', '.join(members)}")
    return sorted(lines)


EXPECTED = {
    "mlp": ["12: bias[0, 0:12] ele, down[0, 0:12] inp, up[1, 0:12] out"],
    "decoder": [
        # Each key head's values have an order of their own, in both query heads.
        "16: down[1, 0:16] out, embed[1, 0:16] inp, gate[0, 0:16] inp, "
        "k[0, 0:16] inp, norm1[0, 0:16] ele, norm2[0, 0:16] ele, "
        "norm3[0, 0:16] ele, o[1, 0:16] out, q[0, 0:16] inp, up[0, 0:16] inp, "
        "v[0, 0:16] inp",
        "20: down[0, 0:20] inp, gate[1, 0:20] out, up[1, 0:20] out",
        "3: k[1, 0:12] out, o[0, 0:24] inp, q[1, 0:24] out, v[1, 0:12] out",
        "3x2: o[0, 0:24] inp, q[1, 0:24] out",
        "3x4: o[0, 0:24] inp, v[1, 0:12] out",
    ],
    "fused_qkv_split": [
        "2: bias[0, 0:16] ele, bias[0, 16:24] ele, bias[0, 24:32] ele, "
        "o[0, 0:16] inp, qkv[1, 0:16] out, qkv[1, 16:24] out, qkv[1, 24:32] out",
        "2x2: bias[0, 0:16] ele, o[0, 0:16] inp, qkv[1, 0:16] out",
        "2x4: bias[0, 0:16] ele, bias[0, 16:24] ele, qkv[1, 0:16] out, "
        "qkv[1, 16:24] out",
        "2x4: bias[0, 24:32] ele, o[0, 0:16] inp, qkv[1, 24:32] out",
        "8: down[0, 0:8] inp, o[1, 0:8] out",
    ],
    "fused_gate_up": [
        "12: down[0, 0:12] inp, gate_up[1, 0:12] out, gate_up[1, 12:24] out"
    ],
    "mixture_of_experts": [
        "4: down[0, 0:4] ele, router[1, 0:4] out, up[0, 0:4] out",
        "4x6: down[1, 0:6] inp, up[2, 0:6] out",
        "8: down[2, 0:8] out, inp[1, 0:8] out, out[0, 0:8] inp, "
        "router[0, 0:8] inp, up[1, 0:8] inp",
    ],
    "stacked_layers": [
        "3x12: down[1, 0:12] inp, up[2, 0:12] out",
        "8: down[2, 0:8] out, inp[1, 0:8] out, norm[1, 0:8] ele, "
        "out[0, 0:8] inp, up[1, 0:8] inp",
    ],
    "u_net": [
        "4: down[2, 0:4] inp, enter[3, 0:4] out, up[2, 6:10] inp",
        "5: out[2, 0:5] inp, up[3, 0:5] out",
        "6: down[3, 0:6] out, middle[2, 0:6] inp",
        "6: middle[3, 0:6] out, up[2, 0:6] inp",
    ],
    "grouped_convolutions": [
        # 8 inputs and 6 outputs in two groups; then 6 channels with two outputs each.
        "2: depth[3, 0:12] out, enter[3, 0:8] out, grouped[3, 0:6] out, "
        "out[0, 0:12] inp",
        "2x3: depth[3, 0:12] out, grouped[3, 0:6] out, out[0, 0:12] inp",
        "2x3x2: depth[3, 0:12] out, out[0, 0:12] inp",
        "2x4: enter[3, 0:8] out, grouped[2, 0:4] inp",
    ],
    "weight_norm": [
        "12: down[0, 0:12] inp, g[0, 0:12] out, v[1, 0:12] out",
    ],
    "tied_autoencoder": ["12: bias[0, 0:12] ele, w[1, 0:12] inp"],
    "flattened_nchw": ["6: bias[0, 0:6] ele, head[0, 0:24] inp, kernel[0, 0:6] out"],
    "ensemble": ["3x12: bias[1, 0:12] ele, down[1, 0:12] inp, up[2, 0:12] out"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_free_groups_are_these(name):
    fn, params, args = MODELS[name]()
    groups = channel_groups(fn, params, *args)
    assert described(groups) == sorted(EXPECTED[name])


def test_members_are_views_with_the_channels_along_one_axis():
    fn, params, args = MODELS["decoder"]()
    groups = channel_groups(fn, params, *args)
    (values,) = groups.of("v", 1)[1:]
    assert [x.view for x in values.members] == [(3, 2, 4, 16), (16, 3, 4)]
    assert [(x.channel, x.indices) for x in values.members] == [(2, (0,)), (2, (1,))]


def reasons(name):
    fn, params, args = MODELS[name]()
    return {group.fixed for group in channel_groups(fn, params, *args)} - {""}


def test_reasons_name_what_fixes_the_channels():
    assert reasons("mlp") == {"an input of the model", "an output of the model"}
    assert "positions choose a branch" in reasons("branches")
    assert "a spatial axis of a convolution" in reasons("u_net")
    assert "a loop goes along it" in reasons("stacked_layers")
    assert "looked up by numbers" in reasons("decoder")


KEY = jax.random.key(0)
TIES = "elements may be equal, and the first is chosen"


def fixed_width(change, rows=8):
    """Why the width of `change(x @ up) @ down` is fixed; None if it is free."""
    params = {"up": shape(4, 8), "down": shape(rows, 3)}
    fn = lambda p, x: change(x @ p["up"]) @ p["down"]
    return [g.fixed for g in channel_groups(fn, params, shape(2, 4)).of("up", 1)]


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (lambda x: x[:, ::-1], ["`rev`"]),
        (lambda x: jnp.cumsum(x, 1), ["`cumsum`"]),
        (jnp.sort, [""]),  # sorting takes any order
        (lambda x: x + jnp.arange(8.0), ["positions are used as numbers, by `add`"]),
        (lambda x: x + jnp.asarray([1.0] * 7 + [2.0]), ["a constant of the model"]),
        (lambda x: x + jnp.full(8, 2.0), [""]),
        (jnp.fft.fft, ["`fft`"]),
        (lambda x: jnp.roll(x, 4, 1), ["", ""]),  # the halves are swapped
        (lambda x: x + jnp.roll(x, 4, 1), [""]),
        (lambda x: x + jnp.roll(x, 1, 1), []),  # no two channels are alike
        (lambda x: x * (jnp.arange(8) < 4), ["positions are used as numbers, by `lt`"]),
        (lambda x: jnp.where(x > 0, x, -1.0), [""]),
        (lambda x: x[:, jnp.arange(8)], [""]),
        (lambda x: x[:, jnp.argsort(x[0])], [""]),
        (lambda x: x @ jnp.eye(8), [""]),
        (lambda x: x @ jnp.tri(8), ["positions are used as numbers, by `ge`"]),
        (
            lambda x: jnp.take(x, jnp.array([2, 0, 1] * 2 + [3, 3]), 1),
            ["looked up by numbers"],
        ),
        (lambda x: x * jax.random.bernoulli(KEY, 0.5, x.shape), ["random numbers"]),
        (lambda x: x + jax.nn.one_hot(jnp.argmax(x, 1), 8), [""]),
        (lambda x: x + jax.nn.one_hot(jnp.argmax(jnp.abs(x) > 1, 1), 8), [TIES]),
        (lambda x: jnp.abs(x) ** lax.top_k(x, 2)[0].sum(1, keepdims=True), [""]),
        (lambda x: jnp.take_along_axis(x, jnp.argsort(x, 1), 1), [""]),
        (lambda x: x.at[:, 2].set(0.0), ["looked up by numbers"]),
        (lambda x: lax.dynamic_update_slice(x, 0 * x[:, :2], (0, 3)), ["", ""]),
        (lambda x: jnp.pad(x, ((0, 0), (2, 0)))[:, :8], ["", ""]),
        (lambda x: jnp.tile(x[:, :4], (1, 2)), ["", ""]),
        (lambda x: lax.associative_scan(jnp.add, x, axis=1), []),
        (lambda x: x.reshape(2, 2, 4).max(2).repeat(4, 1), ["", ""]),
    ],
)
def test_what_an_operation_does_to_the_order_of_channels(change, reasons):
    found = fixed_width(change)
    assert found == reasons


def test_factors_that_do_not_align_are_fixed():
    params = {"a": shape(3, 24), "b": shape(3, 24), "out": shape(24, 5)}
    params |= {"s": shape(4, 6), "t": shape(6, 4)}

    def fn(p, x):
        a = (x @ p["a"]).reshape(-1, 4, 6) * p["s"]
        b = (x @ p["b"]).reshape(-1, 6, 4) * p["t"]
        return (a.reshape(-1, 24) + b.reshape(-1, 24)) @ p["out"]

    groups = channel_groups(fn, params, shape(6, 3))
    for path in "ab":
        reasons = {g.fixed for g in groups.of(path, 1)}
        assert reasons == {"axes of sizes 24 and 24 do not align"}


def test_stacked_layers_that_are_read_one_by_one_have_their_own_orders():
    fn, params, args = MODELS["unrolled_layers"]()
    groups = channel_groups(fn, params, *args)
    hidden = groups.of("up", 2)
    members = [[(x.path, x.slices[0]) for x in g.members] for g in hidden]
    assert members == [[("down", (i, i + 1)), ("up", (i, i + 1))] for i in range(2)]
    assert {g.kept for g in hidden} == {"other channels are stacked on it"}


def test_what_a_loop_carries_is_the_same_in_every_step():
    params = {"a": shape(3, 4), "w": shape(4, 4), "out": shape(4, 5)}

    def fn(p, x):
        step = lambda _, h: jnp.tanh(h @ p["w"])
        return lax.fori_loop(0, 3, step, x @ p["a"]) @ p["out"]

    (group,) = channel_groups(fn, params, shape(6, 3)).of("a", 1)
    members = [(x.path, x.axis) for x in group.members]
    assert members == [("a", 1), ("out", 0), ("w", 0), ("w", 1)]


def test_taking_out_is_refused_where_channels_are_normalised_over():
    fn, params, args = MODELS["decoder"]()
    kept = {group.size: group.kept for group in channel_groups(fn, params, *args)}
    assert kept[16] == "normalised over"
    assert kept[20] == ""
    fn, params, args = MODELS["mixture_of_experts"]()
    kept = {group.size: group.kept for group in channel_groups(fn, params, *args)}
    assert kept[4] == ""  # a router's softmax goes over the experts


def _norm_by(squares):
    return lambda p, x: (h := x @ p["up"]) * lax.rsqrt(squares(h)) @ p["down"]


@pytest.mark.parametrize(
    "fn",
    [
        _norm_by(lambda h: (h * h).mean(-1, keepdims=True)),
        _norm_by(lambda h: jnp.einsum("bc,bc->b", h, h)[:, None] / 12),
        _norm_by(lambda h: jax.vmap(jnp.vdot)(h, h * 2)[:, None]),
        _norm_by(lambda h: (h[:, None] @ h[:, :, None])[:, 0]),
        _norm_by(lambda h: (h * h) @ jnp.full((12, 1), 1 / 12)),
        lambda p, x: x @ (p["up"] / jnp.einsum("ic,ic->i", p["up"], p["up"])[:, None])
        @ p["down"],
    ],
)  # fmt: skip
def test_a_matmul_that_is_a_sum_over_channels_normalises_as_well(fn):
    (group,) = channel_groups(
        fn, {"up": shape(3, 12), "down": shape(12, 2)}, shape(4, 3)
    ).of("up", 1)
    assert (group.fixed, group.kept) == ("", "normalised over")


@pytest.mark.parametrize(
    "fn",
    [
        lambda p, x: jnp.einsum("ac,bc->ab", x @ p["up"], x @ p["down"].T),
        lambda p, x: jnp.einsum("ac,ac->a", x @ p["up"], x @ p["down"].T),  # one key
        lambda p, x: jnp.tanh(x[0] @ p["up"]) @ p["down"][:, 0],  # one output, no batch
        lambda p, x: x @ (p["up"] @ p["down"]),
        lambda p, x: (jnp.zeros((4, 12)) @ p["down"], x @ p["up"] @ p["down"]),
    ],
)
def test_other_matmuls_may_lose_channels(fn):
    (group,) = channel_groups(
        fn, {"up": shape(3, 12), "down": shape(12, 3)}, shape(4, 3)
    ).of("up", 1)
    assert (group.fixed, group.kept) == ("", "")


def test_a_leaf_that_is_not_used_is_in_no_group():
    fn = lambda p, x: x @ p["w"]
    params = {"w": shape(4, 3), "other": shape(4, 3)}
    groups = channel_groups(fn, params, shape(2, 4))
    assert {x.path for group in groups for x in group.members} == {"w"}


def test_symbolic_sizes_are_refused():
    (size,) = jax.export.symbolic_shape("b")
    params = {"w": shape(4, 3)}
    with pytest.raises(ValueError, match=r"\(b, 4\) has symbols: give arrays"):
        channel_groups(lambda p, x: x @ p["w"], params, shape(size, 4))


def test_shapes_are_enough_and_nothing_is_run():
    def fn(p, x):
        assert isinstance(p["w"], jax.core.Tracer)
        return x @ p["w"]

    assert len(channel_groups(fn, {"w": shape(4, 3)}, shape(2, 4))) == 2
