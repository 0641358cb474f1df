"""A row of the tables of perplexities that the examples print."""

import time

import jax
from decoder import perplexity
from smollm import peak_memory


NAMES = 24  # characters of a row's name


def print_row(mean_loss, texts, name, make):
    """The perplexities, and the seconds that it takes to make the parameters."""
    start = time.perf_counter()
    result = jax.block_until_ready(make())
    seconds, peak = time.perf_counter() - start, peak_memory()
    of = lambda pieces: perplexity(mean_loss, result.params, pieces)
    cells = "".join(f"{of(pieces):10.2f}" for pieces in texts.values())
    print(f"{name:{NAMES}}{cells}{seconds:9.1f}{peak:9.2f}", flush=True)
    return result
