"""One decoder, masked 2:4, in several formats, and compiled programs of it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxsparse as js
from benchmarks.llama import Sizes, prefill, random_params
from benchmarks.timing import medians


class Model(NamedTuple):
    """Parameters, and what makes a function of dense parameters one of these."""

    params: Any
    adapt: Callable[[Callable[..., Any]], Callable[..., Any]]


class Program(NamedTuple):
    """A compiled function of what follows the parameters, and the GiB that it takes."""

    run: Callable[..., Any]
    peak: float


def make_models(
    sizes: Sizes, dtype: str, formats: tuple[str, ...], *, unrolled: bool
) -> dict[str, Model]:
    """The masked dense model, and the same in each format.

    A format is a dtype of the weights; with "+activations" those are quantized, too.
    """
    params = random_params(jax.random.key(0), sizes, jnp.dtype(dtype), unrolled)
    fn = partial(prefill, size=sizes.head_size)
    plan = js.plan_sparsity(params, "2:4", fn=fn, args=(jnp.zeros((1, 8), int),))
    small = {dtype: js.compress_params(params, plan)}
    dense = js.decompress_params(small[dtype])
    models = {"dense": Model(dense, lambda fn: fn)}
    for name in formats:
        weights, _, activations = name.partition("+")
        if weights not in small:
            small[weights] = js.compress_params(dense, plan, quantize=weights)
        adapt = partial(js.sparse_apply, quantize_activations=bool(activations))
        models[name] = Model(small[weights], adapt)
    return models


def compile_program(model: Model, fn: Callable[..., Any], *args: Any) -> Program:
    """Compiles `fn(params, *args)`."""
    compiled = jax.jit(model.adapt(fn)).lower(model.params, *args).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes
    return Program(partial(compiled, model.params), peak / 2**30)


def nbytes(*trees: Any) -> int:
    """The bytes of all arrays."""
    return sum(x.nbytes for x in jax.tree.leaves(trees))


def copy_bandwidth(rounds: int) -> float:
    """Bytes read and written per second by a copy that no cache holds."""
    size = 2**31 if jax.default_backend() == "gpu" else 2**26
    x = jnp.zeros(size // 4)
    copy = jax.jit(lambda x: x + 1)
    times, _ = medians({"copy": partial(copy, x)}, rounds)
    return 2 * size / times["copy"]
