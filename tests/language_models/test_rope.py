"""Frequencies of rotary position embeddings."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse._language_models.config import Config
from jaxsparse._language_models.rope import frequencies, read_rope, rotate


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 100,
}


def test_llama3_divides_long_wavelengths_and_mixes_those_between():
    rope = read_rope(Config({"rope_theta": 256.0, "rope_scaling": LLAMA3}), 8)
    # 1, 1/4, 1/16 and 1/64 radians a token: 15.9, 3.98, 0.99 and 0.25 turns in 100.
    mixed = (100 / 4 / (2 * math.pi) - 1) / 3
    expected = [1, 1 / 4 * (mixed + (1 - mixed) / 8), 1 / 16 / 8, 1 / 64 / 8]
    np.testing.assert_allclose(frequencies(rope), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 256.0},
        {"rope_theta": 256.0, "rope_scaling": None, "rope_parameters": None},
        {"rope_theta": 256.0, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 256.0}},
        {"rope_parameters": {"rope_theta": 256, "partial_rotary_factor": 1.0}},
    ],
)
def test_the_base_is_read_from_old_and_new_fields(fields):
    np.testing.assert_allclose(
        frequencies(read_rope(Config(fields), 8)), [1, 1 / 4, 1 / 16, 1 / 64]
    )


def test_products_depend_on_distances_alone():
    rope = read_rope(Config({"rope_theta": 256.0}), 8)
    draw = np.random.default_rng(0)
    query, key = draw.normal(size=(2, 8)).astype(np.float32)
    repeat = lambda x: jnp.tile(jnp.asarray(x), (1, 50, 1, 1))
    products = (
        rotate(repeat(query), rope)[0, :, 0] @ rotate(repeat(key), rope)[0, :, 0].T
    )
    for distance in (0, 3, 20):
        diagonal = np.diagonal(products, -distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
    np.testing.assert_allclose(products[0, 0], query @ key, rtol=1e-5)
