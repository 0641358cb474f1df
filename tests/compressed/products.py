"""Random products with compressed weights, and their error bounds."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from tests.compressed.layout_oracle import (
    as_compressed,
    masked,
    random_mask,
    random_weight,
)


def problem(rng, rows, k, out, dtype=np.float32, pattern=(2, 4)):
    weight = random_weight(rng, (k, out), dtype)
    mask = random_mask(rng, weight.shape, *pattern, 0)
    x = random_weight(rng, (*rows, k), dtype)
    return x, masked(weight, mask), as_compressed(weight, mask, *pattern, 0)


def assert_product(result, x, weight):
    """Checks within one rounding of the dtype and a float32 one for each addition."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    exact = x @ weight
    if jnp.issubdtype(result.dtype, jnp.integer):
        np.testing.assert_array_equal(result, exact)
        return
    info = ml_dtypes.finfo(result.dtype)
    added = x.shape[-1] * np.finfo(np.float32).eps * (abs(x) @ abs(weight))
    bound = abs(exact) * float(info.eps) / 2 + added + float(info.smallest_subnormal)
    assert (abs(np.asarray(result, np.float64) - exact) <= bound).all()
