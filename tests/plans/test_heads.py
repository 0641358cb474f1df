"""The output layer, recognised by where it stands."""

import jax
import jax.numpy as jnp
import pytest

import jaxsparse as js


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, "float32")


X = shape(2, 16)
HEAD = "head; pass dense_head=False"
PARAMS = {name: shape(16, 16) for name in ("a", "b", "c")}


def heads(fn, *args):
    """The leaves that are kept dense as heads."""
    plan = js.plan_sparsity(PARAMS, fn=fn, args=args or (X,))
    return {leaf.path for leaf in plan.leaves if leaf.reason == HEAD}


def logits(p, x):
    return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]


def loss(p, x):
    return -jnp.mean(jax.nn.log_softmax(logits(p, x))[:, 0])


def loss_and_logits(p, x):
    return loss(p, x), {"logits": logits(p, x)}


def logits_and_hidden(p, x):
    hidden = jnp.tanh(x @ p["a"]) @ p["b"]
    return hidden @ p["c"], hidden


def gradient(p, x):
    return jax.value_and_grad(loss)(p, x)[0]


def chunked_loss(p, x):
    hidden = jnp.tanh(x @ p["a"]) @ p["b"]
    step = lambda total, row: (total + jnp.sum(row @ p["c"]), None)
    return jax.lax.scan(step, 0.0, hidden)[0]


def with_weight_decay(p, x):
    return loss(p, x) + 1e-4 * sum(jnp.sum(jnp.square(w)) for w in p.values())


@pytest.mark.parametrize(
    "fn",
    [
        logits,
        loss,
        loss_and_logits,
        logits_and_hidden,
        gradient,
        chunked_loss,
        with_weight_decay,
        jax.jit(jax.checkpoint(loss)),
    ],
)
def test_the_logits_layer_is_the_head_whatever_is_returned(fn):
    assert heads(fn) == {"c"}


def residual_trunk(p, x):
    for name in "abc":
        x = x + jnp.tanh(x @ p[name])
    return x


def two_ends(p, x):
    hidden = x @ p["a"]
    return hidden @ p["b"] + hidden @ p["c"]


def recurrent(p, x):
    step = lambda h, _: (jnp.tanh(h @ p["a"] @ p["b"] @ p["c"]), None)
    return jax.lax.scan(step, x, None, length=3)[0]


@pytest.mark.parametrize("fn", [residual_trunk, two_ends, recurrent])
def test_a_layer_that_others_bypass_or_follow_is_no_head(fn):
    assert heads(fn) == set()


def test_two_outputs_have_a_head_each():
    def fn(p, x):
        hidden = x @ p["a"]
        return hidden @ p["b"], hidden @ p["c"]

    assert heads(fn) == {"b", "c"}


def policy_and_value(p, x):
    hidden = jnp.tanh(x @ p["a"])
    return hidden @ p["b"], (hidden @ p["c"])[:, :1]


def actor_critic(p, x):
    scores, value = policy_and_value(p, x)
    advantage = jax.lax.stop_gradient(1.0 - value[:, 0])
    chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), jnp.zeros((2, 1), int), -1)
    policy = -chosen[:, 0] * advantage
    return jnp.mean(policy + 0.5 * (value[:, 0] - 1.0) ** 2)


def entropy_bonus(p, x):
    scores, value = policy_and_value(p, x)
    chances = jax.nn.softmax(scores)
    entropy = -jnp.sum(chances * jnp.log(chances), axis=-1)
    return jnp.mean((value - 1.0) ** 2) - 0.01 * jnp.mean(entropy)


def accumulated(p, x):
    step = lambda total, row: (total + actor_critic(p, row[None].repeat(2, 0)), None)
    return jax.lax.scan(step, 0.0, x)[0]


@pytest.mark.parametrize(
    "fn", [policy_and_value, actor_critic, entropy_bonus, accumulated]
)
def test_a_loss_of_two_heads_has_both(fn):
    assert heads(policy_and_value) == {"b", "c"}
    assert heads(fn) == {"b", "c"}


