"""Decode with a compressed language model: the same tokens, fewer bytes.

    python examples/decode_compressed.py

SmolLM2-135M is pruned 2:4 and stored without its zeros, in a file and in memory; the
model itself is not changed. Weights are decompressed where they are multiplied by, so
this saves memory and not time. Greedy decoding gives the tokens of the masked dense
model, in float32.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from decoder import small_decoder
from flax import nnx
from smollm import load_smollm, load_tokenizer

import jaxsparse as js


def decode(forward, params, tokens, count):
    """Appends the most likely next token, so many times."""

    @jax.jit
    def step(params, buffer, place):
        logits = forward(params, buffer[None])[0, place - 1]
        return buffer.at[place].set(jnp.argmax(logits).astype(buffer.dtype))

    buffer = jnp.pad(jnp.asarray(tokens), (0, count))
    for place in range(len(tokens), len(buffer)):
        buffer = step(params, buffer, place)
    return np.asarray(buffer)


def main():
    """Prunes, saves, loads and decodes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", default="The capital of France is")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    args = parser.parse_args()
    if args.smoke:
        model, tokenizer, prompt = small_decoder(nnx.Rngs(0)), None, list(range(8))
    else:
        model, tokenizer = load_smollm(), load_tokenizer()
        prompt = tokenizer.encode(args.prompt).ids
    graph, params = nnx.split(model, nnx.Param)
    forward = lambda params, tokens: nnx.merge(graph, params)(tokens)
    plan = js.plan_sparsity(params, "2:4", fn=forward, args=(jnp.zeros((1, 8), int),))
    masked = js.mask_params(params, js.create_masks(params, plan))
    small = js.compress_params(masked, plan)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        js.save_sparse(path, small)
        on_disk = path.stat().st_size
        small = js.load_sparse(path, like=small)
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
    print(f"{plan}\nsparsity of all weights: {js.sparsity(masked):.1%}\n")
    print(f"dense {size(masked):,} bytes, compressed {size(small):,}, file {on_disk:,}")

    dense = decode(forward, masked, prompt, args.tokens)
    sparse = decode(js.sparse_apply(forward, plan), small, prompt, args.tokens)
    text = sparse if tokenizer is None else tokenizer.decode(sparse)
    print(f"tokens are {'the same' if np.array_equal(dense, sparse) else 'DIFFERENT'}")
    print(f"decoded: {text}")


if __name__ == "__main__":
    main()
