"""Headers of CUDA kernels, compiled for the CPU: masks and bits against plain NumPy."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from jaxsparse.kernels import cuda_library
from tests.compressed.layout_oracle import compressed, random_mask
from tests.patterns.transposable_oracle import best_by_trial, feasible


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    path = tmp_path_factory.mktemp("host") / "kernels.so"
    source = Path(__file__).parent / "on_host.cpp"
    kernels = Path(cuda_library.__file__).parent
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared"]
    subprocess.run(
        [compiler, *flags, f"-I{kernels}", str(source), "-o", str(path)], check=True
    )
    return ctypes.CDLL(str(path))


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def searched(library, blocks):
    """Returns both masks of each block, as bool."""
    blocks = np.ascontiguousarray(blocks, np.float32)
    words = np.zeros((2, len(blocks)), np.uint32)
    library.best_masks(pointer(blocks), len(blocks), *map(pointer, words))
    # Row i is byte 3 - i, column j is bit 3 - j.
    shifts = 8 * np.arange(4)[::-1, None] + np.arange(4)[::-1]
    return (words[..., None, None] >> shifts & 1).astype(bool)


def random_blocks(rng, name, count=4000):
    normal = abs(rng.normal(size=(count, 4, 4))).astype(np.float32)
    narrow = (normal.view(np.uint32) & 0xFFFF0000).view(np.float32)  # as bfloat16
    match name:
        case "float32":
            return normal
        case "bfloat16":
            return narrow
        case "whole numbers":
            return rng.integers(0, 5, normal.shape).astype(np.float32)
        case "subnormal":
            return (1e-45 * rng.integers(0, 9, normal.shape)).astype(np.float32)
        case "nearly equal":
            return (1 + 2.0**-23 * rng.integers(0, 5, normal.shape)).astype(np.float32)
        case _:
            return narrow * (2.0 ** -rng.integers(0, 30, normal.shape)).astype("f4")


@pytest.mark.parametrize(
    "name",
    ["float32", "bfloat16", "whole numbers", "subnormal", "nearly equal", "wide"],
)
def test_masks_are_the_first_of_the_best(library, name):
    blocks = random_blocks(np.random.default_rng(0), name)
    table = feasible(2, 4)
    # Exact: the sums of these blocks need fewer than 53 bits.
    sums = blocks.reshape(-1, 16).astype(np.float64) @ table.reshape(-1, 16).T
    expected = table[np.argmax(sums, 1)]
    for masks in searched(library, blocks):
        np.testing.assert_array_equal(masks, expected)


def test_a_few_masks_by_exact_integers(library):
    blocks = random_blocks(np.random.default_rng(1), "wide", 40)
    expected = [best_by_trial(block, 2) for block in blocks]
    np.testing.assert_array_equal(searched(library, blocks)[0], expected)


def test_infinities_and_nans_are_kept(library):
    rng = np.random.default_rng(0)
    finite = random_blocks(rng, "bfloat16")
    special = np.where(rng.random(finite.shape) < 0.2, np.inf, finite)
    special = np.where(rng.random(finite.shape) < 0.2, np.nan, special)
    largest = np.where(np.isfinite(special), special, 0).max((1, 2), keepdims=True)
    largest = np.where(largest > 0, largest, 1)
    bounded = np.where(np.isfinite(special), special, 32 * largest)
    expected = searched(library, bounded.astype(np.float32))[0]
    for masks in searched(library, special):
        np.testing.assert_array_equal(masks, expected)
    huge = finite * np.float32(2.0**124)  # sums overflow, and many are limited
    limit = np.minimum(huge, np.finfo(np.float32).max / 1024)
    expected = searched(library, limit * np.float32(2.0**-20))[0]
    np.testing.assert_array_equal(searched(library, huge)[0], expected)


def test_bits_of_lines(library):
    rng = np.random.default_rng(0)
    masks = rng.random((2000, 8, 8)) < rng.choice([0.2, 0.5, 0.8], (2000, 1, 1))
    masks[::5] = random_mask(rng, masks[::5].shape, 2, 4, 2)
    lines = np.packbits(masks, -1, bitorder="little")  # [masks, 8, 1]
    transposed, slots, codes, firsts = (np.zeros_like(lines) for _ in range(4))
    keep_two = np.zeros(len(lines), np.uint8)
    arrays = (transposed, keep_two, slots, codes, firsts)
    library.line_bits(pointer(lines), len(lines), *map(pointer, arrays))
    unpacked = lambda x: np.unpackbits(x, axis=-1, bitorder="little").astype(bool)
    np.testing.assert_array_equal(unpacked(transposed), masks.swapaxes(1, 2))
    groups = masks.reshape(-1, 8, 2, 4)
    np.testing.assert_array_equal(keep_two, (groups.sum(-1) == 2).all((1, 2)))
    first = groups & (groups.cumsum(-1) <= 2)
    _, expected = compressed(np.ones(masks.shape), first.reshape(masks.shape), 2, 4, 2)
    np.testing.assert_array_equal(codes, expected)
    # Two bits a slot: the positions that have slots.
    positions = expected >> np.arange(0, 8, 2) & 3
    at = np.zeros((*masks.shape[:2], 2, 4), bool)
    np.put_along_axis(at, positions.reshape(*masks.shape[:2], 2, 2), True, -1)
    np.testing.assert_array_equal(unpacked(slots), at.reshape(masks.shape))
    is_first = at & (at.cumsum(-1) == 1)
    np.testing.assert_array_equal(unpacked(firsts), is_first.reshape(masks.shape))


def test_selections(library):
    rng = np.random.default_rng(0)
    numbers = np.arange(1, 5, dtype=np.uint16) * 0x1111
    for _ in range(200):
        slots = np.sort(rng.permuted(np.tile(np.arange(4), (8, 1)), axis=1)[:, :2], 1)
        nibbles = (slots[:, 0] | slots[:, 1] << 2).astype(np.uint32)
        code = np.uint32(sum(int(n) << 4 * i for i, n in enumerate(nibbles)))
        chosen, spread = np.zeros(8, np.uint32), np.zeros(16, np.uint32)
        rows = rng.integers(0, 2**32, dtype=np.uint32)
        library.selections(
            ctypes.c_uint32(code),
            pointer(numbers),
            pointer(chosen),
            ctypes.c_uint32(rows),
            pointer(spread),
        )
        pairs = chosen.view(np.uint16).reshape(2, 4, 2)  # [half, byte, slot]
        by_byte = slots.reshape(4, 2, 2).swapaxes(0, 1)
        np.testing.assert_array_equal(pairs, numbers[by_byte])
        bits = (rows >> np.arange(32, dtype=np.uint32) & 1).astype(bool)
        expected = np.where(bits, 0xFFFF, 0).astype(np.uint16).reshape(4, 8)
        np.testing.assert_array_equal(spread.view(np.uint16).reshape(4, 8), expected)


def test_groups_of_sixteen_are_expanded(library):
    bits = np.arange(2**16)[:, None] >> np.arange(16) & 1
    masks = np.flatnonzero(bits.sum(1) == 8)
    assert len(masks) == 12870
    values = np.random.default_rng(0).integers(1, 2**16, (12870, 8)).astype(np.uint16)
    dense = np.zeros((12870, 16), np.uint16)
    for mask, own, to in zip(masks, values, dense, strict=True):
        library.expanded(int(mask), pointer(own), pointer(to))
    expected = np.zeros_like(dense)
    expected[bits[masks] == 1] = values.ravel()  # in order, group by group
    np.testing.assert_array_equal(dense, expected)
