"""Shapes, and plans of small programs, for tests of axes read from a trace."""

import jax
import jax.numpy as jnp

import jaxsparse as js


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def group_axes(fn, params, *args, **kwargs):
    """The group axes by path, for the leaves that have one."""
    axes = js.contraction_axes(fn, params, *args, **kwargs)
    leaves, _ = jax.tree_util.tree_flatten_with_path(axes)
    name = lambda path: "/".join(
        str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path
    )
    return {name(path).removesuffix("/value"): axis for path, axis in leaves}


def plan_of(fn, *args, w=(16, 8), pattern="2:4", **more):
    """The plan of `params["w"]` in `fn(params, *args)`, without the size rule."""
    params = {"w": shape(*w), **{name: shape(*s) for name, s in more.items()}}
    params["other"] = shape(16, 8)  # so that a leaf is always prunable
    return js.plan_sparsity(
        params,
        [js.Rule(".*", pattern, sizes=None)],
        fn=lambda p, *args: (fn(p, *args), jnp.ones((2, 16)) @ p["other"]),
        args=args,
        dense_head=False,
    )["w"]


def through(change, w=(16, 8), pattern="2:4"):
    """The plan of `w` in `x @ change(w)`."""
    rows = jax.eval_shape(change, shape(*w)).shape[0]
    return plan_of(
        lambda p, x: x @ change(p["w"]), shape(2, rows), w=w, pattern=pattern
    )


X = shape(2, 16)
SEQUENCE = shape(2, 6, 16)
IMAGE = shape(2, 8, 8, 16)
ATTENTION = {f"{name}/kernel": 0 for name in ("query", "key", "value")}
ATTENTION["out/kernel"] = 1
