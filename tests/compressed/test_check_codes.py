"""Codes that `compress` cannot write are found, all of them and no others."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse._compressed import code_fault
from jaxsparse._reports import SparsityError


PATTERNS = [(n, m) for m in (4, 8, 16) for n in range(1, m)]


def possible_codes(n, m):
    """All codes of n:m by the documented layout, and their number of bits."""
    size = 2 if m == 4 else 4
    sets = itertools.combinations(range(m), n)
    if n * size <= m:
        return {sum(p << size * i for i, p in enumerate(s)) for s in sets}, n * size
    return {sum(1 << p for p in s) for s in sets}, m


def with_codes(codes, n, m, axis, outputs=1):
    """A compressed weight with the given codes, `[groups, outputs]`, along an axis."""
    _, width = possible_codes(n, m)
    codes = np.asarray(codes, np.int64).reshape(-1, outputs)
    bits = (codes[:, None, :] >> np.arange(width)[None, :, None] & 1).astype(np.uint8)
    indices = np.packbits(bits.reshape(-1, outputs), axis=0, bitorder="little")
    values = np.ones((len(codes) * n, outputs), np.float32)
    if axis == -1:
        indices, values = indices.T, values.T
    return js.Compressed(jnp.asarray(values), jnp.asarray(indices), js.NM(n, m), axis)


@pytest.mark.sweep(keep=["2-4--1"])
@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_every_code_of_every_pattern(n, m, axis):
    possible, width = possible_codes(n, m)
    leaf = with_codes(range(2**width), n, m, axis)
    impossible = [code for code in range(2**width) if code not in possible]
    if not impossible:
        assert code_fault(leaf) == ""
        return
    start = (impossible[0] * m, 0) if axis == -2 else (0, impossible[0] * m)
    assert code_fault(leaf) == (
        f"{len(impossible)} of {2**width} groups have codes that compress cannot "
        f"write; the first is of the group that starts at {start}"
    )
    assert code_fault(with_codes(sorted(possible), n, m, axis)) == ""


@pytest.mark.parametrize(("n", "m", "groups"), [(2, 4, 3), (1, 4, 5), (3, 16, 1)])
def test_padding_is_zero(n, m, groups):
    possible, width = possible_codes(n, m)
    leaf = with_codes([min(possible)] * groups, n, m, -2)
    assert code_fault(leaf) == ""
    assert groups * width % 8
    for bit in range(groups * width % 8, 8):
        damaged = leaf.indices.at[-1, 0].set(leaf.indices[-1, 0] ^ np.uint8(1 << bit))
        fault = code_fault(js.Compressed(leaf.values, damaged, leaf.pattern, -2))
        assert fault == "the padding after the codes is not zero"


@pytest.mark.sweep
def test_the_first_bad_group_of_several_outputs_and_of_a_stack():
    codes = np.full((6, 3), 0b0100)
    codes[4, 1] = 0b0001  # positions 1 and 0
    codes[5, 0] = 0b0101  # position 1 twice
    leaf = with_codes(codes, 2, 4, -2, outputs=3)
    assert code_fault(leaf) == (
        "2 of 18 groups have codes that compress cannot write; the first is of the "
        "group that starts at (16, 1)"
    )
    good = with_codes(np.full((6, 3), 0b0100), 2, 4, -2, outputs=3)
    stack = jax.tree.map(lambda *x: jnp.stack(x), good, leaf)
    assert "2 of 36 groups" in code_fault(stack)
    assert code_fault(stack).endswith("starts at (1, 16, 1)")


@pytest.mark.sweep(keep=["2:4-shape0"])
@pytest.mark.parametrize("shape", [(16, 8), (48, 3), (0, 4), (2, 16, 3), (16,)])
@pytest.mark.parametrize("pattern", ["1:4", "2:4", "3:8", "3:16"])
def test_what_compress_writes_is_possible(pattern, shape):
    rng = np.random.default_rng(0)
    mask = np.zeros(shape, bool)
    axis = max(len(shape) - 2, 0)
    m = js.NM(*map(int, pattern.split(":"))).m
    lines = np.moveaxis(mask, axis, -1)
    lines[..., :: m // 2] = rng.random(lines[..., :: m // 2].shape) < 0.5
    if pattern[0] == "1":
        lines[..., m // 2 :: m] = False
    leaf = js.compress(jnp.ones(shape), pattern, mask=jnp.asarray(mask), axis=axis)
    assert code_fault(leaf) == ""


@pytest.fixture
def damaged():
    params = {"up": {"kernel": jax.random.normal(jax.random.key(0), (32, 8))}}
    small = js.compress_params(params)
    leaf = small["up"]["kernel"]
    indices = leaf.indices.at[3, 5].set(0b1110_0000)  # group 6: positions 0 and 0
    return {"up": {"kernel": js.Compressed(leaf.values, indices, leaf.pattern, -2)}}


WORDS = r"'up/kernel' of shape \(32, 8\).* of 64 groups have codes .*\(24, 5\)"


def test_check_sparsity_names_the_leaf_and_the_group(damaged):
    with pytest.raises(SparsityError, match=WORDS) as error:
        js.check_sparsity(damaged, "2:4")
    assert list(error.value.faults) == ["up/kernel"]


def test_save_sparse_refuses_what_could_not_be_loaded(damaged, tmp_path):
    with pytest.raises(ValueError, match=WORDS):
        js.save_sparse(tmp_path / "model.safetensors", damaged)
    assert not list(tmp_path.iterdir())


@pytest.mark.sweep
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("dtype", "size"), [(jnp.bfloat16, 32), (jnp.int8, 64)])
def test_metadata_of_another_tensor_are_refused(dtype, size, axis):
    weight = jnp.ones((size, size), dtype)
    values, meta = js.to_semi_structured(js.compress(weight, "2:4"))
    assert code_fault(js.from_semi_structured(values, meta, axis=axis)) == ""
    # 0100 is the code of positions 0 and 1; with its lowest bit set, of 1 and 1.
    flipped = np.array(meta)
    flipped[5, 0] ^= 1
    with pytest.raises(ValueError, match=f"1 of {size * size // 4} groups have codes"):
        js.from_semi_structured(values, flipped, axis=axis)
    jitted = jax.jit(js.from_semi_structured, static_argnames="axis")
    assert jitted(values, flipped, axis=axis).shape == (size, size)
