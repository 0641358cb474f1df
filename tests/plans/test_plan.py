import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn, nnx

import jaxsparse as js


def tree(**shapes):
    """`tree(a__kernel=(16, 8))` is `{"a": {"kernel": ...}}`, shapes only."""
    params = {}
    for name, shape in shapes.items():
        module, leaf = name.split("__")
        params.setdefault(module, {})[leaf] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return params


def axis_of(name, shape, **siblings):
    plan = js.plan_sparsity(
        tree(**{name: shape}, sure__kernel=(16, 8), **siblings),
        [js.Rule(".*", "2:4", sizes=None)],
    )
    return plan[name.replace("__", "/")]


@pytest.mark.parametrize(
    ("name", "shape", "axis"),
    [
        ("Dense_0__kernel", (64, 32), 0),
        ("anything__kernel", (64, 32), 0),
        ("convert__kernel", (64, 32), 0),
        ("Conv_0__kernel", (3, 16, 32), 1),
        ("conv1__kernel", (3, 3, 16, 32), 2),
        ("CONV__kernel", (3, 3, 3, 16, 32), 3),
        ("ConvTranspose_0__kernel", (3, 3, 16, 32), 2),
    ],
)
def test_names_without_doubt_give_the_axis(name, shape, axis):
    assert axis_of(name, shape).axis == axis


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("Einsum_0__kernel", (64, 32), "ambiguous"),
        ("einsum__kernel", (64, 32), "ambiguous"),
        ("DenseGeneral_0__kernel", (64, 32), "ambiguous"),
        ("Dense_0__kernel", (4, 64, 32), "ambiguous"),
        ("deconv__kernel", (3, 3, 16, 32), "ambiguous"),
        ("Conv_0__kernel", (2, 3, 3, 3, 16, 32), "ambiguous"),
        ("query__kernel", (64, 4, 16), "ambiguous"),
        ("Dense_0__weight", (64, 32), "ambiguous"),
        ("lora__lora_a", (64, 32), "adapter"),
        ("Conv_0__kernel", (3, 3, 1, 32), "depthwise"),
        ("Dense_0__bias", (32,), "bias"),
        ("query__bias", (4, 16), "bias"),
        ("LayerNorm_0__scale", (32,), "norm"),
        ("Embed_0__embedding", (64, 32), "embedding"),
        ("lm_head__kernel", (64, 32), "head"),
        ("head__kernel", (64, 32), "head"),
        ("Logits__kernel", (64, 32), "head"),
    ],
)
def test_everything_else_stays_dense_with_the_reason(name, shape, reason):
    leaf = axis_of(name, shape)
    assert leaf.pattern is None
    assert leaf.axis is None
    assert reason in leaf.reason


def attention(query, key, value, out):
    shapes = {"query": query, "key": key, "value": value, "out": out}
    return tree(
        **{f"{name}__kernel": shape for name, shape in shapes.items()},
        sure__kernel=(16, 8),
    )


def test_attention_is_known_by_siblings_whose_shapes_agree():
    plan = js.plan_sparsity(
        attention((64, 4, 16), (32, 4, 16), (32, 4, 16), (4, 16, 48)), "2:4"
    )
    axes = {name: plan[f"{name}/kernel"].axis for name in ("query", "key", "value")}
    assert axes == {"query": 0, "key": 0, "value": 0}
    assert plan["out/kernel"].axis == 1
    assert plan["out/kernel"].contracted == (0, 1)
    assert plan["query/kernel"].output == (1, 2)


def test_attention_shapes_that_do_not_agree_are_ambiguous():
    plan = js.plan_sparsity(
        attention((64, 4, 16), (64, 2, 16), (64, 2, 16), (4, 16, 64)), "2:4"
    )
    for name in ("query", "key", "value", "out"):
        assert "ambiguous" in plan[f"{name}/kernel"].reason


