"""Finding a mask, in multiples of the memory floor measured in the same run.

    python -m benchmarks.mask_search [--size 16384] [--rounds 5] [--peers]

The floor of a bool mask is a jitted `x > 0`: the weights read once and one bool each
written. The floor of a packed mask is the time that its bytes take, weights and bits,
at the best bandwidth seen in that and in a copy. As peers our own plain statements of
what other libraries do: the product with all patterns and an argmax, a double argsort,
`top_k` and one-hot; and NVIDIA Model Optimizer's own `create_asp_mask` where torch and
`nvidia-modelopt` are installed. Medians of rounds in which all take turns, peers in
rounds of their own with a floor of their own.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from benchmarks.timing import machine, medians, print_rows


PATTERNS = ((2, 4), (1, 4), (4, 8), (8, 16), (16, 32))
DTYPES = ("float32", "bfloat16", "float8_e4m3fn")


def grouped(x, m, axis):
    """The weights with groups as the last axis: `[..., m]`."""
    moved = jnp.moveaxis(x, axis, -1)
    return moved.reshape(*moved.shape[:-1], -1, m)


def ungrouped(mask, shape, axis):
    """A mask of groups in the weights' shape again."""
    moved = [n for i, n in enumerate(shape) if i != axis % len(shape)]
    return jnp.moveaxis(mask.reshape(*moved, shape[axis]), -1, axis)


def pattern_matmul(x, n, m, axis):
    """Scores every pattern by a matrix product and takes the best."""
    patterns = js.compute_valid_1d_patterns(m, n)
    groups = jnp.abs(grouped(x, m, axis))
    best = jnp.argmax(groups @ patterns.T.astype(x.dtype), axis=-1)
    return ungrouped(patterns.astype(bool)[best], x.shape, axis)


def double_argsort(x, n, m, axis):
    """The rank of each weight by sorting twice."""
    groups = jnp.abs(grouped(x, m, axis))
    rank = jnp.argsort(jnp.argsort(-groups, axis=-1), axis=-1)
    return ungrouped(rank < n, x.shape, axis)


def top_k(x, n, m, axis):
    """The places of the largest, as a sum of one-hot rows."""
    _, places = jax.lax.top_k(jnp.abs(grouped(x, m, axis)), n)
    return ungrouped(jax.nn.one_hot(places, m, dtype=bool).any(-2), x.shape, axis)


#: What others do.
PEERS = (pattern_matmul, double_argsort, top_k)


def jaxsparse(x, n, m, axis):
    """This library's search."""
    return js.create_asp_mask(x, (n, m), axis=axis)


def packed(x, n, m, axis):
    """This library's search for a packed mask."""
    rule = js.Rule(".*", (n, m), axis=axis % x.ndim, sizes=None)
    return js.create_masks({"kernel": x}, [rule], packed=True)["kernel"]


def copy(x):
    """Reads and writes every weight."""
    return x + jnp.ones((), x.dtype)


def model_optimizer(x, axis):
    """Model Optimizer's search on the same device, of weights as PyTorch has them."""
    import torch  # pyright: ignore[reportMissingImports]
    from modelopt.torch.sparsity.weight_sparsity import (  # pyright: ignore[reportMissingImports]
        magnitude,
    )

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    rows = np.asarray(jnp.swapaxes(x, axis, -1).astype("float32"))
    weight = torch.from_numpy(rows.copy()).to(device, getattr(torch, str(x.dtype)))

    def search():
        mask = magnitude.create_asp_mask(weight, "2:4 sparsity")
        if device == "cuda":
            torch.cuda.synchronize()
        return mask

    return search


def ratios(x, n, m, axis, rounds) -> dict[str, float]:
    """The floor in ms, our masks in multiples of it, and our first call in seconds."""
    fns = {
        "floor": lambda x: x > 0,
        "copy": copy,
        "jaxsparse": partial(jaxsparse, n=n, m=m, axis=axis),
        "packed": partial(packed, n=n, m=m, axis=axis),
    }
    times, first = medians(
        {k: partial(jax.jit(fn), x) for k, fn in fns.items()}, rounds
    )
    bandwidth = max((x.nbytes + x.size) / times["floor"], 2 * x.nbytes / times["copy"])
    return {
        "floor ms": times["floor"] * 1e3,
        "jaxsparse": times["jaxsparse"] / times["floor"],
        "packed": times["packed"] * bandwidth / (x.nbytes + x.size / 8),
        "first call s": first["jaxsparse"],
    }


def peer_ratios(x, n, m, axis, rounds) -> dict[str, float]:
    """What others do, in multiples of the floor in the same rounds."""
    fns = {"floor": lambda x: x > 0}
    fns |= {peer.__name__: partial(peer, n=n, m=m, axis=axis) for peer in PEERS}
    calls: dict[str, Callable[[], object]] = {
        name: partial(jax.jit(fn), x) for name, fn in fns.items()
    }
    if find_spec("modelopt"):
        calls["model_optimizer"] = model_optimizer(x, axis)
    times, _ = medians(calls, rounds)
    return {name: times[name] / times["floor"] for name in calls if name != "floor"}


def rows(
    size: int | None = None,
    rounds: int = 5,
    *,
    patterns: Sequence[tuple[int, int]] = PATTERNS,
    dtypes: Sequence[str] = DTYPES,
    peers: bool = False,
) -> Iterator[dict]:
    """One row for each dtype, pattern and axis."""
    size = size or (4096 if jax.default_backend() == "cpu" else 16384)
    for dtype in dtypes:
        x = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
        for n, m in patterns:
            for axis in (-2, -1):
                row = {"dtype": dtype, "pattern": f"{n}:{m}", "axis": axis}
                row |= ratios(x, n, m, axis, rounds)
                if peers and (n, m) == (2, 4) and not dtype.startswith("float8"):
                    # By themselves: their temporaries slow down whatever runs between.
                    row |= peer_ratios(x, n, m, axis, rounds)
                yield row


def main():
    """Prints one row for each dtype, pattern and axis."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, help="4096, on a GPU 16384")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", action="store_true", help="measure them too, at 2:4")
    args = parser.parse_args()
    print(machine())
    print_rows(rows(args.size, args.rounds, peers=args.peers))


if __name__ == "__main__":
    main()
