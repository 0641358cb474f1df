"""A row of the tables of perplexities that the examples print."""

import time

import jax
from decoder import perplexity
from smollm import peak_memory


NAMES = 24  # characters of a row's name


def print_columns(batches, texts, width):
    """The device, the tokens, and the names of the columns after one of `width`."""
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    counts = {name: pieces[:, 1:].size for name, pieces in texts.items()}
    tokens = sum(batch.size for batch in batches)
    print(f"tokens: calibrated on {tokens}, evaluated on {counts}\n")
    names = "".join(f"{name:>10}" for name in texts)
    print(f"{'perplexity':{width}}{names}{'seconds':>9}{'peak GiB':>9}")


def print_row(mean_loss, texts, name, make):
    """The perplexities, and the seconds that it takes to make the parameters."""
    start = time.perf_counter()
    result = jax.block_until_ready(make())
    seconds, peak = time.perf_counter() - start, peak_memory()
    of = lambda pieces: perplexity(mean_loss, result.params, pieces)
    cells = "".join(f"{of(pieces):10.2f}" for pieces in texts.values())
    print(f"{name:{NAMES}}{cells}{seconds:9.1f}{peak:9.2f}", flush=True)
    return result
