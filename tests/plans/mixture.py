"""A mixture of experts."""

import jax
import jax.numpy as jnp


WIDTH, EXPERTS, CLASSES = 32, 16, 24


def experts(p, x, weights):
    hidden = jax.nn.gelu(jnp.einsum("td,edf->tef", x, p["up"]))
    return jnp.einsum("te,tef,efd->td", weights, hidden, p["down"])


def top_k_of_softmax(p, x):
    scores = jax.nn.softmax(x @ p["router"])
    values, chosen = jax.lax.top_k(scores, 2)
    one_hot = jax.nn.one_hot(chosen, EXPERTS)
    return experts(p, x, jnp.einsum("tk,tke->te", values, one_hot))


MIXTURE = {
    "first": (WIDTH, WIDTH),
    "router": (WIDTH, EXPERTS),
    "up": (EXPERTS, WIDTH, WIDTH),
    "down": (EXPERTS, WIDTH, WIDTH),
    "head": (WIDTH, CLASSES),
}
