"""Which leaves stay dense for what they do, and a mixture of experts."""

import jax
import jax.numpy as jnp

import jaxsparse as js


WIDTH, EXPERTS, RANK, CLASSES = 32, 16, 16, 24
X = jax.ShapeDtypeStruct((8, WIDTH), "float32")
LABELS = jax.ShapeDtypeStruct((8,), "int32")
RULES = [js.Rule(".*", "2:4", sizes=None)]


def roles(fn, *args, **shapes):
    """Returns the leaves that stay dense, by the first word of the reason."""
    params = {
        name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()
    }
    dense = {}
    for leaf in js.plan_sparsity(params, RULES, fn=fn, args=args or (X,)).leaves:
        if leaf.pattern is None:
            dense.setdefault(leaf.reason.split(";")[0], set()).add(leaf.path)
    return dense


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