def test_flax_axes_come_before_sizes_and_heads():
    axes = js.flax_axes(tree(lm_head__kernel=(15, 7), a__bias=(7,), b__kernel=(2, 2)))
    assert axes == {
        "lm_head": {"kernel": 0},
        "a": {"bias": None},
        "b": {"kernel": 0},
    }


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(32, (3, 3))(x)
        x = nn.ConvTranspose(32, (2, 2))(x).reshape(x.shape[0], -1, 32)
        x = nn.MultiHeadDotProductAttention(num_heads=2)(x, x)
        x = nn.LayerNorm()(x)
        return nn.Dense(8, name="logits")(x)


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(16, 32, rngs=rngs)
        self.conv = nnx.Conv(32, 32, (3,), rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 32, decode=False, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(32, 32, rngs=rngs) for _ in range(2)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


def sparse_axes(plan):
    return {leaf.path: leaf.axis for leaf in plan.sparse}


def test_the_plan_of_a_linen_model():
    x = jnp.ones((1, 4, 4, 16))
    params = jax.eval_shape(LinenBlock().init, jax.random.key(0), x)["params"]
    assert sparse_axes(js.plan_sparsity(params)) == {
        "Conv_0/kernel": 2,
        "ConvTranspose_0/kernel": 2,
        "MultiHeadDotProductAttention_0/key/kernel": 0,
        "MultiHeadDotProductAttention_0/out/kernel": 1,
        "MultiHeadDotProductAttention_0/query/kernel": 0,
        "MultiHeadDotProductAttention_0/value/kernel": 0,
    }
    everything = js.plan_sparsity(params, dense_head=False)
    assert everything["logits/kernel"].axis == 0


def test_an_nnx_module_and_its_state_have_the_same_plan():
    model = NNXBlock(nnx.Rngs(0))
    expected = {
        "attention/key/kernel": 0,
        "attention/out/kernel": 1,
        "attention/query/kernel": 0,
        "attention/value/kernel": 0,
        "conv/kernel": 1,
        "layers/0/kernel": 0,
        "layers/1/kernel": 0,
    }
    for params in (model, nnx.state(model), nnx.state(model, nnx.Param)):
        assert sparse_axes(js.plan_sparsity(params)) == expected
    assert js.plan_sparsity(model)["dropout/rngs/key"].reason == "PRNG key"


def test_the_first_matching_rule_decides():
    params = tree(mlp__kernel=(16, 8), other__kernel=(16, 8), last__kernel=(16, 8))
    plan = js.plan_sparsity(
        params,
        [js.Rule("last.*", None), js.Rule("mlp.*", (1, 4)), js.Rule(".*", js.NM(4, 8))],
    )
    assert plan["mlp/kernel"].pattern == js.NM(1, 4)
    assert plan["other/kernel"].pattern == js.NM(4, 8)
    assert plan["last/kernel"].decision == "dense: rule 'last.*'"


def test_a_leaf_without_a_rule_stays_dense():
    plan = js.plan_sparsity(
        tree(a__kernel=(16, 8), b__kernel=(16, 8)), [js.Rule("a.*", "2:4")]
    )
    assert plan["b/kernel"].reason == "no rule matches"


@pytest.mark.parametrize("axis", [1, -1])
def test_an_axis_in_a_rule_overrides_names(axis):
    params = tree(lm_head__kernel=(8, 16), e__embedding=(8, 16))
    plan = js.plan_sparsity(params, [js.Rule(".*", "2:4", axis=axis)])
    for leaf in plan.leaves:
        assert (leaf.axis, leaf.contracted, leaf.output) == (1, (1,), (0,))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((18, 8), "axis 0 is not divisible by 4"),
        ((20, 8), "20 inputs are not divisible by 16"),
        ((16, 12), "12 outputs are not divisible by 8"),
        ((16, 8), None),
    ],
)
def test_sizes_follow_asp(shape, reason):
    leaf = js.plan_sparsity(tree(a__kernel=shape, sure__kernel=(16, 8)))["a/kernel"]
    assert (leaf.pattern is None) == (reason is not None)
    assert reason is None or reason in leaf.reason


SIZES = tree(a__kernel=(18, 8), b__kernel=(20, 8), c__kernel=(16, 8), d__bias=(16,))


