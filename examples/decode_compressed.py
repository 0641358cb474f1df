"""Decode with a compressed language model: the same tokens, fewer bytes.

    python examples/decode_compressed.py

SmolLM2-135M is pruned 2:4 and stored without its zeros, in a file and in memory; the
model itself is not changed. It reads the prompt at once, then decodes token by token
with a cache. Greedy decoding gives the tokens of the masked dense model, in float32.
Its weights are decompressed where they are multiplied by: that saves memory, not time.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from decoder import small_decoder
from decoder_cache import empty_cache, extend
from flax import nnx
from smollm import load_smollm, load_tokenizer

import jaxsparse as js


def decode(forward, params, cache, prompt, count):
    """Greedy tokens after a prompt, and how many steps a second makes."""

    @partial(jax.jit, donate_argnums=2)
    def step(params, tokens, cache):
        logits, cache = forward(params, tokens, cache)
        return jnp.argmax(logits[:, -1:], -1), cache

    token, cache = step(params, jnp.asarray(prompt)[None], cache)
    tokens = [token]
    one_step = step.lower(params, token, cache).compile()
    start = time.perf_counter()
    for _ in range(count - 1):
        token, cache = one_step(params, token, cache)
        tokens.append(token)
    chosen = np.concatenate(jax.device_get(tokens), axis=1)[0]
    return chosen, (count - 1) / (time.perf_counter() - start)


def main():
    """Prunes, saves, loads and decodes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", default="The capital of France is")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    args = parser.parse_args()
    if args.smoke:
        model, tokenizer, prompt = small_decoder(nnx.Rngs(0)), None, list(range(8))
    else:
        model, tokenizer = load_smollm(), load_tokenizer()
        prompt = tokenizer.encode(args.prompt).ids
    graph, params = nnx.split(model, nnx.Param)
    forward = lambda params, tokens, cache: extend(
        nnx.merge(graph, params), tokens, cache
    )
    new_cache = lambda: empty_cache(model, 1, len(prompt) + args.tokens)
    tokens = jnp.zeros((1, len(prompt)), int)
    plan = js.plan_sparsity(params, "2:4", fn=forward, args=(tokens, new_cache()))
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

    results = {
        name: decode(fn, tree, new_cache(), prompt, args.tokens)
        for name, fn, tree in (
            ("masked dense", forward, masked),
            ("compressed", js.sparse_apply(forward, plan), small),
        )
    }
    for name, (_, rate) in results.items():
        print(f"{name}: {rate:.1f} tokens a second")
    dense, sparse = (tokens for tokens, _ in results.values())
    print(f"tokens are {'the same' if np.array_equal(dense, sparse) else 'DIFFERENT'}")
    text = sparse if tokenizer is None else tokenizer.decode([*prompt, *sparse])
    print(f"decoded: {text}")


if __name__ == "__main__":
    main()
