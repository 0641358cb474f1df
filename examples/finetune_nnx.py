"""Prune a small transformer language model 2:4 and fine-tune it, with Flax NNX.

    python examples/finetune_nnx.py

Bytes of CPython's language reference; the last tenth is held out. Beside the pruned
model the dense one is trained equally longer.
"""

import argparse

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from real_data import load_text
from tqdm import tqdm

import jaxsparse as js


WIDTH, HEADS, LAYERS, CONTEXT, BATCH = 128, 4, 2, 64, 32


class Block(nnx.Module):
    """Causal self-attention and a feed-forward network, each behind a norm."""

    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        mask = nnx.make_causal_mask(x[..., 0])
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class LanguageModel(nnx.Module):
    """A decoder over bytes."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(256, WIDTH, rngs=rngs)
        self.position = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 256, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens) + self.position(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def bits_per_byte(model, tokens):
    """Mean cross-entropy, in bits, of each next byte of `(batch, CONTEXT + 1)`."""
    losses = optax.softmax_cross_entropy_with_integer_labels(
        model(tokens[:, :-1]), tokens[:, 1:]
    )
    return losses.mean() / jnp.log(2)


@nnx.jit
def train_step(model, optimizer, tokens):
    """One update in place; the optimizer keeps the model sparse."""
    loss, grads = nnx.value_and_grad(bits_per_byte)(model, tokens)
    optimizer.update(model, grads)
    return loss


evaluate_batch = nnx.jit(bits_per_byte)


def evaluate(model, text):
    """Bits per byte on the first pieces of held-out text."""
    pieces = text[: len(text) // (CONTEXT + 1) * (CONTEXT + 1)].reshape(-1, CONTEXT + 1)
    pieces = pieces[: len(pieces) // BATCH * BATCH].reshape(-1, BATCH, CONTEXT + 1)
    return float(
        np.mean([evaluate_batch(model, piece.astype(int)) for piece in pieces])
    )


def train(name, model, tx, text, steps, seed):
    """Trains in place with a progress bar; returns the optimizer."""
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    rng = np.random.default_rng(seed)
    for step in (bar := tqdm(range(steps), desc=name, unit="step")):
        starts = rng.integers(0, len(text) - CONTEXT, BATCH)
        tokens = text[starts[:, None] + np.arange(CONTEXT + 1)].astype(int)
        loss = train_step(model, optimizer, tokens)
        if step % 20 == 0:
            bar.set_postfix(bits=f"{loss:.2f}")
    return optimizer


def main():
    """Trains, prunes, fine-tunes and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=600, help="of each stage")
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    args = parser.parse_args()
    steps = 3 if args.smoke else args.steps
    text, held_out = load_text()
    held_out = held_out[: 4_000 if args.smoke else None]
    results = {}

    model = LanguageModel(nnx.Rngs(0))
    train("dense", model, optax.adamw(2e-3), text, steps, seed=0)
    results["dense"] = evaluate(model, held_out)
    longer = nnx.clone(model)

    tokens = jnp.zeros((1, CONTEXT + 1), int)
    plan = js.plan_sparsity(model, "2:4", fn=bits_per_byte, args=(tokens,))
    params = nnx.state(model, nnx.Param)
    nnx.update(model, js.mask_params(params, js.create_masks(params, plan)))
    results["2:4, one-shot"] = evaluate(model, held_out)

    tx = optax.adamw(optax.cosine_decay_schedule(2e-3, steps))
    sparse_tx = js.wrap_optimizer(tx, plan)
    train("2:4, fine-tuned", model, sparse_tx, text, steps, seed=1)
    results["2:4, fine-tuned"] = evaluate(model, held_out)
    params = nnx.state(model, nnx.Param)
    js.check_sparsity(params, plan)

    train("dense, trained as long", longer, tx, text, steps, seed=1)
    results["dense, trained as long"] = evaluate(longer, held_out)

    print(f"\n{plan}\nsparsity of all weights: {js.sparsity(params):.1%}")
    print(f"\n{'held-out text':24} bits per byte")
    for name, bits in results.items():
        print(f"{name:24} {bits:13.3f}")


if __name__ == "__main__":
    main()
