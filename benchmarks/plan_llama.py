"""Planning a model of Llama-3-8B's shapes, from shapes alone.

    python -m benchmarks.plan_llama

32 layers, width 4096, 32 query and 8 key/value heads, feed-forward 14336, vocabulary
128256: no weight is ever made. Unrolled, the trace has 32 layers in it; scanned, one.
Each is planned in a process of its own, which reports the time of `plan_sparsity`
(tracing included) and how far resident memory grew after the imports.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path


LAYERS, WIDTH, HEADS, KEY_HEADS, DIM = 32, 4096, 32, 8, 128
HIDDEN, VOCABULARY = 14336, 128256


def layer(x, params):
    """One decoder layer: grouped-query attention and a gated feed-forward network."""
    import jax
    import jax.numpy as jnp

    def norm(x, scale):
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True)) * scale

    h = norm(x, params["attention_norm"])
    query = jnp.einsum("bsd,dhk->bshk", h, params["query"])
    key = jnp.einsum("bsd,dhk->bshk", h, params["key"])
    value = jnp.einsum("bsd,dhk->bshk", h, params["value"])
    mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    x = x + jnp.einsum("bshk,hkd->bsd", mixed, params["out"])
    h = norm(x, params["mlp_norm"])
    return x + (jax.nn.silu(h @ params["gate"]) * (h @ params["up"])) @ params["down"]


def model(params, ids):
    """Logits; the layers are a list, or stacked arrays to scan over."""
    import jax

    x = params["embedding"][ids]
    if isinstance(params["layers"], list):
        for one in params["layers"]:
            x = layer(x, one)
    else:
        x, _ = jax.lax.scan(lambda x, one: (layer(x, one), None), x, params["layers"])
    return x @ params["lm_head"]


def shapes(scanned):
    """The parameters, as shapes in bfloat16."""
    import jax

    sizes = {
        "attention_norm": (WIDTH,),
        "query": (WIDTH, HEADS, DIM),
        "key": (WIDTH, KEY_HEADS, DIM),
        "value": (WIDTH, KEY_HEADS, DIM),
        "out": (HEADS, DIM, WIDTH),
        "mlp_norm": (WIDTH,),
        "gate": (WIDTH, HIDDEN),
        "up": (WIDTH, HIDDEN),
        "down": (HIDDEN, WIDTH),
    }
    make = lambda *size: jax.ShapeDtypeStruct(size, "bfloat16")
    if scanned:
        layers = {name: make(LAYERS, *size) for name, size in sizes.items()}
    else:
        layers = [
            {name: make(*size) for name, size in sizes.items()} for _ in range(LAYERS)
        ]
    return {
        "embedding": make(VOCABULARY, WIDTH),
        "layers": layers,
        "lm_head": make(WIDTH, VOCABULARY),
    }


def resident():
    """Resident memory now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def plan_once(scanned):
    """Plans, and prints time, growth of the peak memory and the plan as JSON."""
    import jax

    import jaxsparse as js

    ids = jax.ShapeDtypeStruct((1, 2048), "int32")
    before, start = resident(), time.perf_counter()
    plan = js.plan_sparsity(shapes(scanned), "2:4", fn=model, args=(ids,))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "grown": peak - before, "plan": str(plan)}))


def main():
    """Prints medians of both, and the plan."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", choices=["unrolled", "scanned"])
    args = parser.parse_args()
    if args.once:
        plan_once(args.once == "scanned")
        return
    print(f"Python {platform.python_version()}, jax {version('jax')}, CPU only")
    for kind in ("unrolled", "scanned"):
        command = [sys.executable, "-m", "benchmarks.plan_llama", "--once", kind]
        rounds = [
            json.loads(
                subprocess.run(
                    command, capture_output=True, text=True, check=True
                ).stdout
            )
            for _ in range(args.rounds)
        ]
        seconds = statistics.median(run["seconds"] for run in rounds)
        grown = max(run["grown"] for run in rounds)
        print(
            f"\n{kind}: {seconds:.2f} s (median of {args.rounds}), "
            f"resident memory grown by {grown:.0f} MB at most"
        )
        print(rounds[0]["plan"])


if __name__ == "__main__":
    main()
