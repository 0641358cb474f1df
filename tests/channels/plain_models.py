"""Small models as plain functions: `name() -> (fn, params, args)`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def draw(seed=0, **shapes):
    """Parameters by name."""
    rng = np.random.default_rng(seed)
    one = lambda shape: jnp.asarray(rng.normal(size=shape) / 2, jnp.float32)
    return {
        name: draw(seed + 1, **shape) if isinstance(shape, dict) else one(shape)
        for name, shape in shapes.items()
    }


def vectors(*shape):
    return jax.random.normal(jax.random.key(0), shape)


def rms_norm(x, scale):
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale


def layer_norm(x, scale, bias):
    x = x - x.mean(-1, keepdims=True)
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale + bias


def attend(query, key, value, causal=False):
    """Attention of `(batch, seq, heads, size)`, grouped queries before `heads`."""
    heads = key.shape[2]
    query = query.reshape(*query.shape[:2], heads, -1, query.shape[-1])
    scores = jnp.einsum("bqhgd,bkhd->bhgqk", query, key) / query.shape[-1] ** 0.5
    if causal:
        seq = jnp.arange(query.shape[1])
        scores = jnp.where(seq[:, None] >= seq, scores, -1e9)
    mixed = jnp.einsum("bhgqk,bkhd->bqhgd", jax.nn.softmax(scores), value)
    return mixed.reshape(*mixed.shape[:2], -1)


def rotate_halves(x):
    """Rotary embedding as in Llama: feature i and `i + half` are a pair."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * 10.0 ** -(jnp.arange(half) / half)
    angles = jnp.concatenate([angles, angles], -1)[:, None]
    turned = jnp.concatenate([-x[..., half:], x[..., :half]], -1)
    return x * jnp.cos(angles) + turned * jnp.sin(angles)


