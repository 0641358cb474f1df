"""Masking a whole network: programs compiled, time, and memory beside the parameters.

    python -m benchmarks.whole_tree [--rounds 5]

300 leaves of seven shapes, 0.3 GB of float32 weights (on a GPU 4.9 GB), one call of
each function on the whole tree. The floor of finding masks is a jitted `x > 0` of every
leaf, that of applying them a jitted `x + 1`. "temporaries" are what the largest of the
compiled programs needs beside its operands and result, in bytes a weight of one leaf.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import jax

import jaxsparse as js
from benchmarks.timing import machine, medians, print_rows, seconds


#: In multiples of the width: a decoder's projections.
SHAPES = ((1, 1), (1, 2), (2, 1), (1, 4), (4, 1), (2, 4), (4, 2))


def network(width: int) -> dict[str, jax.Array]:
    """Random weights: 300 leaves of seven shapes."""
    shapes = [(width * a, width * b) for a, b in SHAPES]
    return {
        f"{i}/kernel": jax.random.normal(jax.random.key(i), shapes[i % len(shapes)])
        for i in range(300)
    }


@contextmanager
def compilations():
    """Counts the programs that are compiled meanwhile."""
    counted = []

    def listen(event: str, duration_secs: float, **_: str | int):
        if event == "/jax/core/compile/backend_compile_duration":
            counted.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counted
    jax.monitoring.unregister_event_duration_listener(listen)


def temporaries(fn, tree) -> float:
    """The most bytes a weight that `fn` needs beside one leaf and its result."""
    leaves = {leaf.shape: {name: leaf} for name, leaf in tree.items()}
    found = []
    for leaf in leaves.values():
        memory = jax.jit(fn).lower(leaf).compile().memory_analysis()
        assert memory is not None
        found.append(memory.temp_size_in_bytes / sum(w.size for w in leaf.values()))
    return max(found)


def rows(width: int | None = None, rounds: int = 5) -> Iterator[dict]:
    """One row for each function on the tree, with bool and with packed masks."""
    params = network(width or (256 if jax.default_backend() == "cpu" else 1024))
    rule = [js.Rule(".*", "2:4", axis=0, sizes=None)]
    leafwise = lambda fn: partial(jax.tree.map, jax.jit(fn), params)
    floors = {
        "finding": leafwise(lambda x: x > 0),
        "applying": leafwise(lambda x: x + 1),
    }
    for kind in ("bool", "packed"):
        find = partial(js.create_masks, plan=rule, packed=kind == "packed")
        masks = find(params)
        apply = lambda params, masks=masks: js.mask_params(
            params, {name: masks[name] for name in params}
        )
        for verb, fn in {"finding": find, "applying": apply}.items():
            jax.clear_caches()
            with compilations() as programs:
                first = seconds(partial(fn, params))
            times, _ = medians(
                {"floor": floors[verb], verb: partial(fn, params)}, rounds
            )
            yield {
                "masks": kind,
                "what": verb,
                "leaves": len(params),
                "programs": len(programs),
                "first call s": first,
                "floor ms": times["floor"] * 1e3,
                "ratio": times[verb] / times["floor"],
                "temporaries": temporaries(fn, params),
            }


def main():
    """Prints one row for each function, with bool and with packed masks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(machine())
    print_rows(rows(rounds=args.rounds))


if __name__ == "__main__":
    main()
