"""Group axes read from the trace of NNX layers; expected by hand."""

import jax.numpy as jnp
import pytest
from flax import nnx

import jaxsparse as js
from tests.trace.tracing import ATTENTION, IMAGE, SEQUENCE, X, group_axes, shape


class NNXStack(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs):
            return nnx.Linear(16, 16, rngs=rngs)

        self.layers = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, layer):
            return nnx.relu(layer(x))

        return forward(x, self.layers)


class NNXEnsemble(NNXStack):
    def __call__(self, x):
        return nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(self.layers, x)


class NNXTied(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(32, 16, rngs=rngs)
        self.layer = nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, ids):
        return self.embed.attend(self.layer(self.embed(ids)))


class NNXCross(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(
            4, 16, in_kv_features=24, decode=False, rngs=rngs
        )

    def __call__(self, x):
        return self.attention(x, jnp.concatenate([x, x[..., :8]], axis=-1))


class NNXRecurrent(nnx.Module):
    def __init__(self, cell, rngs):
        self.rnn = nnx.RNN(cell(16, 8, rngs=rngs))

    def __call__(self, x):
        return self.rnn(x)


NNX = {
    "Linear": (lambda r: nnx.Linear(16, 8, rngs=r), X, {"kernel": 0}),
    "LinearGeneral splits": (
        lambda r: nnx.LinearGeneral(16, (4, 8), rngs=r),
        X,
        {"kernel": 0},
    ),
    "LinearGeneral merges": (
        lambda r: nnx.LinearGeneral((6, 16), 8, axis=(-2, -1), rngs=r),
        SEQUENCE,
        {"kernel": 1},
    ),
    "Conv 1-D": (lambda r: nnx.Conv(16, 8, (3,), rngs=r), SEQUENCE, {"kernel": 1}),
    "Conv 2-D": (lambda r: nnx.Conv(16, 8, (3, 3), rngs=r), IMAGE, {"kernel": 2}),
    "Conv 3-D": (
        lambda r: nnx.Conv(16, 8, (2, 2, 2), rngs=r),
        shape(2, 4, 4, 4, 16),
        {"kernel": 3},
    ),
    "Conv strided and dilated": (
        lambda r: nnx.Conv(16, 8, (3, 3), strides=2, kernel_dilation=2, rngs=r),
        IMAGE,
        {"kernel": 2},
    ),
    "Conv grouped": (
        lambda r: nnx.Conv(16, 8, (3,), feature_group_count=4, rngs=r),
        SEQUENCE,
        {"kernel": 1},
    ),
    "Conv depthwise": (
        lambda r: nnx.Conv(16, 16, (3,), feature_group_count=16, rngs=r),
        SEQUENCE,
        {},
    ),
    "ConvTranspose": (
        lambda r: nnx.ConvTranspose(16, 8, (3, 3), rngs=r),
        IMAGE,
        {"kernel": 2},
    ),
    "Einsum": (
        lambda r: nnx.Einsum("bd,hdk->bhk", (4, 16, 8), rngs=r),
        X,
        {"kernel": 1},
    ),
    "attention": (
        lambda r: nnx.MultiHeadAttention(4, 16, decode=False, rngs=r),
        SEQUENCE,
        ATTENTION,
    ),
    "LSTMCell": (
        lambda r: NNXRecurrent(nnx.LSTMCell, r),
        SEQUENCE,
        # NNX calls the forget gate of the inputs "if_".
        {
            f"rnn/cell/{gate}/kernel": 0
            for gate in ("ii", "if_", "ig", "io", "hi", "hf", "hg", "ho")
        },
    ),
    "GRUCell": (
        lambda r: NNXRecurrent(nnx.GRUCell, r),
        SEQUENCE,
        {"rnn/cell/dense_h/kernel": 0, "rnn/cell/dense_i/kernel": 0},
    ),
    "LoRA": (
        lambda r: nnx.LoRA(16, 8, 8, base_module=nnx.Linear(16, 8, rngs=r), rngs=r),
        X,
        {"base_module/kernel": 0, "lora_a": 0, "lora_b": 0},
    ),
    "cross attention": (
        NNXCross,
        SEQUENCE,
        {f"attention/{name}": axis for name, axis in ATTENTION.items()},
    ),
    "Embed with attend": (NNXTied, shape(2, 6, dtype="int32"), {"layer/kernel": 0}),
    "scan": (NNXStack, X, {"layers/kernel": 1}),
    "vmap": (NNXEnsemble, X, {"layers/kernel": 1}),
}


@pytest.mark.sweep(keep=["[Linear]", "[Conv 2-D]", "[scan]", "[attention]"])
@pytest.mark.parametrize("name", NNX)
def test_nnx_layers(name):
    make, x, expected = NNX[name]
    model = make(nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    fn = lambda params, rest, x: nnx.merge(graph, params, rest)(x)
    assert group_axes(fn, params, rest, x) == expected
    module_axes = group_axes(lambda model, x: model(x), model, x)
    assert {k: v for k, v in module_axes.items() if v is not None} == expected


def test_nnx_attention_that_decodes():
    model = nnx.MultiHeadAttention(4, 16, decode=True, rngs=nnx.Rngs(0))
    model.init_cache((2, 6, 16))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    fn = lambda params, rest, x: nnx.merge(graph, params, rest)(x)
    assert group_axes(fn, params, rest, shape(2, 1, 16)) == ATTENTION


class Projection(nnx.Variable):
    """A variable of a user that is contracted, and is no parameter."""


class NNXFrozen(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(16, 16, use_bias=False, rngs=rngs)
        self.projection = Projection(jnp.eye(16))
        self.whitening = nnx.BatchStat({"kernel": jnp.eye(16)})

    def __call__(self, x):
        x = x @ self.projection[...] @ self.whitening.get_value()["kernel"]
        return self.layer(x)


@pytest.mark.parametrize("of_model", [lambda model: model, nnx.state, nnx.eval_shape])
def test_only_parameters_are_pruned(of_model):
    model = NNXFrozen(nnx.Rngs(0))
    graph = nnx.graphdef(model)
    if of_model is nnx.eval_shape:
        params = nnx.eval_shape(lambda: NNXFrozen(nnx.Rngs(0)))
    else:
        params = of_model(model)
    is_state = of_model is nnx.state
    fn = lambda params, x: (nnx.merge(graph, params) if is_state else params)(x)
    plan = js.plan_sparsity(params, "2:4", fn=fn, args=(X,), dense_head=False)
    assert [leaf.path for leaf in plan.sparse] == ["layer/kernel"]
    reasons = {leaf.path: leaf.reason for leaf in plan.leaves}
    remedy = "pass Rule(..., axis=...)"
    assert reasons["projection"] == f"a Projection, not an nnx.Param; {remedy}"
    assert (
        reasons["whitening/value/kernel"] == f"a BatchStat, not an nnx.Param; {remedy}"
    )
    rules = [js.Rule("projection", "2:4", axis=1), js.Rule(".*", "2:4")]
    plan = js.plan_sparsity(params, rules, fn=fn, args=(X,), dense_head=False)
    assert [leaf.path for leaf in plan.sparse] == ["layer/kernel", "projection"]


def test_names_decide_of_parameters_only():
    model = NNXFrozen(nnx.Rngs(0))
    plan = js.plan_sparsity(model)
    assert [leaf.path for leaf in plan.sparse] == ["layer/kernel"]
    assert plan["whitening/value/kernel"].reason.startswith(
        "a BatchStat, not an nnx.Param"
    )


def test_rules_prune_what_their_plan_does():
    params = nnx.state(NNXFrozen(nnx.Rngs(0)))
    masks = nnx.to_pure_dict(js.create_masks(params, "2:4"))
    assert masks["whitening"] == {"kernel": None}
    assert masks["layer"]["kernel"].shape == (16, 16)
    result = js.MagnitudeSearcher("2:4").search(params)
    assert result.plan == js.plan_sparsity(params, "2:4")
    report = js.sparsity_report(params, "2:4")
    assert [leaf.decision for leaf in report] == [
        leaf.decision for leaf in result.plan.leaves
    ]