def rotate_pairs(x):
    """Rotary embedding of features 2i and 2i + 1."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None, None] * 10.0 ** -(jnp.arange(half) / half)
    a, b = x[..., ::2], x[..., 1::2]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)


def mlp():
    params = draw(up=(6, 12), bias=(12,), down=(12, 5))
    fn = lambda p, x: jax.nn.gelu(x @ p["up"] + p["bias"]) @ p["down"]
    return fn, params, (vectors(3, 6),)


def decoder(rotate=rotate_halves):
    """Grouped queries, rotary embedding, SwiGLU and a tied head; one block."""
    params = draw(
        embed=(11, 16),
        **dict.fromkeys(("norm1", "norm2", "norm3"), (16,)),
        q=(16, 24),
        k=(16, 12),
        v=(16, 12),
        o=(24, 16),
        gate=(16, 20),
        up=(16, 20),
        down=(20, 16),
    )

    def fn(p, tokens):
        x = p["embed"][tokens]
        h = rms_norm(x, p["norm1"])
        heads = lambda y: y.reshape(*y.shape[:2], -1, 4)
        q, k, v = (heads(h @ p[name]) for name in "qkv")
        x = x + attend(rotate(q), rotate(k), v, causal=True) @ p["o"]
        h = rms_norm(x, p["norm2"])
        x = x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]
        return rms_norm(x, p["norm3"]) @ p["embed"].T

    return fn, params, (jnp.arange(10).reshape(2, 5),)


def decoder_of_pairs():
    return decoder(rotate_pairs)


def fused_qkv_split():
    """Queries of four heads, keys and values of two, as slices of one projection."""
    params = draw(qkv=(8, 32), bias=(32,), o=(16, 8), down=(8, 5))

    def fn(p, x):
        q, k, v = jnp.split(x @ p["qkv"] + p["bias"], [16, 24], axis=-1)
        heads = lambda y: y.reshape(*y.shape[:2], -1, 4)
        x = attend(heads(q), heads(k), heads(v)) @ p["o"]
        return jax.nn.relu(x) @ p["down"]

    return fn, params, (vectors(2, 3, 8),)


def fused_qkv_reshape():
    """One projection that a reshape splits into three, heads and channels."""
    params = draw(qkv=(8, 36), o=(12, 5))

    def fn(p, x):
        qkv = (x @ p["qkv"]).reshape(*x.shape[:2], 3, 3, 4)
        q, k, v = (qkv[:, :, i] for i in range(3))
        return attend(q, k, v) @ p["o"]

    return fn, params, (vectors(2, 3, 8),)


def fused_qkv_by_head():
    """Queries, keys and values of a head lie side by side."""
    params = draw(qkv=(8, 36), o=(12, 5))

    def fn(p, x):
        qkv = (x @ p["qkv"]).reshape(*x.shape[:2], 3, 12)
        q, k, v = jnp.split(qkv, 3, axis=-1)
        return attend(q, k, v) @ p["o"]

    return fn, params, (vectors(2, 3, 8),)


def fused_gate_up():
    params = draw(gate_up=(6, 24), down=(12, 5))

    def fn(p, x):
        gate, up = jnp.split(x @ p["gate_up"], 2, axis=-1)
        return (jax.nn.silu(gate) * up) @ p["down"]

    return fn, params, (vectors(3, 6),)


def mixture_of_experts():
    """The two best of four experts, by one-hot sums; experts are a batch axis."""
    params = draw(inp=(5, 8), router=(8, 4), up=(4, 8, 6), down=(4, 6, 8), out=(8, 5))

    def fn(p, x):
        x = x @ p["inp"]
        gates, chosen = lax.top_k(jax.nn.softmax(x @ p["router"]), 2)
        weights = jnp.einsum("tk,tke->te", gates, jax.nn.one_hot(chosen, 4))
        h = jax.nn.relu(jnp.einsum("td,edf->tef", x, p["up"]))
        y = jnp.einsum("tef,efd->ted", h, p["down"])
        return (x + jnp.einsum("te,ted->td", weights, y)) @ p["out"]

    return fn, params, (vectors(7, 5),)


def looked_up_experts():
    """Each token reads the weights of its best expert; a bias goes through scatter."""
    params = draw(router=(6, 4), up=(4, 6, 8), down=(4, 8, 5), scale=(4,))

    def fn(p, x):
        gates = jax.nn.softmax(x @ p["router"]) * p["scale"]
        best = jnp.argmax(gates, -1)
        rows = jnp.arange(len(x))
        only = jnp.zeros_like(gates).at[rows, best].set(gates[rows, best])
        h = jax.nn.relu(jnp.einsum("td,tdf->tf", x, p["up"][best]))
        y = jnp.einsum("tf,tfd->td", h, p["down"][best])
        return y * only.sum(-1, keepdims=True)

    return fn, params, (vectors(7, 6),)


def stacked_layers():
    """A scan over three layers."""
    params = draw(inp=(5, 8), norm=(3, 8), up=(3, 8, 12), down=(3, 12, 8), out=(8, 5))

    def fn(p, x):
        def step(x, layer):
            norm, up, down = layer
            return x + jax.nn.relu(rms_norm(x, norm) @ up) @ down, None

        layers = p["norm"], p["up"], p["down"]
        return lax.scan(jax.checkpoint(step), x @ p["inp"], layers)[0] @ p["out"]

    return fn, params, (vectors(3, 5),)


def while_loop():
    """A loop whose condition reads what it carries."""
    params = draw(inp=(5, 8), up=(8, 12), down=(12, 8), out=(8, 5), other=(8, 4))

    def fn(p, x):
        go_on = lambda state: (state[0] < 3) & (jnp.abs(state[1]).max() < 1e6)
        body = lambda state: (
            state[0] + 1,
            state[1] + jax.nn.relu(state[1] @ p["up"]) @ p["down"],
            state[2] * 0.5,
        )
        first = (0, x @ p["inp"], jnp.ones((2, 8)) @ p["other"])
        _, x, y = lax.while_loop(go_on, body, first)
        return x @ p["out"], y

    return fn, params, (vectors(3, 5),)


def loop_that_ends_by_a_channel():
    """The condition reads one element, so that its position matters."""
    params = draw(inp=(5, 8), turn=(8, 8), out=(8, 5))

    def fn(p, x):
        go_on = lambda state: (state[0] < 5) & (state[1][0, 2] < 1.0)
        body = lambda state: (state[0] + 1, jnp.tanh(state[1] @ p["turn"]) + 0.1)
        _, x = lax.while_loop(go_on, body, (0, x @ p["inp"]))
        return x @ p["out"]

    return fn, params, (vectors(3, 5),)


def branches():
    """The largest output of a router decides which branch runs."""
    params = draw(inp=(5, 8), router=(8, 3), a=(8, 12), b=(12, 8), c=(8, 8), out=(8, 5))

    def fn(p, x):
        x = x @ p["inp"]
        runs = [
            lambda x: x + jax.nn.relu(x @ p["a"]) @ p["b"],
            lambda x: x * 2,
            lambda x: x @ p["c"],
        ]
        return lax.switch(jnp.argmax(x[0] @ p["router"]), runs, x) @ p["out"]

    return fn, params, (vectors(3, 5),)


def weight_norm():
    params = draw(v=(6, 12), g=(12,), down=(12, 5))

    def fn(p, x):
        w = p["g"] * p["v"] * lax.rsqrt((p["v"] ** 2).sum(0))
        return jax.nn.relu(x @ w) @ p["down"]

    return fn, params, (vectors(3, 6),)


def tied_autoencoder():
    params = draw(w=(6, 12), bias=(12,), out=(6, 5))

    def fn(p, x):
        return jax.nn.relu(x @ p["w"] + p["bias"]) @ p["w"].T @ p["out"]

    return fn, params, (vectors(3, 6),)


def ensemble():
    """Three networks at once, by `vmap`."""
    params = draw(up=(3, 6, 12), bias=(3, 12), down=(3, 12, 5))
    one = lambda p, x: jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"]
    return jax.vmap(one, (0, None)), params, (vectors(4, 6),)


def unrolled_layers():
    """Stacked layers that a Python loop reads one by one."""
    params = draw(inp=(5, 8), up=(2, 8, 12), down=(2, 12, 8), out=(8, 5))

    def fn(p, x):
        x = x @ p["inp"]
        for i in range(2):
            x = x + jax.nn.relu(x @ p["up"][i]) @ p["down"][i]
        return x @ p["out"]

    return fn, params, (vectors(3, 5),)


def nothing_but_a_total():
    """The last of cumulative sums is a total, which the analysis does not know."""
    params = draw(up=(6, 12), bias=(12,), out=(1, 5))

    def fn(p, x):
        h = jnp.cumsum(jax.nn.relu(x @ p["up"] + p["bias"]), -1)
        return h[:, -1:] @ p["out"]

    return fn, params, (vectors(3, 6),)
