"""The search of a whole tree on one device and on several, as a ratio.

    python -m benchmarks.sharded_search [--devices 2] [--rounds 9] [--dtype float32]

The tree is a decoder of 1.07 billion weights, its 16 layers stacked: on a GPU as it is,
elsewhere an eighth as wide. Its leaves are sharded over all devices, "rows" along the
group axis, "columns" across it. One program finds all masks. The ratio is the time on
several devices over that on one; half of it would be perfect on two.
"""

import argparse
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import (
    AxisType,
    NamedSharding,
    PartitionSpec as P,
    SingleDeviceSharding,
)

import jaxsparse as js
from benchmarks.timing import machine, medians, print_rows


LAYERS, WIDTH, HIDDEN = 16, 2048, 8192
SPECS = {"rows": P(None, "data", None), "columns": P(None, None, "data")}


def shapes(width: int, hidden: int) -> dict[str, tuple[int, int, int]]:
    """The projections of all layers."""
    attention = dict.fromkeys(("q", "k", "v", "o"), (LAYERS, width, width))
    inner = dict.fromkeys(("gate", "up"), (LAYERS, width, hidden))
    return attention | inner | {"down": (LAYERS, hidden, width)}


def rows(
    devices: int = 2,
    rounds: int = 9,
    dtype: str = "float32",
    patterns=("2:4", "4:8", "8:16"),
) -> Iterator[dict]:
    """One row for each pattern, kind of mask and sharding."""
    if len(jax.devices()) < devices:
        raise SystemExit(f"JAX sees {jax.devices()}, fewer than {devices} devices")
    part = 1 if jax.default_backend() == "gpu" else 8
    sizes = shapes(WIDTH // part, HIDDEN // part)
    mesh = jax.make_mesh(
        (devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices]
    )
    placed = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    alone = SingleDeviceSharding(jax.devices()[0])

    def draw(sharding):
        leaf = lambda i, shape: jax.random.normal(jax.random.key(i), shape, dtype)
        whole = lambda: {name: leaf(i, s) for i, (name, s) in enumerate(sizes.items())}
        return jax.jit(whole, out_shardings=sharding)()

    one = draw(alone)
    several = {name: draw(sharding) for name, sharding in placed.items()}
    for pattern in patterns:
        rules = [js.Rule(".*", pattern, axis=1, sizes=None)]
        for packed in (False, True):
            search = jax.jit(partial(js.create_masks, plan=rules, packed=packed))
            fns = {"one": partial(search, one)}
            fns |= {name: partial(search, tree) for name, tree in several.items()}
            same(fns)
            times, _ = medians(fns, rounds)
            for name in several:
                yield {
                    "pattern": pattern,
                    "masks": "packed" if packed else "bool",
                    "sharded": name,
                    "Mweights": sum(leaf.size for leaf in one.values()) / 1e6,
                    "one ms": times["one"] * 1e3,
                    f"{devices} ms": times[name] * 1e3,
                    "ratio": times[name] / times["one"],
                }


def same(fns) -> None:
    """Raises unless all find the same masks."""
    first, *others = (fn() for fn in fns.values())
    for other in others:
        for name, mask in first.items():
            moved = jax.device_put(other[name], mask.sharding)
            if not jnp.array_equal(mask, moved):
                raise AssertionError(f"the masks of {name} differ")


def main():
    """Prints one row for each pattern, kind of mask and sharding."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    print(machine())
    print_rows(rows(args.devices, args.rounds, args.dtype))


if __name__ == "__main__":
    main()
