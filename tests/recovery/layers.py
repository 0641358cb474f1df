"""One leaf of every kind that has factors, and by hand what their product is."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxsparse as js


#: Shapes, and the einsum of the factors in the leaf's own axes.
LAYERS = {
    "kernel": ((16, 8), "ir,ro->io"),
    "transposed": ((8, 16), "ir,ro->oi"),
    "stack": ((2, 16, 16), "lir,lro->lio"),
    "query": ((16, 2, 4), "dr,rhk->dhk"),
    "out": ((2, 8, 16), "hkr,rd->hkd"),
    "conv": ((3, 3, 8, 8), "xyir,ro->xyio"),
    "experts": ((2, 16, 8), "edr,erf->edf"),
}
RULES = [js.Rule(".*", "2:4", sizes=None)]


def forward(params, x):
    """The outputs of all layers; `x` is `(image, height, width, 16)`."""
    tokens = x.reshape(-1, 16)
    images = x[..., :8]
    experts = jnp.stack([tokens, tokens[:, ::-1]])
    stack, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), tokens, params["stack"])
    return [
        tokens @ params["kernel"] + params["bias"],
        tokens @ params["transposed"].T,
        stack,
        jnp.einsum("td,dhk->thk", tokens, params["query"]),
        jnp.einsum("thk,hkd->td", tokens.reshape(-1, 2, 8), params["out"]),
        lax.conv_general_dilated(
            images,
            params["conv"],
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ),
        jnp.einsum("etd,edf->etf", experts, params["experts"]),
    ]


def draw(dtype=np.float32):
    """Parameters, and inputs that are correlated."""
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=shape) for name, (shape, _) in LAYERS.items()}
    params["bias"] = rng.normal(size=8)
    mixed = rng.normal(size=(16, 16)) / 4
    x = rng.normal(size=(8, 6, 6, 16)) @ mixed
    as_jax = lambda x: jnp.asarray(x, dtype)
    return jax.tree.map(as_jax, params), jnp.asarray(x, np.float32)


def plan_of(params, x):
    return js.plan_sparsity(params, RULES, fn=forward, args=(x,), dense_head=False)


def product(name, factors):
    """The product of two factors in float64."""
    a, b = (np.asarray(x, np.float64) for x in (factors.a, factors.b))
    return np.einsum(LAYERS[name][1], a, b)
