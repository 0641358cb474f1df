"""Weights that the inputs select: dense themselves, and layers before a head."""

import jax
import jax.numpy as jnp
import pytest

import jaxsparse as js
from tests.plans.roles import CLASSES, EXPERTS, MIXTURE, RANK, WIDTH, X, roles


INDEX = jax.ShapeDtypeStruct((8,), "int32")
ONE_INDEX = jax.ShapeDtypeStruct((), "int32")
SPECIES = (4, WIDTH, WIDTH)
HEAD = (WIDTH, CLASSES)
ROWS = "bi,bij->bj"


def by_loop(w, x, s):
    return jax.lax.map(lambda xs: xs[0] @ w[xs[1]], (x, s))


def one_hot_and_species(w, x, s):
    chosen = jnp.einsum("bs,sij->bij", jax.nn.one_hot(s, 4), w)
    return jnp.einsum(ROWS, x, chosen)


#: name: (a layer of weights that the inputs select, index, shape of the weights)
LAYERS = {
    "indexed": (lambda w, x, s: jnp.einsum(ROWS, x, w[s]), INDEX, SPECIES),
    "take": (
        lambda w, x, s: jnp.einsum(ROWS, x, jnp.take(w, s, axis=0)),
        INDEX,
        SPECIES,
    ),
    "along another axis": (
        lambda w, x, s: jnp.einsum("bi,ibj->bj", x, w[:, s]),
        INDEX,
        (WIDTH, 4, WIDTH),
    ),
    "one for all rows": (lambda w, x, s: x @ w[s], ONE_INDEX, SPECIES),
    "transposed and cast": (
        lambda w, x, s: jnp.einsum(
            "bi,bji->bj", x.astype("bfloat16"), w[s].astype("bfloat16").mT
        ),
        INDEX,
        SPECIES,
    ),
    "reshaped": (
        lambda w, x, s: jnp.einsum(ROWS, x, w[s].reshape(-1, WIDTH, WIDTH)),
        INDEX,
        (4, WIDTH * WIDTH),
    ),
    "scaled": (
        lambda w, x, s: jnp.einsum(ROWS, x, 2 * w[s] * x[:, :1, None]),
        INDEX,
        SPECIES,
    ),
    "in a loop": (by_loop, INDEX, SPECIES),
    "mapped": (
        lambda w, x, s: jax.vmap(lambda x, s: x @ w[s])(x, s),
        INDEX,
        SPECIES,
    ),
    "in a function": (
        lambda w, x, s: jax.jit(jax.checkpoint(lambda x: jnp.einsum(ROWS, x, w[s])))(x),
        INDEX,
        SPECIES,
    ),
    "one-hot": (one_hot_and_species, INDEX, SPECIES),
    "ragged": (
        lambda w, x, s: jax.lax.ragged_dot(x, w[s[:2]], jnp.array([4, 4])),
        INDEX,
        SPECIES,
    ),
    "convolution": (
        lambda w, x, s: jax.lax.conv_general_dilated(
            x[None],
            w[s],
            (1,),
            "SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
        )[0],
        ONE_INDEX,
        (4, 3, WIDTH, WIDTH),
    ),
    "chosen by a condition": (
        lambda w, x, s: x @ jnp.where(s[0] > 1, w[0], w[1]),
        INDEX,
        SPECIES,
    ),
}