def loss_and_penalty(p, x):
    hidden = jnp.tanh(x @ p["a"])
    second = jnp.tanh(hidden @ p["b"])
    one_hot = jnp.eye(16)[:2]
    cross_entropy = -jnp.mean(
        jnp.sum(one_hot * jax.nn.log_softmax(second @ p["c"]), -1)
    )
    return cross_entropy + 1e-3 * jnp.mean(second**2) + 1e-3 * jnp.mean(hidden**2)


def routed(p, x):
    """A mixture of two experts with a term that balances its router."""
    gates = jax.nn.softmax(x @ p["a"])
    balance = jnp.sum(jnp.mean(gates, 0) ** 2)
    hidden = jnp.tanh((x * gates[:, :1]) @ p["b"])
    return balance + jnp.mean(jnp.square(hidden @ p["c"]))


@pytest.mark.parametrize("fn", [loss_and_penalty, routed])
def test_terms_on_hidden_layers_change_nothing(fn):
    assert heads(fn) == {"c"}


@pytest.mark.parametrize("fn", [residual_trunk, two_ends])
def test_the_sum_of_what_has_no_head_has_none(fn):
    assert heads(lambda p, x: jnp.sum(fn(p, x))) == set()
    assert heads(lambda p, x: jnp.mean(fn(p, x) ** 2)) == set()


def test_a_single_contraction_is_no_head():
    plan = js.plan_sparsity({"w": shape(16, 16)}, fn=lambda p, x: x @ p["w"], args=(X,))
    assert plan["w"].axis == 0


def test_dense_head_can_be_turned_off():
    plan = js.plan_sparsity(PARAMS, fn=loss, args=(X,), dense_head=False)
    assert [leaf.axis for leaf in plan.leaves] == [0, 0, 0]


def test_an_axis_from_a_rule_goes_before_the_trace():
    rules = [js.Rule("c", "2:4", axis=1), js.Rule(".*", "2:4")]
    plan = js.plan_sparsity(PARAMS, rules, fn=loss, args=(X,))
    assert plan["c"].axis == 1


def test_names_are_not_consulted_where_a_function_is_given():
    params = {"head": {"kernel": shape(16, 16)}, "embedding": shape(16, 16)}
    fn = lambda p, x: x @ p["head"]["kernel"].T + x @ p["embedding"]
    plan = js.plan_sparsity(params, fn=fn, args=(X,))
    assert plan["head/kernel"].axis == 1
    assert plan["embedding"].axis == 0


def test_a_use_tells_where_and_what():
    def fn(p, x):
        return jnp.einsum("bd,hdk->bhk", x, p["w"]) + p["b"]

    params = {"w": shape(4, 16, 8), "b": shape(4, 8), "unused": shape(3)}
    uses = js.leaf_uses(fn, params, X)
    (use,) = uses["w"]
    assert (use.kind, use.primitive) == ("contraction", "dot_general")
    assert (use.contracted, use.batch, use.output) == ((1,), (), (0, 2))
    assert use.other == (2, 16)
    assert "test_heads.py" in use.source
    assert [use.kind for use in uses["b"]] == ["elementwise"]
    assert uses["unused"] == ()


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (lambda _, x: x, "not used by fn"),
        (lambda p, x: x * p["a"][:2] + p["b"][:2] - p["c"][:2], "not a matmul operand"),
        (lambda p, x: x @ jnp.sort(p["a"]), "not followed through sort"),
    ],
)
def test_nothing_prunable_gives_the_reason_of_every_leaf(fn, reason):
    with pytest.raises(ValueError, match="nothing prunable") as error:
        js.plan_sparsity(PARAMS, fn=fn, args=(X,))
    assert reason in str(error.value)
    for path in PARAMS:
        assert f"\n{path} " in str(error.value)
