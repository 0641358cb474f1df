"""Output layers, routers and adapters, recognised by their names."""

import jax
import pytest

import jaxsparse as js


SURE = {"torch": "body.up.weight", "flax": "body/up/kernel"}


def reasons(layout, names, **settings):
    """Returns the plan's words for each leaf; names come with a shape or are 64x64."""
    shapes = names if isinstance(names, dict) else dict.fromkeys(names, (64, 64))
    params = {
        name: jax.ShapeDtypeStruct(shape, "float32")
        for name, shape in {SURE[layout]: (64, 64), **shapes}.items()
    }
    rules = [js.Rule(".*", "2:4", sizes=None)]
    plan = js.plan_sparsity(params, rules, layout=layout, **settings)
    return {leaf.path: leaf.decision for leaf in plan.leaves if leaf.path in shapes}


@pytest.mark.parametrize("role", ["head", "router", "adapter"])
def test_the_line_names_the_option_and_the_option_prunes(role):
    path = {
        "head": "lm_head.weight",
        "router": "layers.0.mlp.router.weight",
        "adapter": "layers.0.mlp.up.lora_A.weight",
    }[role]
    assert reasons("torch", [path]) == {path: f"dense: {role}; pass dense_{role}=False"}
    pruned = reasons("torch", [path], **{f"dense_{role}": False})
    assert pruned == {path: "2:4 along axis 1"}
    others = {f"dense_{x}": False for x in ("head", "router", "adapter") if x != role}
    assert reasons("torch", [path], **others) == reasons("torch", [path])
    # A rule that gives an axis decides, as it does for heads.
    state = {path: jax.ShapeDtypeStruct((64, 64), "float32")}
    rules = [js.Rule(".*", "2:4", axis=0)]
    assert js.plan_sparsity(state, rules, layout="torch")[path].axis == 0


@pytest.mark.parametrize(
    ("layout", "path"),
    [
        ("torch", "lm_head.weight"),
        ("torch", "lm_head.dense.weight"),
        ("torch", "classifier.6.weight"),
        ("torch", "cls.predictions.transform.dense.weight"),
        ("torch", "head.fc.weight"),
        ("torch", "heads.3.weight"),
        ("torch", "heads.3.fc.weight"),
        ("torch", "head.mlp.fc1.weight"),
        ("flax", "Head/kernel"),
        ("flax", "head/Dense_0/kernel"),
        ("flax", "decoder/logits/kernel"),
    ],
)
def test_layers_of_a_head(layout, path):
    assert reasons(layout, [path])[path].startswith("dense: head")


@pytest.mark.parametrize(
    ("layout", "path"),
    [
        ("torch", "head.layers.0.ffn.weight"),
        ("torch", "head.0.ffn.weight"),
        ("torch", "head.model.layers.0.mlp.up.weight"),
        ("torch", "score.blocks.3.attn.proj.weight"),
        ("torch", "blocks.0.sa.heads.2.key.weight"),
        ("torch", "heads.2.qkv.weight"),
        ("flax", "head/Block_0/Dense_0/kernel"),
        ("flax", "logits/layers/1/up/kernel"),
    ],
)
def test_a_model_below_a_head_and_attention_heads(layout, path):
    along = {"torch": "2:4 along axis 1", "flax": "2:4 along axis 0"}
    assert reasons(layout, [path]) == {path: along[layout]}


def test_a_head_that_is_the_whole_tree_is_a_model():
    shape = jax.ShapeDtypeStruct((64, 64), "float32")
    names = ["head.fc1.weight", "head.fc2.weight"]
    plan = js.plan_sparsity(dict.fromkeys(names, shape), layout="torch")
    assert [leaf.path for leaf in plan.sparse] == names
    names.append("body.weight")
    plan = js.plan_sparsity(dict.fromkeys(names, shape), layout="torch")
    assert [leaf.path for leaf in plan.sparse] == ["body.weight"]


@pytest.mark.parametrize(
    ("layout", "path", "expert"),
    [
        # Mixtral; Qwen and DeepSeek; Switch; DBRX; GPT-OSS; Llama 4; DeepSpeed
        ("torch", "m.0.block_sparse_moe.gate.weight", ""),
        ("torch", "m.0.mlp.gate.weight", "m.0.mlp.experts.3.gate_proj.weight"),
        ("torch", "m.0.mlp.shared_expert_gate.weight", ""),
        ("torch", "m.0.mlp.router.classifier.weight", ""),
        ("torch", "m.0.ffn.router.layer.weight", ""),
        ("torch", "m.0.mlp.router.weight", ""),
        ("torch", "m.0.feed_forward.router.weight", ""),
        ("torch", "m.0.moe.gate.wg.weight", "m.0.moe.experts.0.up.weight"),
        ("flax", "block_0/router/kernel", ""),
        ("flax", "block_0/Router_0/kernel", ""),
        ("flax", "mlp/router/router_weights/w/kernel", ""),
        ("flax", "MoeBlock_0/gate/kernel", ""),
        ("flax", "mlp/gate/kernel", "mlp/experts_0/up/kernel"),
        ("flax", "mlp/router", ""),  # an array of its own
    ],
)
@pytest.mark.parametrize("experts", [8, 12, 60])
def test_routers_for_any_number_of_experts(layout, path, expert, experts):
    shape = (experts, 64) if layout == "torch" else (64, experts)
    decisions = reasons(layout, {path: shape, **({expert: (64, 64)} if expert else {})})
    assert decisions.pop(path) == "dense: router; pass dense_router=False"
    assert all(text.startswith("2:4") for text in decisions.values())


