"""Prune a pretrained language model and store it in eight bits: its perplexity.

    python examples/quantize_language_model.py [--full]

SmolLM2-135M, dense and pruned 2:4 by SparseGPT, with weights in float32, int8 and
float8_e4m3fn, with activations quantized too, and with scales that the calibration data
weigh. Dense weights are compressed as 4:4,
which keeps all of them. On two CPU cores it takes some minutes and its figures are
indicative, of few tokens; `--full` is the whole table, for a GPU.
"""

import argparse
from functools import partial

import jax
import numpy as np
from decoder import loss, small_decoder
from flax import nnx
from perplexity_row import print_columns, print_row
from real_data import load_text
from smollm import load_pieces, load_smollm

import jaxsparse as js


FORMATS = ["int8", "float8_e4m3fn"]


def load(smoke, evaluated, calibrated, batch):
    """The model, batches to calibrate on, and texts to evaluate on."""
    if smoke:
        pieces = load_text()[0][: 16 * 65].astype(np.int32).reshape(16, 65)
        model = small_decoder(nnx.Rngs(0), stacked=True)
        return model, [pieces[:8]], {"CPython": pieces[8:]}
    calibration, texts = load_pieces(evaluated, calibrated, ["KJV", "CPython"])
    batches = np.split(calibration, len(calibration) // batch)
    return load_smollm(stacked=True), batches, texts


def main():
    """Prunes, quantizes in all ways and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="for a GPU")
    parser.add_argument("--quantize", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    args = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    batch, evaluated, calibrated = (8, 110, 128) if args.full else (2, 8, 16)
    formats = args.quantize[:1] if args.smoke else args.quantize
    model, batches, texts = load(args.smoke, evaluated, calibrated, batch)
    graph, dense = nnx.split(model, nnx.Param)
    forward = lambda params, tokens: nnx.merge(graph, params)(tokens)
    mean_loss = lambda params, tokens: loss(nnx.merge(graph, params), tokens)

    print_columns(batches, texts, 40)

    def row(run, name, make):
        return print_row(jax.jit(run), texts, f"{name:40}", make)

    def rows(name, found, importances=None):
        """The weights as they are, in eight bits, and with activations in them too."""
        found = row(mean_loss, name, lambda: found)
        for quantize in formats:
            compress = partial(
                js.compress_params,
                found.params,
                found.plan,
                masks=found.masks,
                quantize=quantize,
            )
            small = compress()
            result = partial(found._replace, params=small)
            apply = partial(js.sparse_apply, mean_loss, found.plan)
            row(apply(), f"{name}, {quantize}", result)
            both = f"{name}, {quantize} and activations"
            row(apply(quantize_activations=True), both, result)
            if importances is not None:
                weighed = partial(
                    found._replace, params=compress(importances=importances)
                )
                row(apply(), f"{name}, {quantize}, calibrated scales", weighed)

    planned = partial(js.plan_sparsity, dense, fn=forward, args=(batches[0],))
    plan, every = planned("2:4"), planned("4:4")
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
    rows("dense", js.MagnitudeSearcher(every).search(dense))
    statistics = js.collect_statistics(forward, dense, batches, plan=plan)
    found = js.SparseGPTSearcher(plan).search(dense, statistics)
    rows("2:4", found, js.input_importances(dense, statistics))
    small = js.compress_params(found.params, plan, quantize=formats[0])
    print(f"\n{plan}\nsparsity of all weights: {js.sparsity(found.params):.1%}")
    print(f"dense {size(dense):,} bytes, 2:4 in eight bits {size(small):,}")


if __name__ == "__main__":
    main()
