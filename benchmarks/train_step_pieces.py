"""The pieces of a layer's training step, each timed alone: ours and PyTorch's."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Literal

import jax
import jax.numpy as jnp

import jaxsparse as js
from benchmarks.timing import medians
from jaxsparse._compressed.compress_both import compress_best, compress_both


Implementation = Literal["xla", "cuda"]
TRANSPOSABLE = js.NM(2, 4, transposable=True)
RULES = [js.Rule("w", TRANSPOSABLE, axis=0)]
CALLS = 20  # of PyTorch, between synchronizations


def piece_rows(
    shapes: Sequence[tuple[int, int]], tokens: int, rounds: int, how: Implementation
) -> Iterator[dict]:
    """Milliseconds of the three products, dense and sparse, and of compressing.

    "copy" reads and writes what "compress" does, "best" also finds the best masks.
    """
    for k, out in shapes:
        w, x, g = _arrays(k, out, tokens)
        packed = js.create_masks({"w": w}, RULES, packed=True)["w"]
        w = js.mask_params({"w": w}, {"w": packed})["w"]
        dense = w.astype(jnp.bfloat16)
        both = partial(compress_both, pattern=TRANSPOSABLE, dtype="bfloat16")
        best = partial(compress_best, pattern=TRANSPOSABLE, dtype="bfloat16")
        along, across = both(w, packed)
        multiply = jax.jit(partial(js.nm_matmul, implementation=how))
        # As many bytes as compressing: both ways 9/16 of 2, of 4 and an eighth.
        read = w.nbytes + w.size // 8
        bytes_copied = jnp.zeros((read + w.size * 18 // 8) // 2, jnp.uint8)
        fns: dict[str, Callable[[], object]] = {
            "forward": partial(_dot, x, dense),
            "sparse forward": partial(multiply, x, along),
            "by input": partial(_dot_t, g, dense),
            "sparse by input": partial(multiply, g, across),
            "by weight": partial(_t_dot, x, g),
            "cast": partial(_cast, w),
            "compress": partial(jax.jit(both), w, packed),
            "best": partial(jax.jit(best), w),
            "copy": partial(_copy, bytes_copied),
        }
        times, _ = medians(fns, rounds)
        named = {f"{name} ms": time * 1e3 for name, time in times.items()}
        yield {"weight": f"{k}x{out}", "tokens": tokens, **named}


def torch_rows(
    shapes: Sequence[tuple[int, int]], tokens: int, rounds: int
) -> Iterator[dict]:
    """Milliseconds of PyTorch's products: dense, and by cuSPARSELt."""
    torch = import_module("torch")
    for k, out in shapes:
        w, x, g = _arrays(k, out, tokens)
        masks = js.create_masks({"w": w}, RULES)
        w = js.mask_params({"w": w}, masks)["w"].astype(jnp.bfloat16)
        w, x, g = map(torch.from_dlpack, (w, x, g))
        fns = {
            "forward": lambda x=x, w=w: x @ w,
            "sparse forward": _cusparselt(torch, x, w.t()),
            "by input": lambda g=g, w=w: g @ w.t(),
            "sparse by input": _cusparselt(torch, g, w),
            "by weight": lambda x=x, g=g: x.t() @ g,
            "compress": lambda w=w: [
                torch._cslt_compress(v.contiguous()) for v in (w, w.t())
            ],
        }
        synced = {name: partial(_synced, torch, fn) for name, fn in fns.items()}
        times, _ = medians(synced, rounds)
        named = {f"{name} ms": time / CALLS * 1e3 for name, time in times.items()}
        yield {"by torch": f"{k}x{out}", "tokens": tokens, **named}


def _cusparselt(torch: Any, x: Any, w: Any) -> Callable[[], Any]:
    """The product with the transpose of a weight that is sparse along its rows."""
    columns, compressed = x.t(), torch._cslt_compress(w.contiguous())
    found = torch._cslt_sparse_mm_search(compressed, columns, transpose_result=True)
    return partial(
        torch._cslt_sparse_mm,
        compressed,
        columns,
        transpose_result=True,
        alg_id=found,
    )


def _synced(torch: Any, fn: Callable[[], Any]) -> None:
    for _ in range(CALLS):
        fn()
    torch.cuda.synchronize()


@partial(jax.jit, static_argnums=(0, 1, 2))
def _arrays(k: int, out: int, tokens: int) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    draw = partial(jax.random.normal, dtype=jnp.bfloat16)
    w = jax.random.normal(keys[0], (k, out)) * k**-0.5
    return w, draw(keys[1], (tokens, k)), draw(keys[2], (tokens, out))


_dot = jax.jit(jnp.dot)
_dot_t = jax.jit(lambda g, w: g @ w.T)
_t_dot = jax.jit(lambda x, g: x.T @ g)
_cast = jax.jit(lambda w: w.astype(jnp.bfloat16))
_copy = jax.jit(lambda x: x + 1)