@pytest.mark.sweep(keep=["indexed", "one for all rows", "convolution"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_head_may_follow_selected_weights_alone(name):
    """As after a layer of plain weights, `x @ p["w"]`."""
    layer, index, w = LAYERS[name]
    fn = lambda p, x, s: jax.nn.relu(layer(p["w"], x, s)) @ p["head"]
    plain = {"first": (WIDTH, WIDTH), "w": w, "head": HEAD}
    model = lambda p, x, s: fn(p, jnp.tanh(x @ p["first"]), s)
    assert roles(model, X, index, **plain)["head"] == {"head"}
    params = {
        "w": jax.ShapeDtypeStruct(w, "float32"),
        "head": jax.ShapeDtypeStruct(HEAD, "float32"),
    }
    with pytest.raises(ValueError, match="nothing prunable") as error:
        js.plan_sparsity(params, fn=fn, args=(X, index))
    assert "dense: head; pass dense_head=False" in str(error.value)
    plan = js.plan_sparsity(params, fn=fn, args=(X, index), dense_head=False)
    assert plan["head"].decision == "2:4 along axis 0"
    assert plan["w"].pattern is None


def test_selected_weights_may_be_the_head():
    """One output layer for each task: what precedes it is a hidden layer."""

    def fn(p, x, task):
        hidden = jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"])
        return jnp.einsum(ROWS, hidden, p["heads"][task])

    shapes = {"a": (WIDTH, WIDTH), "b": (WIDTH, WIDTH), "heads": (4, WIDTH, CLASSES)}
    assert roles(fn, X, INDEX, **shapes) == {"gathered": {"heads"}}


def test_experts_selected_for_each_token():
    def mixture(p, x):
        values, chosen = jax.lax.top_k(jax.nn.softmax(x @ p["router"]), 2)
        hidden = jax.nn.gelu(jnp.einsum("td,tkdf->tkf", x, p["up"][chosen]))
        return jnp.einsum("tk,tkf,tkfd->td", values, hidden, p["down"][chosen])

    expected = {"router": {"router"}, "gathered": {"up", "down"}}
    for blocks in (1, 2):

        def trunk(p, x, blocks=blocks):
            x = jnp.tanh(x @ p["first"])
            for _ in range(blocks):
                x = x + mixture(p, x)
            return x

        model = lambda p, x, trunk=trunk: trunk(p, x) @ p["head"]
        assert roles(model, **MIXTURE) == {**expected, "head": {"head"}}
        without = {name: s for name, s in MIXTURE.items() if name != "head"}
        assert roles(trunk, **without) == expected


@pytest.mark.parametrize("selected", [True, False])
def test_a_head_with_an_adapter_is_a_head(selected):
    """The adapter may be selected for each row, as where many are served."""

    def fn(p, x, s):
        hidden = jnp.tanh(x @ p["w"])
        if not selected:
            return hidden @ p["head"] + 2 * ((hidden @ p["a"][0]) @ p["b"][0])
        low = jnp.einsum("bi,bir,bro->bo", hidden, p["a"][s], p["b"][s])
        return hidden @ p["head"] + 2 * low

    shapes = {"w": (WIDTH, WIDTH), "head": HEAD}
    rank = RANK // 2
    shapes |= {"a": (4, WIDTH, rank), "b": (4, rank, CLASSES)}
    why = "gathered" if selected else "adapter"
    assert roles(fn, X, INDEX, **shapes) == {"head": {"head"}, why: {"a", "b"}}


# Lookups of vectors are inputs of the layers, not layers.

IDS = jax.ShapeDtypeStruct((8,), "int32")
TOKENS = jax.ShapeDtypeStruct((2, 6), "int32")


def scores_of_all_items(p, user, item):
    return p["users"][user] @ p["items"][item].T


def towers(p, user, item):
    user = jnp.tanh(p["users"][user] @ p["u1"]) @ p["u2"]
    item = jnp.tanh(p["items"][item] @ p["i1"]) @ p["i2"]
    return jnp.sum(user * item, axis=-1)


def matrix_factors(p, user, item):
    """Neural collaborative filtering: a product of two lookups beside an MLP."""
    product = p["users"][user] * p["items"][item]
    pair = jnp.concatenate([p["users"][user], p["items"][item]], axis=-1)
    return jnp.concatenate([product, jnp.tanh(pair @ p["u1"])], axis=-1) @ p["out"]


TABLES = {"users": (64, WIDTH), "items": (48, WIDTH)}
TOWERS = dict.fromkeys(("u1", "u2", "i1", "i2"), (WIDTH, WIDTH))


def test_two_towers_have_the_heads_of_their_layers():
    params = {"w": (WIDTH, WIDTH)}
    pruned = lambda p, user, item: (
        scores_of_all_items(p, user, item) @ jnp.ones((8, WIDTH)) @ p["w"]
    )
    assert roles(pruned, IDS, IDS, **TABLES, **params) == {"gathered": set(TABLES)}
    dense = roles(towers, IDS, IDS, **TABLES, **TOWERS)
    assert dense == {"gathered": set(TABLES), "head": {"u2", "i2"}}
    shapes = {"u1": (2 * WIDTH, WIDTH), "out": (2 * WIDTH, CLASSES)}
    dense = roles(matrix_factors, IDS, IDS, **TABLES, **shapes)
    assert dense == {"gathered": set(TABLES), "head": {"out"}}


def pooled(p, tokens):
    """A bag of words: the mean over tokens that are no padding."""
    mask = (tokens > 0).astype("float32")
    return jnp.einsum("bt,btd->bd", mask, p["table"][tokens]) @ p["w"]


def attending(p, tokens):
    """Attention between embeddings, without projections."""
    x = p["table"][tokens]
    return jax.nn.softmax(jnp.einsum("btd,bsd->bts", x, x)) @ x @ p["w"]


def with_positions(p, tokens):
    table, positions = p["table"][:32], p["table"][32:38]
    return jnp.tanh(table[tokens] + positions) @ p["w"]


@pytest.mark.parametrize("fn", [pooled, attending, with_positions])
def test_a_layer_on_embeddings_alone_is_no_head(fn):
    """As for `x @ w`: a single layer is the only one that can be pruned."""
    shapes = {"table": (64, WIDTH), "w": (WIDTH, EXPERTS)}
    assert roles(fn, TOKENS, **shapes) == {"gathered": {"table"}}


def test_a_language_model_keeps_its_head_alone():
    def fn(p, tokens):
        x = p["embedding"][tokens] + p["positions"][: tokens.shape[1]]
        for i in "12":
            query, key, value = jnp.split(x @ p["qkv" + i], 3, axis=-1)
            scores = jnp.einsum("btd,bsd->bts", query, key)
            x = x + jax.nn.softmax(scores) @ value @ p["out" + i]
            x = x + jax.nn.gelu(x @ p["up" + i]) @ p["down" + i]
        return x @ p["head"]

    shapes = {"embedding": (64, WIDTH), "positions": (16, WIDTH), "head": (WIDTH, 64)}
    for i in "12":
        shapes |= {"qkv" + i: (WIDTH, 3 * WIDTH), "out" + i: (WIDTH, WIDTH)}
        shapes |= {"up" + i: (WIDTH, 64), "down" + i: (64, WIDTH)}
    assert roles(fn, TOKENS, **shapes) == {
        "gathered": {"embedding"},
        "not a matmul operand": {"positions"},
        "head": {"head"},
    }


def test_sizes_may_be_symbols():
    batch, length = jax.export.symbolic_shape("b,t")

    def fn(p, tokens, s):
        x = p["table"][tokens]
        x = x.reshape(batch * length, 2, WIDTH // 2).reshape(batch, length, WIDTH)
        x = jnp.broadcast_to(x[:, None], (batch, length, length, WIDTH))[:, 0]
        hidden = jnp.einsum("btd,bde->bte", x, p["w"][s])
        weights = (p["w"] * hidden.mean())[s] * s[:, None, None]
        return jnp.tanh(jnp.einsum("btd,bde->bte", hidden, weights)) @ p["head"]

    args = [jax.ShapeDtypeStruct(s, "int32") for s in ((batch, length), (batch,))]
    shapes = {"table": (64, WIDTH), "w": SPECIES, "head": HEAD, "v": (WIDTH, WIDTH)}
    model = lambda p, tokens, s: (fn(p, tokens, s), jnp.ones((8, WIDTH)) @ p["v"])
    expected = {"gathered": {"table", "w"}, "head": {"head"}}
    assert roles(model, *args, **shapes) == expected