@pytest.mark.parametrize(
    ("layout", "path"),
    [
        ("torch", "m.0.mlp.gate.weight"),  # a gated layer without experts
        ("torch", "m.0.mlp.gate_proj.weight"),
        ("torch", "m.0.mlp.experts.3.gate.weight"),
        ("torch", "m.0.routed_experts.3.up.weight"),
        ("torch", "router_model.layers.0.mlp.up.weight"),
        ("flax", "mlp/gate/kernel"),
        ("flax", "experts/gate/kernel"),
    ],
)
def test_gates_that_are_no_routers(layout, path):
    assert reasons(layout, [path])[path].startswith("2:4")


@pytest.mark.parametrize(
    ("layout", "path"),
    [
        # PEFT; kohya; LyCORIS; Flax NNX; Qwix; Linen modules
        ("torch", "base.q_proj.lora_A.default.weight"),
        ("torch", "base.q_proj.lora_B.weight"),
        ("torch", "base.words.lora_embedding_A"),
        ("torch", "lora_unet_mid.lora_down.weight"),
        ("torch", "lora_unet_mid.lora_up.weight"),
        ("torch", "unet_mid.lokr_w1_a"),
        ("torch", "unet_mid.hada_w2_b"),
        ("flax", "attention/lora/lora_a"),
        ("flax", "attention/query/lora_b"),
        ("flax", "mlp/Dense_0/kernel_lora_a"),
        ("flax", "q_einsum/w_lora_b"),
        ("flax", "mlp/lora_a/kernel"),
        ("flax", "mlp/loraB/kernel"),
    ],
)
def test_adapters(layout, path):
    decision = reasons(layout, {path: (64, 16)})[path]
    assert decision == "dense: adapter; pass dense_adapter=False"


@pytest.mark.parametrize(
    ("layout", "path"),
    [
        ("torch", "lora_model.up.weight"),
        ("torch", "flora_b.weight"),
        ("torch", "lora_about.weight"),
        ("flax", "lora_linear/kernel"),
    ],
)
def test_names_that_only_look_like_adapters(layout, path):
    assert reasons(layout, [path])[path].startswith("2:4")


def test_the_axes_of_an_adapter_are_not_guessed():
    decision = reasons("flax", ["lora/lora_a"], dense_adapter=False)["lora/lora_a"]
    assert decision.startswith("dense: ambiguous: 'lora_a' of rank 2; plan with fn=")


def test_an_adapter_of_nnx_by_name_and_by_trace():
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.LoRALinear(64, 64, lora_rank=16, rngs=rngs)
            self.down = nnx.LoRALinear(64, 64, lora_rank=16, rngs=rngs)
            self.lm_head = nnx.Linear(64, 32, rngs=rngs)

        def __call__(self, x):
            return self.lm_head(self.down(nnx.relu(self.up(x))))

    model, x = Model(nnx.Rngs(0)), jax.ShapeDtypeStruct((2, 64), "float32")
    expected = {f"{m}/lora/lora_{x}" for m in ("up", "down") for x in "ab"}
    for plan in (
        js.plan_sparsity(model),
        js.plan_sparsity(model, fn=lambda model, x: model(x), args=(x,)),
    ):
        reason = "adapter; pass dense_adapter=False"
        assert {x.path for x in plan.leaves if x.reason == reason} == expected
        assert {x.path for x in plan.sparse} == {"up/kernel", "down/kernel"}


def chain(*names):
    """The parameters of dense layers with these names, one after the other."""
    matrix = jax.ShapeDtypeStruct((64, 64), "float32")
    return {
        name: {"kernel": matrix, "bias": matrix.update(shape=(64,))} for name in names
    }


NO_HEAD = "no output layer was recognised: if one of these leaves is one, keep it "


@pytest.mark.parametrize(
    "names",
    [
        ("hidden_0", "hidden_1", "hidden_2"),  # a policy of Brax ends with `hidden_2`
        ("Conv_0", "BasicBlock_0", "Dense_0"),  # flaxmodels
    ],
)
def test_where_names_show_no_head_the_plan_says_so(names):
    plan = js.plan_sparsity(chain(*names))
    assert len(plan.sparse) == 3
    assert str(plan).splitlines()[-1] == NO_HEAD + "dense with Rule(path, None)"
    # What it says to do is what ends it.
    rules = [js.Rule(f"{names[-1]}/.*", None), js.Rule(".*", "2:4")]
    assert js.plan_sparsity(chain(*names), rules).notes == ()
    assert js.plan_sparsity(chain(*names), dense_head=False).notes == ()


@pytest.mark.parametrize(
    ("params", "rules"),
    [
        (chain("hidden_0", "hidden_1", "lm_head"), "2:4"),
        (chain("hidden_0", "hidden_1", "Head"), "2:4"),
        (chain("Dense_0"), "2:4"),
        ({"kernel": chain("w")["w"]["kernel"]}, "2:4"),
        (chain("up", "down", "out"), [js.Rule("(up|down)/.*", "2:4")]),
    ],
)
def test_a_head_one_layer_or_chosen_layers_need_no_line(params, rules):
    assert js.plan_sparsity(params, rules).notes == ()


def test_names_of_torch_have_the_line_too():
    state = dict.fromkeys(["fc1.weight", "fc2.weight"], chain("w")["w"]["kernel"])
    (note,) = js.plan_sparsity(state, layout="torch").notes
    assert note.startswith(NO_HEAD)
    state["fc.weight"] = state["fc1.weight"]  # an outermost `fc` is a head
    assert js.plan_sparsity(state, layout="torch").notes == ()
