"""Which tiles multiply by weights of eight bits."""

import pytest
from hypothesis import given, settings, strategies as st

from jaxsparse._compressed.kernel_choice import TILES, choose_tile


@pytest.mark.sweep
@settings(max_examples=300, deadline=None)
@given(st.integers(1, 10**5), st.integers(1, 4000), st.integers(1, 4000))
def test_every_shape_has_a_tile(rows, eights, sixteens):
    assert choose_tile(rows, 8 * eights, 16 * sixteens) in TILES


@pytest.mark.parametrize(
    ("rows", "k", "outs", "fastest"),
    [
        (32, 8192, (8192,), (32, 1, 2)),
        (64, 4096, (14336,), (64, 1, 1)),
        (64, 14336, (4096,), (64, 1, 3)),
        (128, 8192, (8192,), (128, 1, 2)),
        (256, 14336, (4096,), (128, 1, 2)),
        (2048, 4096, (14336,), (256, 2, 1)),
        (2048, 4096, (7168, 7168), (256, 2, 1)),
    ],
)
def test_the_tile_is_the_one_measured_to_be_fastest(rows, k, outs, fastest):
    """On an H200, of all tiles, with `x` of 16 bits (and of eight within 4 %)."""
    assert choose_tile(rows, k, *outs) == fastest


def test_the_tiles_of_all_weights_are_counted():
    whole = choose_tile(300, 4096, 512 * 28)
    assert choose_tile(300, 4096, 512, stack=28) == whole != choose_tile(300, 4096, 512)
