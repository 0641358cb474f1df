"""Which channel fills which position: the assignment of most value, or exchanges."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, Int32


#: SciPy takes longer than exchanges on another device with more rows.
_HOST_ROWS = 1024


def assign(values: Array, noise: np.ndarray | float = 0.0) -> np.ndarray:
    """Returns the column of each row, such that the sum of the values is large.

    It is the largest where the host finds it: large tables on other devices stay there,
    and rows exchange their columns in pairs.

    Args:
      values: float32, of shape `[problem, row, column]`, with as many rows as columns.
      noise: what is added to the values.

    Returns:
      int32 columns, of shape `[problem, row]`: a permutation for each problem.
    """
    on_cpu = {device.platform for device in values.devices()} == {"cpu"}
    if on_cpu or values.shape[1] <= _HOST_ROWS:
        from scipy.optimize import linear_sum_assignment

        tables = map(_balanced, np.asarray(values) + noise)
        columns = [linear_sum_assignment(table, maximize=True)[1] for table in tables]
        return np.stack(columns).astype(np.int32)
    noisy = values + jnp.asarray(noise, jnp.float32)
    return np.asarray(jax.vmap(exchange)(noisy))


def _balanced(table: np.ndarray) -> np.ndarray:
    """Returns a table with the same best assignment, which is found ten times faster.

    Each row and each column is shifted, so that the diagonal is zero and what a row
    gains with a column is about what it would lose the other way round. The best
    assignment is then near the diagonal, from where the search starts.
    """
    gains = table - np.diagonal(table)
    shift = (gains.mean(1) - gains.mean(0)) / 2
    return gains - shift[:, None] + shift


@jax.jit
def exchange(values: Float32[Array, "n n"]) -> Int32[Array, " n"]:
    """Exchanges the columns of pairs of rows, the best pairs first.

    Two rows that gain most by each other exchange their columns, all such pairs at
    once; then the next best of the rows that are left, until no pair gains.

    Args:
      values: the value of each row with each column. Rows start with their own.

    Returns:
      The column of each row.
    """
    rows = jnp.arange(len(values), dtype=jnp.int32)
    gains = values - jnp.diagonal(values)[:, None]
    of_pair = gains + gains.T

    def exchange_best(state):
        columns, is_left, _ = state
        left = jnp.where(is_left[:, None] & is_left, of_pair, 0)
        best = jnp.argmax(left, axis=1).astype(jnp.int32)
        is_best = (best[best] == rows) & (jnp.max(left, axis=1) > 0)
        columns = jnp.where(is_best, best, columns)
        return columns, is_left & ~is_best, is_best.any()

    start = rows, jnp.ones(len(rows), bool), jnp.array(True)
    return lax.while_loop(lambda state: state[2], exchange_best, start)[0]
