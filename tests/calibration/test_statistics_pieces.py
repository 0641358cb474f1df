"""Weights that are stacked, chosen, cut or changed on the way to their product.

Their inputs are kept separate, or an error is raised: they are never mixed up.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec as P

import jaxsparse as js
from tests.calibration.statistics_oracle import agree, normal


X, Y = normal(6, 8), normal(6, 8, seed=9)
PARAMS = {name: normal(8, 8, seed=i) / 3 for i, name in enumerate("uvw")}
STACKS = {"a": normal(2, 8, 8) / 3, "b": normal(3, 8, 8, seed=1) / 3}


def collect(fn, params, *args, axis=0, **options):
    rules = [js.Rule(".*", "2:4", axis=axis, sizes=None)]
    return js.collect_statistics(fn, params, [args], plan=rules, **options)


def inputs_of_layers(weights):
    inputs = [X.astype(np.float64)]
    for weight in weights[:-1]:
        inputs.append(np.tanh(inputs[-1] @ weight))
    return inputs


def stacked(params):
    return jnp.concatenate([params[name][None] for name in "uvw"])


def layers(x, weights):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def test_single_layers_that_are_stacked_and_taken_apart_again():
    def fn(params, x):
        for i in range(3):
            x = jnp.tanh(x @ stacked(params)[i])
        return x

    statistics = collect(fn, PARAMS, X)
    for name, inputs in zip(
        "uvw", inputs_of_layers(list(PARAMS.values())), strict=True
    ):
        agree(statistics[name], inputs)


def chosen(condition):
    def fn(params, x):
        w = lax.cond(condition(params, x), lambda: params["u"], lambda: params["v"])
        return jnp.tanh(x @ w) @ params["u"] + (x @ params["v"]) @ params["w"]

    return fn


def in_turns(params, x):
    step = lambda c, _: ((jnp.tanh(c[0] @ c[1]), c[2], c[1]), None)
    x = lax.scan(step, (x, params["u"], params["v"]), None, length=3)[0][0]
    return x @ params["w"]


def where(params, x):
    w = jnp.where(params["w"] > 0, params["u"], params["v"])
    return jnp.tanh(x @ w) @ params["u"] @ params["v"] @ params["w"]


def dropped(params, x):
    keep = x[:, :1].sum() > 0
    return jnp.tanh(x @ (params["u"] * keep)) @ params["u"] @ params["v"] @ params["w"]


UNCLEAR = {
    "scanned pieces": (lambda p, x: layers(x, stacked(p)), "stacked with others"),
    "batched pieces": (
        lambda p, x: jnp.einsum("std,sdo->sto", jnp.stack([x] * 3), stacked(p)),
        "stacked with others",
    ),
    "chosen by a parameter": (chosen(lambda p, _: p["w"][0, 0] > 0), "one of several"),
    "chosen by an input": (chosen(lambda _, x: x[0, 0] > 0), "depends on the inputs"),
    "carried in turns": (in_turns, "one of several"),
    "chosen element by element": (where, "one of several"),
    "parameters alone": (
        lambda p, x: x @ (p["u"] @ p["v"]) @ p["w"],
        "does not multiply inputs by it",
    ),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_inputs_that_might_be_anothers_are_refused(name):
    fn, why = UNCLEAR[name]
    with pytest.raises(
        ValueError, match=rf"inputs of leaf '.' .* can't be read: .*{why}"
    ):
        collect(fn, PARAMS, X)


def test_a_weight_that_inputs_drop_in_one_of_two_products_is_refused():
    words = r"leaf 'u' .* factors that .* differ between its products or batches"
    with pytest.raises(ValueError, match=words):
        collect(dropped, PARAMS, X)


def test_two_stacks_in_one_scan_are_refused():
    fn = lambda p, x: layers(x, jnp.concatenate([p["a"], p["b"]]))
    with pytest.raises(ValueError, match="stacked with others"):
        collect(fn, STACKS, X, axis=1)


def test_products_with_parameters_alone_do_not_count():
    def loss(params, x):
        square = params["u"].T @ params["u"] - jnp.eye(8)
        return jnp.sum(x @ params["u"]) + jnp.sum(square**2) + jnp.sum(params["u"] ** 2)

    agree(collect(loss, {"u": PARAMS["u"]}, X)["u"], X)


def test_a_part_that_is_copied_keeps_its_index():
    def fn(params, x, y):
        copies = jnp.broadcast_to(params["a"][0:1], (3, 8, 8))
        first = jnp.einsum("std,sdo->sto", jnp.stack([x, 2 * x, 3 * x]), copies)
        return first.sum(0) + y @ params["a"][1]

    statistics = collect(fn, {"a": STACKS["a"]}, X, Y, axis=1)["a"]
    agree(statistics, np.concatenate([X, 2 * X, 3 * X]), Y)


def test_pieces_of_the_outputs_are_no_problems_of_their_own():
    weight = normal(8, 12)
    fn = lambda p, x: [jnp.tanh(x @ p["w"].reshape(8, 3, 4)[:, i]) for i in range(3)]
    statistics = collect(fn, {"w": weight}, X)["w"]
    agree(statistics, np.concatenate([X] * 3))


def grouped(params, x):
    return lax.conv_general_dilated(
        x,
        params["w"],
        (1,),
        "VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=2,
    )


@pytest.mark.parametrize("piece", [lambda w: w[..., :4], lambda w: w[..., ::-1]])
def test_grouped_convolutions_of_pieces_are_refused(piece):
    image, kernel = normal(2, 6, 8), normal(3, 4, 8, seed=1)
    fn = lambda params, x: grouped({"w": piece(params["w"])}, x)
    with pytest.raises(
        ValueError, match="grouped convolution uses only some of its outputs"
    ):
        collect(fn, {"w": kernel}, image, axis=1)


def test_a_weight_that_is_added_to_itself_meets_its_inputs_once():
    image, kernel = normal(2, 6, 8), normal(3, 4, 8, seed=1)
    fn = lambda params, x: grouped({"w": params["w"] + params["w"]}, x)
    windows = [image[:, i : i + 3] for i in range(4)]
    halves = [
        np.concatenate([window[..., part].reshape(2, -1) for window in windows])
        for part in (slice(0, 4), slice(4, 8))
    ]
    agree(collect(fn, {"w": kernel}, image, axis=1)["w"], *halves)


@pytest.mark.sweep
def test_a_batch_of_loops_and_a_part_of_a_mesh_run_as_they_are():
    mesh = jax.make_mesh((1, 1), ("i", "j"), axis_types=(AxisType.Auto,) * 2)
    key = jax.random.split(jax.random.key(0), 3)

    def fn(params, x):
        noise = jax.vmap(lambda key: jax.random.poisson(key, 2.0, (8,)))(key)
        double = jax.shard_map(
            lambda x: 2 * x,
            mesh=mesh,
            in_specs=P("i"),
            out_specs=P("i"),
            axis_names={"i"},
        )
        return double(x + noise.sum(0).astype(x.dtype)) @ params["u"]

    noise = np.asarray(jax.vmap(lambda key: jax.random.poisson(key, 2.0, (8,)))(key))
    agree(collect(fn, {"u": PARAMS["u"]}, X)["u"], 2 * (X + noise.sum(0)))


def test_bool_weights_and_none_under_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        fn = lambda params, x: x @ params["u"]
        agree(collect(fn, {"u": PARAMS["u"]}, X)["u"], X)
        first = lambda x: jnp.arange(len(x)) < 4
        agree(collect(fn, {"u": PARAMS["u"]}, X, weights=first)["u"], X[:4])


def test_numbers_of_one_value_and_another_type_have_programs_of_their_own():
    fn = lambda params, x, scale: (
        x @ params["u"] * (3 if scale is True else 1) @ params["v"]
    )
    rules = [js.Rule(".*", "2:4", axis=0, sizes=None)]
    params = {name: PARAMS[name] for name in "uv"}
    batches = [(X, 1), (X, True)]
    statistics = js.collect_statistics(fn, params, batches, plan=rules)["v"]
    agree(statistics, np.concatenate([X @ PARAMS["u"], 3 * X @ PARAMS["u"]]))


def test_complex_inputs_and_negative_weights_are_refused():
    fn = lambda params, x: (x * 1j) @ params["u"]
    with pytest.raises(ValueError, match=r"leaf 'u' .*complex64, and only real"):
        collect(fn, {"u": PARAMS["u"]}, X)
    real = lambda params, x: x @ params["u"]
    with pytest.raises(ValueError, match="weights are negative, in batch 0"):
        collect(real, {"u": PARAMS["u"]}, X, weights=lambda x: -jnp.ones(len(x)))
