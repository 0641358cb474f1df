"""A tree to save, shared by the tests of files."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.compressed.layout_oracle import (
    as_compressed,
    assert_same_bits,
    random_mask,
    random_weight,
)


#: Splits a tree into one file per leaf.
SPLIT = {"max_file_bytes": 1}


def stored(seed, shape=(16, 8), dtype=np.float32, n=2, m=4, axis=0):
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, shape, n, m, axis)
    result = as_compressed(random_weight(rng, shape, dtype), mask, n, m, axis)
    return jax.tree.map(jnp.asarray, result)


def tree(seed=0):
    return {
        "mlp": {"kernel": stored(seed), "bias": jnp.arange(3.0) + seed},
        "head": {"kernel": stored(seed + 1, (2, 32), jnp.bfloat16, 4, 8, 1)},
        "step": jnp.int32(seed),
    }


def assert_same(result, expected):
    assert jax.tree.structure(result) == jax.tree.structure(expected)
    jax.tree.map(assert_same_bits, result, expected)
