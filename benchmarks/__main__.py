"""All timed benchmarks of masks in one run, as ratios to floors measured beside them.

    python -m benchmarks [--quick] [--gpu] [--plot FILE] [--json FILE]

Each is a command of its own too; `benchmarks.import_time` and `benchmarks.plan_llama`
start processes of their own, `benchmarks.sharded_search` takes several devices,
`benchmarks.one_shot` takes a language model, and `benchmarks.decode` and
`benchmarks.train_step` make large ones: they are run by themselves.
"""

import argparse
import json
import sys
from pathlib import Path

import jax

from benchmarks import (
    mask_search,
    nm_matmul,
    optimizer_step,
    sparsegpt,
    transposable,
    whole_tree,
)
from benchmarks.timing import machine, print_rows


def tables(quick: bool) -> dict:
    """The rows of each benchmark, made as they are asked for."""
    if quick:
        return {
            "mask search": mask_search.rows(
                1024, 3, patterns=((2, 4), (4, 8)), dtypes=("float32",)
            ),
            "whole tree": whole_tree.rows(64, 3),
            "optimizer step": optimizer_step.rows(3, ("small",), ("adamw", "sgd")),
            "transposable": transposable.rows(256, 3),
            "SparseGPT": sparsegpt.rows(256, 3),
            "products": nm_matmul.rows(3, ((256, 512),), (1, 16)),
        }
    gpu = jax.default_backend() == "gpu"
    products = nm_matmul.rows() if gpu else nm_matmul.rows(5, ((1024, 4096),), (1, 16))
    return {
        "mask search": mask_search.rows(peers=True),
        "whole tree": whole_tree.rows(),
        "optimizer step": optimizer_step.rows(9),
        "transposable": transposable.rows(),
        "SparseGPT": sparsegpt.rows(),
        "products": products,
    }


def plot(results: dict[str, list[dict]], file: Path, title: str) -> None:
    """Bars of our masks in multiples of the floor, one panel for each dtype."""
    from matplotlib.figure import Figure  # an extra: `pip install matplotlib`

    found = results["mask search"]
    dtypes = list(dict.fromkeys(row["dtype"] for row in found))
    figure = Figure(figsize=(max(5, 4 * len(dtypes)), 4), layout="constrained")
    panels = figure.subplots(1, len(dtypes), sharey=True, squeeze=False)[0]
    for panel, dtype in zip(panels, dtypes, strict=True):
        own = [row for row in found if row["dtype"] == dtype]
        patterns = list(dict.fromkeys(row["pattern"] for row in own))
        kinds = [(axis, kind) for kind in ("jaxsparse", "packed") for axis in (-2, -1)]
        for i, (axis, kind) in enumerate(kinds):
            heights = [row[kind] for row in own if row["axis"] == axis]
            places = [p + (i - 1.5) * 0.2 for p in range(len(patterns))]
            name = f"{'bool' if kind == 'jaxsparse' else kind}, axis {axis}"
            panel.bar(places, heights, 0.2, label=name)
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set_xticks(range(len(patterns)), patterns)
        panel.set_title(dtype)
    panels[0].set_ylabel("time / memory floor")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2
    )
    figure.suptitle(title, fontsize="small")
    figure.savefig(file, dpi=150)


def main():
    """Prints all tables, and writes them as JSON and as a picture if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small, in seconds")
    parser.add_argument("--gpu", action="store_true", help="fail unless on a GPU")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="of the mask search")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.gpu and jax.default_backend() != "gpu":
        sys.exit(
            f"--gpu: JAX sees {jax.devices()}; install jax[cuda13] beside a driver"
        )
    line = machine()
    print(line)
    results = {}
    for name, rows in tables(args.quick).items():
        print(f"\n{name}")
        results[name] = print_rows(rows)
    if args.json:
        args.json.write_text(json.dumps({"machine": line} | results, indent=1) + "\n")
    if args.plot:
        plot(results, args.plot, line)


if __name__ == "__main__":
    main()
