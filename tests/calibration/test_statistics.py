"""Statistics of layers' inputs equal plain NumPy's, in float64, of the same inputs."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from tests.calibration.statistics_oracle import MLP, agree, collect, normal


KEY = jax.random.key(0)


def hidden(x, layer):
    return np.maximum(x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0)


def test_batches_of_unequal_size_weigh_by_their_tokens():
    model, x = MLP(), normal(13, 16)
    params = model.init(KEY, x)["params"]
    fn = lambda params, x: model.apply({"params": params}, x)
    statistics = collect(fn, params, x[:3], x[3:4], x[4:])
    agree(statistics["a/kernel"], x)
    agree(statistics["b/kernel"], hidden(x, params["a"]))
    assert statistics["a/kernel"].columns.inputs == (0,)


def test_an_nnx_model_and_mean_squares_alone():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Linear(16, 8, rngs=rngs)
            self.b = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.b(nnx.relu(self.a(x)))

    net, x = Net(nnx.Rngs(0)), normal(2, 5, 16)
    statistics = collect(lambda net, x: net(x), net, x, statistic="mean_square")
    assert net.a.bias is not None
    expected = hidden(x, {"kernel": net.a.kernel[...], "bias": net.a.bias[...]})
    squares = (expected.reshape(-1, 8) ** 2).mean(0)
    np.testing.assert_allclose(
        statistics["b/kernel"].mean_square[0], squares, rtol=1e-5
    )
    with pytest.raises(ValueError, match="only mean squares were collected"):
        _ = statistics["b/kernel"].second_moment


def test_an_equinox_model_whose_kernels_are_transposed():
    net, x = eqx.nn.MLP(16, 4, 8, depth=1, key=KEY), normal(6, 16)
    statistics = collect(lambda net, x: jax.vmap(net)(x), net, x)
    first: eqx.nn.Linear = net.layers[0]
    assert first.bias is not None
    agree(statistics["layers/0/weight"], x)
    layer = {"kernel": np.asarray(first.weight).T, "bias": first.bias}
    agree(statistics["layers/1/weight"], hidden(x, layer))
    assert statistics["layers/0/weight"].columns.inputs == (1,)


def patches(x, window, strides, padding, dilation):
    """Windows of images (N, H, W, C), each as (h, w, c), one at a time."""
    x = np.pad(x, [(0, 0), *padding, (0, 0)])
    reach = [(n - 1) * d + 1 for n, d in zip(window, dilation, strict=True)]
    rows = [
        x[
            :,
            i : i + reach[0] : dilation[0],
            j : j + reach[1] : dilation[1],
        ].reshape(len(x), -1)
        for i in range(0, x.shape[1] - reach[0] + 1, strides[0])
        for j in range(0, x.shape[2] - reach[1] + 1, strides[1])
    ]
    return np.concatenate(rows)


@pytest.mark.parametrize(
    ("strides", "padding", "dilation"),
    [
        ((1, 1), ((0, 0), (0, 0)), (1, 1)),
        ((2, 3), ((1, 2), (0, 1)), (1, 1)),
        ((1, 2), ((2, 0), (1, 1)), (2, 3)),
    ],
)
def test_a_convolution_sees_windows(strides, padding, dilation):
    model = nn.Conv(
        8, (3, 2), strides, padding=padding, kernel_dilation=dilation, name="conv"
    )
    x = normal(2, 7, 8, 4)
    params = model.init(KEY, x)["params"]
    statistics = collect(lambda p, x: model.apply({"params": p}, x), params, x)
    agree(statistics["kernel"], patches(x, (3, 2), strides, padding, dilation))
    assert statistics["kernel"].columns.inputs == (0, 1, 2)


@pytest.mark.sweep
def test_each_group_of_a_convolution_is_a_problem_of_its_own():
    model, x = (
        nn.Conv(6, (3, 3), padding="VALID", feature_group_count=2),
        normal(2, 5, 5, 8),
    )
    params = model.init(KEY, x)["params"]
    statistics = collect(lambda p, x: model.apply({"params": p}, x), params, x)[
        "kernel"
    ]
    groups = [
        patches(part, (3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1))
        for part in (x[..., :4], x[..., 4:])
    ]
    agree(statistics, *groups)
    kernel = np.asarray(params["kernel"])  # (3, 3, 4, 6): outputs 0 to 2, then 3 to 5
    matrices = np.asarray(statistics.columns.to_matrices(params["kernel"]))
    np.testing.assert_array_equal(matrices[1], kernel.reshape(36, 6)[:, 3:])
    np.testing.assert_array_equal(
        statistics.columns.from_matrices(jnp.asarray(matrices)), kernel
    )


def test_pytorch_layout_of_a_convolution():
    x, kernel = normal(2, 4, 6, 5), normal(8, 4, 3, 2, seed=1)  # NCHW, OIHW
    fn = lambda p, x: lax.conv_general_dilated(
        x, p["w"], (1, 1), "VALID", dimension_numbers=("NCHW", "OIHW", "NCHW")
    )
    statistics = collect(fn, {"w": kernel}, x)["w"]
    agree(
        statistics,
        patches(x.transpose(0, 2, 3, 1), (3, 2), (1, 1), ((0, 0),) * 2, (1, 1)),
    )
    assert statistics.columns.inputs == (2, 3, 1)


def test_attention():
    model = nnx.MultiHeadAttention(2, 16, decode=False, rngs=nnx.Rngs(0))
    x = normal(3, 5, 16)
    statistics = collect(lambda model, x: model(x), model, x)
    for name in ("query", "key", "value"):
        agree(statistics[f"{name}/kernel"], x)

    def project(layer):  # (batch, token, head, 8)
        kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
        return np.einsum("bse,ehd->bshd", x, kernel) + bias

    query, key, value = map(project, (model.query, model.key, model.value))
    logits = np.einsum("bshd,bthd->bhst", query, key) / np.sqrt(8)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("bhst,bthd->bshd", weights, value).reshape(3, 5, 16)
    agree(statistics["out/kernel"], mixed)  # heads and their 8 features, in this order
    assert statistics["out/kernel"].columns.inputs == (0, 1)


@pytest.mark.sweep
def test_a_scanned_stack_has_a_problem_for_each_layer():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.relu(nn.Dense(8, name="dense")(x)), None

    stack = nn.scan(
        nn.remat(Layer),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=3,
    )()
    x = normal(6, 8)
    params = stack.init(KEY, x, None)["params"]
    statistics = collect(lambda p, x: stack.apply({"params": p}, x, None), params, x)
    inputs = [x]
    for i in range(2):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["dense"])
        inputs.append(hidden(inputs[-1], layer))
    agree(statistics["dense/kernel"], *inputs)
    assert statistics["dense/kernel"].columns.batch == (0,)


def test_loops_within_loops_and_stacks_in_pieces():
    """Twelve layers, scanned as three times four, in reverse within."""
    x, weight = normal(5, 8), normal(12, 8, 8, seed=1) / 3

    def fn(params, x):
        four = lambda x, w: (jnp.tanh(x @ w), None)
        three = lambda x, ws: lax.scan(four, x, ws, reverse=True)
        return lax.scan(three, x, params["w"].reshape(3, 4, 8, 8))[0]

    statistics = collect(fn, {"w": weight}, x)["w"]
    inputs, value = [None] * 12, x.astype(np.float64)
    for i in (3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8):
        inputs[i] = value
        value = np.tanh(value @ weight[i])
    agree(statistics, *inputs)


def test_experts_that_see_all_tokens_and_then_their_own():
    x, first, second = normal(7, 8), normal(3, 8, 4, seed=1), normal(3, 4, 8, seed=2)

    def fn(params, x):
        hidden = jnp.maximum(jnp.einsum("td,edh->teh", x, params["first"]), 0)
        outputs = jnp.einsum("teh,ehd->ted", hidden, params["second"])
        return jnp.einsum("ted,te->td", outputs, x[:, :3])

    statistics = collect(fn, {"first": first, "second": second}, x)
    agree(statistics["first"], x)
    apart = np.maximum(np.einsum("td,edh->teh", x, first), 0)
    agree(statistics["second"], *apart.transpose(1, 0, 2))


@pytest.mark.parametrize("statistic", ["second_moment", "mean_square"])
def test_ragged_experts_see_their_tokens_alone(statistic):
    x, weight = normal(9, 8), normal(3, 8, 4, seed=1)
    sizes = np.array([4, 2, 3], np.int32)
    fn = lambda p, x, sizes: lax.ragged_dot(x, p["w"], sizes)
    statistics = collect(fn, {"w": weight}, (x, sizes), statistic=statistic)["w"]
    parts = np.split(x.astype(np.float64), [4, 6])
    squares = np.stack([(part**2).mean(0) for part in parts])
    np.testing.assert_allclose(statistics.mean_square, squares, rtol=1e-5)
    if statistic == "second_moment":
        agree(statistics, *parts)


def test_a_leaf_that_is_used_twice_has_the_inputs_of_both():
    x, weight = normal(6, 8), normal(8, 8, seed=1) / 3
    fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"]
    statistics = collect(fn, {"w": weight}, x)["w"]
    agree(statistics, np.concatenate([x, np.tanh(x @ weight)]))


def test_pieces_of_the_inputs_meet_their_own_rows():
    x, y, weight = normal(6, 4), normal(6, 12, seed=2), normal(16, 8, seed=1)

    def fn(params, x, y):
        return x @ params["w"][12:] + y[:, ::-1][:, ::-1] @ params["w"][:12]

    statistics = collect(fn, {"w": weight}, (x, y))["w"]
    whole = np.zeros(
        (12, 16)
    )  # each product is a use, with zeros where it has no input
    whole[:6, :12], whole[6:, 12:] = y, x
    agree(statistics, whole)


def test_parts_of_a_fused_kernel_are_problems_where_an_index_takes_them():
    x, weight = normal(6, 8), normal(8, 3, 4, seed=1)
    fn = lambda p, x: jnp.tanh(x @ p["w"][:, 0]) + (2 * x) @ p["w"][:, 2]
    statistics = collect(fn, {"w": weight}, x)["w"]
    np.testing.assert_allclose(
        statistics.second_moment[2], 4 * statistics.second_moment[0], rtol=1e-5
    )
    np.testing.assert_array_equal(statistics.tokens, [6, 0, 6])
    np.testing.assert_array_equal(statistics.second_moment[1], np.zeros((8, 8)))


def test_branches_and_loops_that_count():
    x, weight = normal(6, 8), normal(8, 8, seed=1) / 3

    def fn(params, x):
        step = lambda _, x: lax.cond(
            x[0, 0] > -9, lambda: jnp.tanh(x @ params["w"]), lambda: x
        )
        return lax.fori_loop(0, 3, step, x)

    second = np.tanh(x @ weight)
    whole = np.concatenate([x, second, np.tanh(second @ weight)])
    agree(collect(fn, {"w": weight}, x)["w"], whole)
    # A loop of unknown length cannot be differentiated; it can be looked into.
    forever = lambda p, x: lax.while_loop(
        lambda c: c[1] < 3, lambda c: (jnp.tanh(c[0] @ p["w"]), c[1] + 1), (x, 0)
    )
    agree(collect(forever, {"w": weight}, x)["w"], whole)
