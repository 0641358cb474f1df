"""Output layers and routers, recognised by their products."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsparse as js
from tests.plans.roles import (
    CLASSES,
    EXPERTS,
    LABELS,
    MIXTURE,
    RULES,
    WIDTH,
    X,
    experts,
    roles,
    top_k_of_softmax,
)


# Losses of several terms.

TWO_HEADS = {
    "a": (WIDTH, WIDTH),
    "b": (WIDTH, WIDTH),
    "p": (WIDTH, CLASSES),
    "v": (WIDTH, 8),
}


def two_heads(p, x):
    hidden = jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"])
    return hidden, hidden @ p["p"], hidden @ p["v"]


def forward(p, x, _):
    return two_heads(p, x)[1:]


def sum_of_means(p, x, labels):
    _, logits, value = two_heads(p, x)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean() + 0.5 * jnp.mean((value - 1) ** 2)


def mean_of_sums(p, x, labels):
    """The terms of each example are added before the mean."""
    _, logits, value = two_heads(p, x)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
    return jnp.mean(-log_p + jnp.sum((value - 1) ** 2, axis=-1))


def actor_critic(p, x, labels):
    """The value scales the policy's term, and an entropy is subtracted."""
    _, logits, value = two_heads(p, x)
    log_p, value = jax.nn.log_softmax(logits), value.mean(-1)
    advantage = 1 - jax.lax.stop_gradient(value)
    chosen = jnp.sum(jax.nn.one_hot(labels, CLASSES) * log_p, axis=-1)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    return jnp.mean(-chosen * advantage + (1 - value) ** 2 - 0.01 * entropy)


def with_a_term_on_a_hidden_layer(p, x, labels):
    hidden, *_ = two_heads(p, x)
    return sum_of_means(p, x, labels) + 1e-3 * jnp.mean(hidden**2)


def with_weight_decay(p, x, labels):
    return sum_of_means(p, x, labels) + optax.tree.norm(p)


def gaussian(p, x, _):
    """A normal distribution whose two parameters are outputs of the network."""
    _, mean, value = two_heads(p, x)
    scale = jnp.concatenate([value, value, value], axis=-1)
    return jnp.mean(jnp.sum(((1 - mean) / jnp.exp(scale)) ** 2 + scale, axis=-1))


def in_a_scan(p, x, labels):
    """The loss is summed over chunks, as for large vocabularies."""
    xs = x.reshape(4, 2, WIDTH), labels.reshape(4, 2)
    step = lambda total, xs: (total + sum_of_means(p, *xs), None)
    return jax.lax.scan(step, 0.0, xs)[0]


def accuracy_too(p, x, labels):
    _, logits, value = two_heads(p, x)
    correct = jnp.mean(jnp.argmax(logits, -1) == labels)
    return sum_of_means(p, x, labels), {"accuracy": correct, "value": value}


@pytest.mark.parametrize(
    "fn",
    [
        forward,
        sum_of_means,
        mean_of_sums,
        actor_critic,
        with_a_term_on_a_hidden_layer,
        with_weight_decay,
        gaussian,
        in_a_scan,
        accuracy_too,
        jax.vmap(sum_of_means, in_axes=(None, 0, 0)),
        lambda *args: jax.value_and_grad(sum_of_means)(*args)[0],
    ],
)
def test_a_loss_has_the_heads_of_the_forward_pass(fn):
    assert roles(fn, X, LABELS, **TWO_HEADS) == {"head": {"p", "v"}}


def test_a_value_of_size_one_may_be_added_to_all_logits():
    def dueling(p, x):
        hidden = jnp.tanh(x @ p["a"])
        advantage = hidden @ p["b"]
        return hidden @ p["v"] + advantage - advantage.mean(-1, keepdims=True)

    shapes = {"a": (WIDTH, WIDTH), "b": (WIDTH, CLASSES), "v": (WIDTH, 1)}
    assert roles(dueling, **shapes) == {"head": {"b", "v"}}


def residual(p, x):
    for name in "abc":
        x = x + jnp.tanh(x @ p[name])
    return x


def gated_residual(p, x):
    for name in "abc":
        gate = jax.nn.sigmoid(x[:, :1])
        x = gate * x + (1 - gate) * jnp.tanh(x @ p[name])
    return x


@pytest.mark.parametrize("trunk", [residual, gated_residual])
def test_where_no_head_can_be_told_the_plan_says_so(trunk):
    params = {name: jax.ShapeDtypeStruct((WIDTH, WIDTH), "float32") for name in "abc"}
    for fn in (trunk, lambda p, x: jnp.mean(trunk(p, x) ** 2)):
        plan = js.plan_sparsity(params, fn=fn, args=(X,))
        assert len(plan.sparse) == 3
        (note,) = plan.notes
        assert note == str(plan).splitlines()[-1]
        assert note.startswith("no output layer was recognised")
        assert note in plan._repr_html_()
        assert plan.as_dict()["notes"] == [note]
        assert not js.plan_sparsity(params, fn=fn, args=(X,), dense_head=False).notes
    with_head = lambda p, x: trunk(p, x) @ p["head"]
    plan = js.plan_sparsity({**params, "head": params["a"]}, fn=with_head, args=(X,))
    assert (plan["head"].pattern, plan.notes) == (None, ())


