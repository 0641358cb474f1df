"""The best N:M masks, searched in registers: a Mosaic GPU kernel.

A key is `min(bits & bit_mask, max_key)`, and the highest keys of a group are kept.

The kernel is written in MLIR, below Pallas, which can neither store bool nor address
parts of a register. A thread processes whole groups: one group if groups lie along the
last axis, otherwise as many neighbouring groups as eight bytes of a row hold.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.mosaic.gpu import utils, when
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, gpu, llvm, vector
from jaxtyping import Array, Bool, Integer, UInt8

from jaxsparse.kernels.selection_network import nth_largest


#: The threads of a block: one warpgroup.
_BLOCK = 128
#: LLVM's marker of an index that is computed in the kernel.
_DYNAMIC = -(2**31)

_GT = arith.CmpIPredicate.sgt
_GE = arith.CmpIPredicate.sge
_EQ = arith.CmpIPredicate.eq


def nm_mask(
    groups: Integer[Array, "..."],
    *,
    n: int,
    axis: int,
    bit_mask: int,
    max_key: int,
    packed: bool,
) -> Bool[Array, "..."] | UInt8[Array, "..."]:
    """Returns the mask that keeps the `n` highest keys of every group.

    Args:
      groups: signed integers of 8, 16 or 32 bits, of any shape.
      n: the number of weights kept in each group; of equal keys the first are kept.
      axis: the axis of the positions of a group: 8, 16, 32 or 64.
      bit_mask: the bits that count.
      max_key: the highest key.
      packed: whether to return eight positions of a group as one byte, lowest bit
        first.

    Returns:
      The mask, shaped like `groups`; packed, with an eighth of the positions.
    """
    shape, width = groups.shape, 8 * groups.dtype.itemsize
    m, inner = shape[axis], math.prod(shape[axis + 1 :])
    rows = m // 8 if packed else m
    lanes = math.gcd(inner, max(1, min(64 // width, 64 // m)))
    threads = groups.size // (m * lanes)

    def body(groups_ref, mask_ref):
        types = (plgpu.RefType(), plgpu.RefType())
        plgpu.inline_mgpu(arg_types=types)(search)(groups_ref, mask_ref)

    def search(_, groups, mask):
        source, target = utils.memref_ptr(groups), utils.memref_ptr(mask)
        thread = arith.addi(
            arith.muli(_index(gpu.block_id), _const(_BLOCK, _int(64))),
            _index(gpu.thread_id),
        )
        if threads % _BLOCK:
            in_range = arith.cmpi(
                arith.CmpIPredicate.ult, thread, _const(threads, _int(64))
            )
            with when(in_range):
                search_in_thread(source, target, thread)
        else:
            search_in_thread(source, target, thread)

    def search_in_thread(source, target, thread):
        start = _start(thread, m, inner, lanes)
        elements = [
            element
            for offset, count in _runs(m, inner, lanes, 128 // width)
            for element in _load(source, start, offset, count, _int(width))
        ]
        kept: list[Any] = [None] * len(elements)
        for lane in range(lanes):
            kept[lane::lanes] = _keep_highest(
                elements[lane::lanes], n, bit_mask, max_key
            )
        output = _bytes(kept, lanes) if packed else [_widened(k, 8) for k in kept]
        start = _start(thread, rows, inner, lanes)
        for offset, count in _runs(rows, inner, lanes, 16):
            run, output = output[:count], output[count:]
            _store(target, start, offset, run)

    kernel = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(
            (*shape[:axis], rows, *shape[axis + 1 :]),
            jnp.uint8 if packed else jnp.bool_,
        ),
        grid=(-(-threads // _BLOCK),),
        grid_names=("block",),
    )
    return kernel(groups)


def _start(thread, rows: int, inner: int, lanes: int):
    """Returns the index of the thread's first element in `(groups, rows, inner)`."""
    across = _const(inner // lanes, _int(64))
    group, column = arith.divui(thread, across), arith.remui(thread, across)
    return arith.addi(
        arith.muli(group, _const(rows * inner, _int(64))),
        arith.muli(column, _const(lanes, _int(64))),
    )


def _runs(rows: int, inner: int, lanes: int, longest: int) -> list[tuple[int, int]]:
    """Returns offset and length of the thread's runs of consecutive elements.

    Args:
      rows: the number of positions of a group, or of its bytes.
      inner: the stride between two positions, in elements.
      lanes: the number of groups of a thread.
      longest: the number of elements of the longest run, 16 bytes.
    """
    if inner > 1:
        return [(row * inner, lanes) for row in range(rows)]
    return [(row, min(rows, longest)) for row in range(0, rows, longest)]


def _keep_highest(
    elements: Sequence[Any], n: int, bit_mask: int, max_key: int
) -> list[Any]:
    """Returns for each position of a group whether it is kept."""
    dtype = elements[0].type
    keys = []
    for element in elements:
        bits = arith.andi(element, _const(bit_mask, dtype))
        key = _widened(bits, 32, signed=True)
        keys.append(arith.minsi(key, _const(max_key, _int(32))))
    if dtype.width < 32:  # with the position below the key, no two are equal
        last = len(keys) - 1
        shift = _const(8, _int(32))
        keys = [
            arith.ori(arith.shli(key, shift), _const(last - i, _int(32)))
            for i, key in enumerate(keys)
        ]
        threshold = nth_largest(keys, n, arith.minsi, arith.maxsi)
        return [arith.cmpi(_GE, key, threshold) for key in keys]

    threshold = nth_largest(keys, n, arith.minsi, arith.maxsi)
    above = [arith.cmpi(_GT, key, threshold) for key in keys]
    room = _const(n, _int(32))
    for is_above in above:
        room = arith.subi(room, _widened(is_above, 32))
    kept = []
    for key, is_above in zip(keys, above, strict=True):  # the first of equal keys
        is_tied = arith.cmpi(_EQ, key, threshold)
        fits = arith.cmpi(_GT, room, _const(0, _int(32)))
        kept.append(arith.ori(is_above, arith.andi(is_tied, fits)))
        room = arith.subi(room, _widened(is_tied, 32))
    return kept


def _bytes(kept: Sequence[Any], lanes: int) -> list[Any]:
    """Packs eight positions of a group into one byte, lowest bit first."""
    packed = []
    for first in range(0, len(kept), 8 * lanes):
        for lane in range(lanes):
            byte = _const(0, _int(32))
            for i, bit in enumerate(kept[first + lane : first + 8 * lanes : lanes]):
                shifted = arith.shli(_widened(bit, 32), _const(i, _int(32)))
                byte = arith.ori(byte, shifted)
            packed.append(arith.trunci(_int(8), byte))
    return packed


def _load(source, start, offset: int, count: int, dtype) -> list[Any]:
    run = llvm.load(
        ir.VectorType.get((count,), dtype),
        _pointer(source, start, offset, dtype),
        alignment=count * dtype.width // 8,
    )
    return [vector.extract(run, [], [i]) for i in range(count)]


def _store(target, start, offset: int, run: Sequence[Any]) -> None:
    register = vector.from_elements(ir.VectorType.get((len(run),), _int(8)), run)
    # In memory a bool is a byte, although its type in the kernel is i1.
    pointer = _pointer(target, start, offset, _int(8))
    llvm.store(register, pointer, alignment=len(run))


def _pointer(base, start, offset: int, dtype):
    index = arith.addi(start, _const(offset, _int(64)))
    flags = llvm.GEPNoWrapFlags.none
    return llvm.getelementptr(base.type, base, [index], [_DYNAMIC], dtype, flags)


def _int(width: int):
    return ir.IntegerType.get_signless(width)


def _const(value: int, dtype):
    return arith.constant(dtype, ir.IntegerAttr.get(dtype, value))


def _index(index_of: Callable[..., Any]):
    return arith.index_cast(_int(64), index_of(gpu.Dimension.x))


def _widened(value, width: int, *, signed: bool = False):
    if value.type.width == width:
        return value
    return (arith.extsi if signed else arith.extui)(_int(width), value)