def test_a_size_that_does_not_fit_names_what_changes_it():
    plan = js.plan_sparsity(SIZES)
    assert plan["a/kernel"].decision == (
        "dense: axis 0 is not divisible by 4; pass Rule(..., pattern) with another m"
    )
    assert plan["b/kernel"].decision == (
        "dense: size rule: 20 inputs are not divisible by 16; pass Rule(..., "
        "sizes=None)"
    )
    # What the reasons say is what prunes the leaves.
    plan = js.plan_sparsity(SIZES, [js.Rule(".*", "1:2", sizes=None)])
    assert [leaf.path for leaf in plan.sparse] == ["a/kernel", "b/kernel", "c/kernel"]
    blocks = js.plan_sparsity(SIZES, js.Block((4, 4), 0.5))
    assert blocks["a/kernel"].decision.endswith(
        "divisible by 4; pass Rule(..., Block(...)) of another shape"
    )
    rules = [js.Rule(".*", js.Block((2, 4), 0.5))]
    assert js.plan_sparsity(SIZES, rules)["a/kernel"].pattern is not None


def test_sizes_count_the_product_of_axes():
    plan = js.plan_sparsity(attention((64, 2, 4), (64, 2, 4), (64, 2, 4), (2, 4, 8)))
    assert plan["query/kernel"].axis == 0  # 2 * 4 outputs
    assert (
        "8 inputs are not divisible by 16" in plan["out/kernel"].reason
    )  # 2 * 4 inputs


def test_a_rule_can_turn_the_size_rule_off_but_not_the_group():
    params = tree(a__kernel=(4, 3), b__kernel=(6, 3))
    plan = js.plan_sparsity(params, [js.Rule(".*", "2:4", sizes=None)])
    assert plan["a/kernel"].axis == 0
    assert "is not divisible by 4" in plan["b/kernel"].reason


def test_a_convolution_counts_its_input_channels_only():
    params = tree(conv__kernel=(4, 4, 8, 16), sure__kernel=(16, 8))
    assert "8 inputs" in js.plan_sparsity(params)["conv/kernel"].reason


@pytest.mark.parametrize(
    "pattern", ["2:4", "2:4 sparsity", (2, 4), js.NM(2, 4), [js.Rule(".*", "2:4")]]
)
def test_every_spelling_of_a_pattern_makes_the_same_plan(pattern):
    params = tree(a__kernel=(16, 8))
    assert js.plan_sparsity(params, pattern) == js.plan_sparsity(params)


def test_a_plan_is_hashable_and_printable():
    params = tree(**{f"layer_{i}__kernel": (16, 8) for i in range(3)})
    plan = js.plan_sparsity(params)
    assert hash(plan) == hash(js.plan_sparsity(params))
    assert str(plan).splitlines() == [
        "leaf                 shape  plan",
        "layer_{0..2}/kernel  16x8   2:4 along axis 0",
        "total                384    3 of 3 pruned: 50.0 % of weights",
        "no output layer was recognised: if one of these leaves is one, keep it dense "
        "with Rule(path, None)",
    ]


def test_a_folded_name_keeps_the_numbers_that_its_leaves_share():
    up1 = {f"net0_block{i}_up1__kernel": (16, 8) for i in range(2)}
    up2 = {f"net0_block{i}_up2__kernel": (32, 8) for i in range(2)}
    plan = js.plan_sparsity(tree(**up1, **up2), dense_head=False)
    assert str(plan).splitlines() == [
        "leaf                        shape  plan",
        "net0_block{0,1}_up1/kernel  16x8   2:4 along axis 0",
        "net0_block{0,1}_up2/kernel  32x8   2:4 along axis 0",
        "total                       768    4 of 4 pruned: 50.0 % of weights",
    ]


def test_a_dot_matches_a_newline_in_a_name():
    params = {"a\nb": {"kernel": jnp.ones((64, 32))}}
    assert len(js.plan_sparsity(params, [js.Rule(".*", "2:4")]).sparse) == 1
