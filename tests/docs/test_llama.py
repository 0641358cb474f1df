"""The benchmarks' decoder decodes what it would prefill."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import llama


SIZES = llama.Sizes(
    layers=2, width=32, hidden=48, heads=4, kv_heads=2, head_size=8, vocabulary=64
)


@pytest.mark.sweep
@pytest.mark.parametrize("unrolled", [False, True])
def test_logits_after_steps_are_those_of_a_longer_prompt(unrolled):
    params = llama.random_params(jax.random.key(0), SIZES, jnp.float32, unrolled)
    prefill = jax.jit(partial(llama.prefill, size=8))
    decode = jax.jit(partial(llama.decode, size=8))
    tokens = jax.random.randint(jax.random.key(1), (3, 12), 0, SIZES.vocabulary)
    expected, cache = prefill(params, tokens)
    # The last four positions are overwritten, and two remain that nothing sees.
    rows = [(0, 2), (0, 0), (0, 0)]
    spoil = lambda x: jnp.pad(x.at[..., 8:, :, :].set(9.0), [(0, 0)] * 2 + rows)
    cache = jax.tree.map(spoil, cache)
    given = jnp.pad(tokens[:, 9:].T, ((0, 1), (0, 0)))
    chosen, last = decode(params, cache, tokens[:, 8], 8, given)
    bound = 100 * np.finfo(np.float32).eps * np.abs(expected).max()
    np.testing.assert_allclose(last, expected, rtol=0, atol=bound)
    np.testing.assert_array_equal(chosen[-1], expected.argmax(-1))
