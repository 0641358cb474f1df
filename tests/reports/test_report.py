"""Reports in every form, of compressed trees too; metrics."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console

import jaxsparse as js


RULES = [js.Rule("a/.*", "1:4"), js.Rule(r"\[b\]/.*", "2:4 transposable")]


def tree():
    """Leaves of 1 to 128: of each group of four, `1:4` keeps the last."""
    kernel = jnp.arange(1.0, 129.0).reshape(16, 8)
    return {"[b]": {"kernel": kernel}, "a": {"kernel": kernel, "bias": jnp.ones(8)}}


def planned():
    return js.plan_sparsity(tree(), RULES, dense_head=False)


def on_a_console(table):
    console = Console(width=80, force_terminal=False, record=True)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_text_html_and_rich_tables_have_the_same_cells():
    plan = planned()
    mesh = jax.sharding.AbstractMesh((4, 2), ("data", "model"))
    rows = jax.sharding.NamedSharding(mesh, jax.P(("data", "model"), None))
    cut = {"up": jax.ShapeDtypeStruct((32, 256), jnp.float32, sharding=rows)}
    for table in (
        plan,
        js.sparsity_report(js.compress_params(tree(), plan), plan),
        js.sharding_report(cut, [js.Rule(".*", "2:4", axis=0)]),
    ):
        words = str(table).split()
        html = ElementTree.fromstring(table._repr_html_())  # well formed
        assert " ".join(html.itertext()).split() == words
        rich = on_a_console(table)
        assert max(map(len, rich.splitlines())) <= 80
        letters = lambda text: sorted(text.replace("─", "").replace(" ", ""))
        assert letters(rich.replace("\n", "")) == letters("".join(words))


def test_a_console_shortens_names_and_never_wraps_them():
    name = "encoder.layers.{}.attention.self.query.kernel"
    params = {name.format(i): jnp.ones((16, 16)) for i in range(12)}
    rules = [js.Rule(".*", "2:4", axis=0)]
    console = Console(width=50, force_terminal=False)
    with console.capture() as captured:
        console.print(js.plan_sparsity(params, rules))
    lines = [line.rstrip() for line in captured.get().splitlines()]
    (row,) = (line for line in lines if "2:4" in line)
    shown, *_ = row.split()
    assert shown.startswith("encoder")
    assert shown.endswith("query.kernel")
    assert "…" in shown
    assert max(map(len, lines)) <= 50


def test_html_is_escaped():
    params = {"<b>&": jnp.ones((16, 8))}
    plan = js.plan_sparsity(params, [js.Rule(".*", "2:4", axis=0)])
    assert "<td>&lt;b&gt;&amp;</td>" in plan._repr_html_()


def test_a_report_is_plain_data():
    report = js.sparsity_report(tree(), planned())
    leaves = {x["path"]: x for x in json.loads(json.dumps(report.as_dict()))["leaves"]}
    assert leaves["a/kernel"] == {
        "path": "a/kernel",
        "shape": [16, 8],
        "sparsity": 0.0,
        "masked": 0.75,
        # The last row of every four, of 1 to 128.
        "magnitude_kept": pytest.approx(
            sum(8 * row + i + 1 for row in (3, 7, 11, 15) for i in range(8))
            / sum(range(1, 129))
        ),
        "nonfinite": 0,
        "pattern": "1:4",
        "axis": 0,
        "decision": "1:4 along axis 0",
        "reason": "",
        "stored": "",
        "stored_bytes": 512,
        "dense_bytes": 512,
    }
    assert leaves["a/bias"]["magnitude_kept"] is None
    (*_, leaf) = json.loads(json.dumps(planned().as_dict()))["leaves"]
    assert (leaf["path"], leaf["pattern"], leaf["axis"]) == ("a/kernel", "1:4", 0)
    assert (leaf["contracted"], leaf["output"]) == ([0], [1])


def test_zero_initialised_leaves_are_not_shown_as_sparse():
    kernel = jnp.ones((16, 8)).at[::2].set(0)
    params = {
        "bias": jnp.zeros(8),
        "heads": jnp.zeros((4, 16)),  # like the biases of attention
        "kernel": kernel,
        "scale": jnp.zeros(8).at[0].set(1),
        "silent": jnp.zeros((16, 8)),  # has a mask: its zeros are its sparsity
    }
    plan = js.plan_sparsity(params, [js.Rule("kernel|silent", "2:4", axis=0)])
    masks = js.create_masks({**params, "silent": kernel}, plan)
    for plan_or_masks in (plan, masks):
        report = js.sparsity_report(params, plan_or_masks)
        assert [leaf.sparsity for leaf in report] == [1, 1, 0.5, 7 / 8, 1]
        _, *lines = str(report).splitlines()
        # 8 + 64 + 64 + 7 + 128 zeros of 8 + 64 + 128 + 8 + 128 weights.
        cells = [re.split("  +", line)[2] for line in lines]
        assert cells == ["-", "-", "50.0 %", "87.5 %", "100.0 %", "80.7 %"]
        with_zeros = [line.split()[0] for line in lines if line.endswith("; all zeros")]
        assert with_zeros == ["bias", "heads"]


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float4_e2m1fn", "int4"])
def test_a_report_takes_narrow_leaves(dtype):
    kernel = jnp.tile(jnp.array([0.0, 1.0, 2.0, 4.0]), (8, 4)).T.astype(dtype)
    plan = [js.Rule("kernel", "2:4", axis=0, sizes=None)]
    (leaf,) = js.sparsity_report({"kernel": kernel}, plan)
    assert leaf.magnitude_kept == pytest.approx(6 / 7)
    state = js.wrap_optimizer(optax.sgd(0.1), plan).init({"kernel": kernel})
    kept = js.metrics(state, {"kernel": kernel})["magnitude_kept"]
    assert kept == pytest.approx(6 / 7)


@pytest.mark.parametrize("size", [3e38, 1e-27])
def test_a_report_adds_up_magnitudes_of_any_size(size):
    params = {"kernel": jnp.full((16, 8), size)}
    report = js.sparsity_report(params, [js.Rule("kernel", "1:4", axis=0)])
    (leaf,) = json.loads(json.dumps(report.as_dict(), allow_nan=False))["leaves"]
    assert leaf["magnitude_kept"] == pytest.approx(1 / 4, rel=1e-5)  # 128 roundings


def test_a_transposable_leaf_that_is_stored_as_planned_is_shown_so():
    small = js.compress_params(tree(), planned())
    text = str(js.sparsity_report(small, planned()))
    assert "2:4 transposable along axes 0 and 1" in text
    assert "; stored" not in text


def test_a_report_states_the_bytes_of_compressed_leaves():
    small = js.compress_params(tree(), planned())
    report = {leaf.path: leaf for leaf in js.sparsity_report(small, planned())}
    kernel = report["a/kernel"]
    # 32 values of 4 bytes, and two bits a group: of 128 * 4 bytes.
    assert (kernel.stored_bytes, kernel.dense_bytes) == (32 * 4 + 8, 512)
    assert (kernel.sparsity, kernel.masked, kernel.magnitude_kept) == (0.75, 0.75, 1.0)
    assert kernel.stored == "1:4 along axis 0"
    assert report["a/bias"].stored_bytes == report["a/bias"].dense_bytes == 32
    assert "136 of 512 B" in str(js.sparsity_report(small, planned()))


def test_a_report_on_another_plan_says_how_leaves_are_stored():
    small = js.compress_params(tree(), planned())
    other = js.plan_sparsity(tree(), [js.Rule("a/kernel", "1:8", axis=0)])
    (kernel,) = (x for x in js.sparsity_report(small, other) if x.path == "a/kernel")
    # Rows 3, 7, 11 and 15 are stored; 7 and 15 are the largest of eight.
    rows = {row: sum(8 * row + i + 1 for i in range(8)) for row in (3, 7, 11, 15)}
    kept = (rows[7] + rows[15]) / sum(rows.values())
    assert kernel.magnitude_kept == pytest.approx(kept)
    text = str(js.sparsity_report(small, other))
    assert "1:8 along axis 0; stored 1:4 along axis 0" in text
    masks = js.create_masks(tree(), other)
    (kernel,) = (x for x in js.sparsity_report(small, masks) if x.path == "a/kernel")
    assert kernel.magnitude_kept == pytest.approx(kept)


def test_a_compressed_tree_is_checked_against_its_plan():
    small = js.compress_params(tree(), planned())
    js.check_sparsity(small, planned())
    with pytest.raises(ValueError, match=r"'a/kernel' of .* 1:4 along axis 0, but"):
        js.check_sparsity(small, "2:4")
    other = js.plan_sparsity(tree(), [js.Rule("a/kernel", "1:4", axis=1, sizes=None)])
    with pytest.raises(ValueError, match=r"'1:4 along axis 1'"):
        js.check_sparsity({"a": small["a"], "[b]": tree()["[b]"]}, other)
    cut = replace(small["a"]["kernel"], indices=small["a"]["kernel"].indices[:, :3])
    with pytest.raises(ValueError, match=r"'a/kernel' of .* expected"):
        js.check_sparsity(small | {"a": {**small["a"], "kernel": cut}}, planned())
    # A 2:4 weight along axis 0 whose columns are not: two whole rows of four.
    rows = jnp.zeros((16, 8)).at[::2].set(1.0)
    both = js.NM(2, 4, transposable=True)
    small["[b]"]["kernel"] = js.compress(rows, both, mask=rows != 0, axis=0)
    with pytest.raises(ValueError, match=r"with 4, starts at \(0, 0\) along axis 1"):
        js.check_sparsity(small, planned())


def test_metrics_are_those_of_the_arrays():
    params = tree()
    tx = js.regrow_by_gradient(
        optax.sgd(0.1), RULES[:1], fraction=lambda _: 0.5, every=1
    )

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(jnp.ones_like, params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, js.metrics(state, params)

    state = tx.init(params)
    before = js.metrics(state, params)
    weight = np.arange(1, 129)
    assert before["sparsity"] == 0
    assert before["sparsity/a/kernel"] == 0
    kept = weight.reshape(4, 4, 8)[:, 3].sum() / weight.sum()
    np.testing.assert_allclose(before["magnitude_kept"], kept, rtol=1e-6)
    params, state, _ = step(params, state)
    params, state, metrics = step(params, state)
    zeros = sum(np.sum(np.asarray(x) == 0) for x in jax.tree.leaves(params))
    np.testing.assert_allclose(metrics["sparsity"], zeros / (128 + 128 + 8), rtol=1e-6)
    assert metrics["masked"] == metrics["sparsity/a/kernel"] == 0.75
    assert metrics["magnitude_kept"] == 1
    old = js.create_masks(tree(), RULES[:1])["a"]["kernel"]
    new = np.asarray(params["a"]["kernel"]) != 0
    np.testing.assert_allclose(metrics["flip_rate"], np.mean(old != new))
    assert 0 < metrics["flip_rate"] < 1


def test_metrics_read_the_states_of_nnx_and_of_parts():
    net = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
    tx = optax.chain(js.add_sr_ste_decay([js.Rule("kernel", "2:4")]), optax.sgd(0.1))
    optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
    metrics = js.metrics(optimizer.opt_state, nnx.state(net, nnx.Param))
    assert metrics["masked"] == 0.5
    assert metrics["flip_rate"] == 0
    assert "sparsity/kernel" in metrics

    labels = {"a": "a", "[b]": "b"}
    wrapped = {
        "a": js.wrap_optimizer(optax.sgd(0.1), RULES[:1]),
        "b": js.wrap_optimizer(optax.sgd(0.1), [js.Rule(".*kernel", "2:4", axis=0)]),
    }
    tx = optax.partition(wrapped, labels)
    metrics = js.metrics(tx.init(tree()), tree())
    assert metrics["masked"] == (96 + 64) / 256
    assert "flip_rate" not in metrics  # none of these states records one


def test_flip_rates_of_several_wrappers_count_by_their_leaves():
    masks = js.create_masks(params := tree(), planned())
    large, small = {"[b]": masks["[b]"], "a": None}, {"[b]": None, "a": masks["a"]}
    params["a"]["kernel"] = params["a"]["kernel"][:8]
    small["a"]["kernel"] = small["a"]["kernel"][:8]
    one = js.RegrowthState(jnp.zeros((), int), large, (), jnp.float32(0.5))
    other = js.StraightThroughState(jnp.zeros((), int), small, jnp.float32(0.1))
    metrics = js.metrics((one, other), params)
    np.testing.assert_allclose(metrics["flip_rate"], (128 * 0.5 + 64 * 0.1) / 192)
