"""PyTorch's 2:4 format, by hand, and against PyTorch if it is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from tests.compressed.layout_oracle import (
    assert_same_bits,
    masked,
    random_mask,
    random_weight,
)


def mask_with(shape, positions):
    """Returns a mask `[out, k]` that keeps 0 and 1, or `positions`, of each group."""
    mask = np.tile(np.array([1, 1, 0, 0], bool), (shape[0], shape[1] // 4))
    for (row, group), kept in positions.items():
        mask[row, 4 * group : 4 * group + 4] = np.isin(np.arange(4), kept)
    return mask


# Row 9 is the second of the second run of eight.
POSITIONS = {(0, 4): (2, 3), (9, 1): (0, 2), (9, 2): (0, 3), (9, 3): (1, 2)}


def test_metadata_of_two_bytes_by_hand():
    mask = mask_with((32, 32), POSITIONS)
    weight = jnp.asarray(mask, jnp.bfloat16)
    values, meta = js.to_semi_structured(js.compress(weight, mask=mask, axis=1))
    expected = np.full((32, 2), 0x4444)
    # Word (0, 1): its row stays the first. It is off the diagonal of its square, so it
    # is swapped with word (1, 0), which is stored third.
    expected.flat[2] = 0x444E
    # Word (9, 0): row 9 becomes row 4 + 1, after the first rows of all runs. It is
    # swapped with word (4, 1), which is stored tenth.
    expected.flat[9] = 0x9C84
    np.testing.assert_array_equal(meta, expected.astype(np.uint16).view(np.int16))
    np.testing.assert_array_equal(values, np.ones((32, 16)))


def test_metadata_of_one_byte_by_hand():
    mask = mask_with((16, 64), POSITIONS | {(0, 15): (2, 3)})
    weight = jnp.asarray(mask, jnp.int8)
    _, meta = js.to_semi_structured(js.compress(weight.T, mask=mask.T, axis=0))
    expected = np.full((16, 2), 0x44444444)
    # A block has two runs of eight: row 9 becomes row 2 + 1, swapped with word (2, 1).
    expected.flat[0] = 0x444E4444
    expected.flat[2] = 0xE4444444
    expected.flat[5] = 0x44449C84
    np.testing.assert_array_equal(meta, expected.astype(np.uint32).view(np.int32))


@pytest.mark.parametrize(
    ("dtype", "out", "k"),
    [("bfloat16", 96, 64), ("float16", 32, 96), ("int8", 48, 128)],
)
def test_it_equals_the_format_of_pytorch(dtype, out, k):
    torch = pytest.importorskip("torch")
    conversions = pytest.importorskip("torch.sparse._semi_structured_conversions")
    rng = np.random.default_rng(0)
    mask = random_mask(rng, (out, k), 2, 4, 1)
    weight = masked(1 + abs(random_weight(rng, (out, k), np.float32)), mask)
    weight = weight.astype(jnp.dtype(dtype))
    theirs = torch.from_numpy(weight.astype(np.float32)).to(getattr(torch, dtype))
    packed, meta = conversions.sparse_semi_structured_from_dense_cutlass(theirs)
    for axis, mine in ((0, weight.T), (1, weight)):
        stored = js.compress(mine, mask=mine != 0, axis=axis)
        result = js.to_semi_structured(stored)
        np.testing.assert_array_equal(
            result[0].astype("float32"), packed.float().numpy()
        )
        assert_same_bits(result[1], meta.numpy())
        back = jax.jit(js.from_semi_structured, static_argnames="axis")(
            *result, axis=axis
        )
        assert (back.axis, back.pattern) == (stored.axis, stored.pattern)
        assert_same_bits(back.indices, np.asarray(stored.indices))
        assert_same_bits(js.decompress(back), mine)
    there = conversions.sparse_semi_structured_to_dense_cutlass(packed, meta)
    np.testing.assert_array_equal(there.float().numpy(), weight.astype(np.float32))


def test_groups_that_keep_fewer_are_read_as_pytorch_stores_them():
    torch = pytest.importorskip("torch")
    conversions = pytest.importorskip("torch.sparse._semi_structured_conversions")
    rng = np.random.default_rng(1)
    mask = random_mask(rng, (32, 64), 2, 4, 1, fewer=True)
    weight = masked(random_weight(rng, (32, 64), np.float16), mask)
    packed, meta = conversions.sparse_semi_structured_from_dense_cutlass(
        torch.from_numpy(weight)
    )
    result = js.from_semi_structured(packed.numpy(), meta.numpy(), axis=1)
    assert_same_bits(js.decompress(result), weight)
    stored = js.compress(weight, mask=mask, axis=1)
    mine = [torch.from_numpy(np.array(x)) for x in js.to_semi_structured(stored)]
    there = conversions.sparse_semi_structured_to_dense_cutlass(*mine)
    assert_same_bits(there.numpy(), weight)


@pytest.mark.parametrize(
    ("shape", "pattern", "dtype", "words"),
    [
        ((32, 16), "2:4", "bfloat16", "inputs divisible by 32, got 32 outputs and 16"),
        ((16, 32), "2:4", "float16", "outputs divisible by 32"),
        ((16, 32), "2:4", "int8", "inputs divisible by 64"),
        ((32, 32), "1:4", "bfloat16", "1:4"),
        ((32, 32), "2:4", "float32", "float32"),
        ((2, 32, 32), "2:4", "bfloat16", r"\(2, 32, 32\)"),
    ],
)
def test_errors(shape, pattern, dtype, words):
    stored = js.compress(jnp.ones(shape, dtype), pattern, axis=-1)
    with pytest.raises(ValueError, match=words):
        js.to_semi_structured(stored)


@pytest.mark.parametrize(
    ("values", "meta", "axis", "words"),
    [
        ((32, 16), (32, 3), 0, r"shape \(32, 2\) and dtype int16, got \(32, 3\)"),
        ((32,), (32, 2), 0, r"\(32,\)"),
        ((32, 16), (32, 2), 2, "axis 0 or 1, got 2"),
    ],
)
def test_errors_of_from_semi_structured(values, meta, axis, words):
    values, meta = np.zeros(values, np.float16), np.zeros(meta, np.int16)
    with pytest.raises(ValueError, match=words):
        js.from_semi_structured(values, meta, axis=axis)