# Routers.


def softmax_of_top_k(p, x):
    values, chosen = jax.lax.top_k(x @ p["router"], 2)
    one_hot = jax.nn.one_hot(chosen, EXPERTS)
    return experts(p, x, jnp.einsum("tk,tke->te", jax.nn.softmax(values), one_hot))


def switch(p, x):
    scores = jax.nn.softmax(x @ p["router"])
    chosen = jax.nn.one_hot(jnp.argmax(scores, -1), EXPERTS)
    return experts(p, x, chosen * scores)


def sigmoid_with_bias(p, x):
    """Chosen by biased scores, weighted by those without a bias."""
    scores = jax.nn.sigmoid(x @ p["router"])
    _, chosen = jax.lax.top_k(scores + 0.1, 2)
    values = jnp.take_along_axis(scores, chosen, axis=-1)
    one_hot = jax.nn.one_hot(chosen, EXPERTS)
    return experts(p, x, jnp.einsum("tk,tke->te", values / values.sum(), one_hot))


def expert_choice(p, x):
    scores = jax.nn.softmax(x @ p["router"]).T
    values, tokens = jax.lax.top_k(scores, 4)
    inputs = jnp.einsum("ektd->ekd", x[tokens][:, :, None] * 1.0)
    hidden = jax.nn.gelu(jnp.einsum("ekd,edf->ekf", inputs, p["up"]))
    outputs = jnp.einsum("ekf,efd->ekd", hidden, p["down"]) * values[..., None]
    return jnp.zeros_like(x).at[tokens.reshape(-1)].add(outputs.reshape(-1, WIDTH))


def sorted_and_grouped(p, x):
    """Tokens are sorted by expert, for `ragged_dot`."""
    scores = jax.nn.softmax(x @ p["router"])
    order = jnp.argsort(-scores, axis=-1)[:, 0]
    tokens = jnp.argsort(order)
    sizes = jnp.bincount(order, length=EXPERTS)
    hidden = jax.nn.gelu(jax.lax.ragged_dot(x[tokens], p["up"], sizes))
    outputs = jax.lax.ragged_dot(hidden, p["down"], sizes)
    weights = jnp.max(scores, axis=-1)[tokens]
    return jnp.zeros_like(x).at[tokens].set(outputs * weights[:, None])


@pytest.mark.parametrize(
    "mixture",
    [
        top_k_of_softmax,
        softmax_of_top_k,
        switch,
        sigmoid_with_bias,
        expert_choice,
        sorted_and_grouped,
    ],
)
def test_routers_stay_dense(mixture):
    def model(p, x):
        return (x + mixture(p, jnp.tanh(x @ p["first"]))) @ p["head"]

    def loss(p, x):
        """Cross-entropy and a term that balances the experts."""
        share = jax.nn.softmax(jnp.tanh(x @ p["first"]) @ p["router"]).mean(0)
        return -jax.nn.log_softmax(model(p, x))[:, 0].mean() + jnp.sum(share**2)

    expected = {"router": {"router"}, "head": {"head"}}
    for fn in (model, loss, jax.jit(jax.checkpoint(loss))):
        assert roles(fn, **MIXTURE) == expected
    last = lambda p, x: mixture(p, jnp.tanh(x @ p["first"]))
    shapes = {name: shape for name, shape in MIXTURE.items() if name != "head"}
    assert roles(last, **shapes)["router"] == {"router"}


def test_a_router_is_pruned_if_asked():
    params = {
        name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in MIXTURE.items()
    }
    fn = lambda p, x: switch(p, jnp.tanh(x @ p["first"])) @ p["head"]
    dense = js.plan_sparsity(params, RULES, fn=fn, args=(X,))["router"]
    assert dense.decision == "dense: router; pass dense_router=False"
    plan = js.plan_sparsity(params, RULES, fn=fn, args=(X,), dense_router=False)
    assert plan["router"].decision == "2:4 along axis 0"
    assert plan["head"].reason == "head; pass dense_head=False"


def attention(p, x):
    scores = jax.nn.softmax((x @ p["a"]) @ (x @ p["b"]).T)
    values, best = jax.lax.top_k(scores, 4)
    return jnp.einsum("tk,tkd->td", values, (x @ p["c"])[best]) @ p["d"] @ p["e"]


def sampled_twice(p, x):
    """The most likely class is an input of the next step."""
    apply = lambda x: jnp.tanh(x @ p["a"]) @ p["b"]
    best = jnp.argmax(jax.nn.softmax(apply(x)), -1)
    return apply(x + jax.nn.one_hot(best, WIDTH))


@pytest.mark.parametrize(("fn", "names"), [(attention, "abcde"), (sampled_twice, "ab")])
def test_choices_that_are_not_of_experts(fn, names):
    shapes = dict.fromkeys(names, (WIDTH, WIDTH))
    assert roles(fn, **shapes) == {"head": {names[-1]}}
