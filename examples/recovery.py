"""What the examples that bring a pruned language model back share."""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from decoder import small_decoder
from flax import nnx
from perplexity_row import NAMES
from real_data import load_text
from smollm import abstract_smollm, load_smollm
from training_text import load_training

import jaxsparse as js


def make_parser(doc):
    """The options that the examples have in common."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="for a GPU")
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    parser.add_argument("--train", nargs="+", type=Path, default=[], metavar="FILE")
    parser.add_argument("--text", nargs="+", type=Path, default=[], metavar="FILE")
    parser.add_argument("--steps", type=int, default=None)
    return parser


def load_pieces(args, calibrated, evaluated):
    """Pieces to calibrate on, two texts to train on, and texts to evaluate on."""
    if args.smoke:
        pieces = load_text()[0][: 16 * 65].astype(np.int32).reshape(16, 65)
        return pieces[:8], pieces[:4], pieces[4:8], {"CPython": pieces[8:]}
    return load_training(args.train, args.text, calibrated, evaluated)


def load_models(args):
    """The decoder, and an abstract one that is faster to train."""
    if args.smoke:
        make = lambda dtype: small_decoder(nnx.Rngs(0), dtype, stacked=True)
        return make(jnp.float32), make(jnp.bfloat16)
    attention = "cudnn" if args.full else "xla"
    fast = abstract_smollm(jnp.bfloat16, stacked=True, attention=attention)
    return load_smollm(stacked=True), fast


def exactly(fn):
    """The function with matmuls in float32, on a GPU, too."""
    return jax.default_matmul_precision("highest")(fn)


def calibrate(forward, dense, pattern, pieces):
    """The plan, and the statistics of the calibration pieces."""
    batches = np.array_split(pieces, -(-len(pieces) // 8))
    plan = js.plan_sparsity(dense, pattern, fn=forward, args=(batches[0],))
    return plan, js.collect_statistics(forward, dense, batches, plan=plan)


def both_losses(fast, student, teacher, tokens):
    """Half the loss on labels, half that on what the teacher predicts."""
    logits = nnx.merge(fast, student)(tokens[:, :-1])
    target = nnx.merge(fast, teacher)(tokens[:, :-1])
    labels = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return (labels.mean() + js.distillation_loss(logits, target)) / 2


def print_header(calibration, trained, texts):
    """What was run on what, and the names of the columns; `trained` pieces."""
    tokens = trained * calibration.shape[1]
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"calibrated on {calibration.size} tokens, trained on {tokens}")
    names = "".join(f"{name:>10}" for name in texts)
    print(f"{'perplexity':{NAMES}}{names}{'seconds':>9}{'peak GiB':>9}", flush=True)
