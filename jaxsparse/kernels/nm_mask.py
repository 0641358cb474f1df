"""The best N:M masks in registers: a Mosaic GPU kernel.

A key is `min(bits & counted, top)`, and the highest keys of a group are kept.

It is written below Pallas, which has neither stores of bool nor columns within a
register. A thread takes whole groups: where groups lie along the last axis one of them,
elsewhere neighbours, as many as eight bytes of a row hold.
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


#: Threads of a block: one warpgroup.
_BLOCK = 128
#: Stands for an index that is a value of the kernel.
_DYNAMIC = -(2**31)

_GT = arith.CmpIPredicate.sgt
_GE = arith.CmpIPredicate.sge
_EQ = arith.CmpIPredicate.eq


def nm_mask(
    groups: Integer[Array, "..."],
    *,
    n: int,
    axis: int,
    counted: int,
    top: int,
    packed: bool,
) -> Bool[Array, "..."] | UInt8[Array, "..."]:
    """The mask of the `n` highest keys in every group; of equal keys the first ones.

    Args:
      groups: signed integers of 8, 16 or 32 bits, any shape.
      n: how many to keep.
      axis: the axis of a group's places: 8, 16, 32 or 64 of them.
      counted: which bits count.
      top: the highest key.
      packed: whether to return eight places of a group as one byte, lowest bit first.

    Returns:
      The mask, shaped like `groups`, or with an eighth of the places.
    """
    shape, width = groups.shape, 8 * groups.dtype.itemsize
    places, inner = shape[axis], math.prod(shape[axis + 1 :])
    rows = places // 8 if packed else places
    lanes = math.gcd(inner, max(1, min(64 // width, 64 // places)))
    threads = groups.size // (places * lanes)

    def body(groups_ref, mask_ref):
        types = (plgpu.RefType(), plgpu.RefType())
        plgpu.inline_mgpu(arg_types=types)(find)(groups_ref, mask_ref)

    def find(_, groups, mask):
        source, target = utils.memref_ptr(groups), utils.memref_ptr(mask)
        thread = arith.addi(
            arith.muli(_index(gpu.block_id), _const(_BLOCK, _int(64))),
            _index(gpu.thread_id),
        )
        if threads % _BLOCK:
            within = arith.cmpi(
                arith.CmpIPredicate.ult, thread, _const(threads, _int(64))
            )
            with when(within):
                one_thread(source, target, thread)
        else:
            one_thread(source, target, thread)

    def one_thread(source, target, thread):
        start = _start(thread, places, inner, lanes)
        bits = [
            bit
            for offset, count in _runs(places, inner, lanes, 128 // width)
            for bit in _load(source, start, offset, count, _int(width))
        ]
        kept: list[Any] = [None] * len(bits)
        for lane in range(lanes):
            kept[lane::lanes] = _best(bits[lane::lanes], n, counted, top)
        found = _bytes(kept, lanes) if packed else [_widened(k, 8) for k in kept]
        start = _start(thread, rows, inner, lanes)
        for offset, count in _runs(rows, inner, lanes, 16):
            run, found = found[:count], found[count:]
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
    """Where the thread's first element lies in an array of `(groups, rows, inner)`."""
    across = _const(inner // lanes, _int(64))
    group, column = arith.divui(thread, across), arith.remui(thread, across)
    return arith.addi(
        arith.muli(group, _const(rows * inner, _int(64))),
        arith.muli(column, _const(lanes, _int(64))),
    )


def _runs(rows: int, inner: int, lanes: int, most: int) -> list[tuple[int, int]]:
    """Offset and length of the thread's runs of consecutive elements, place by place.

    Args:
      rows: places of a group.
      inner: elements from one place to the next.
      lanes: groups of a thread.
      most: elements of the longest run: 16 bytes.
    """
    if inner > 1:
        return [(row * inner, lanes) for row in range(rows)]
    return [(row, min(rows, most)) for row in range(0, rows, most)]


def _best(bits: Sequence[Any], n: int, counted: int, top: int) -> list[Any]:
    """Which of a group's places are kept, from the bits of their weights."""
    kind = bits[0].type
    keys = []
    for bit in bits:
        key = _widened(arith.andi(bit, _const(counted, kind)), 32, signed=True)
        keys.append(arith.minsi(key, _const(top, _int(32))))
    if kind.width < 32:  # the places fit below the key, and no two are equal
        last = len(keys) - 1
        shift = _const(8, _int(32))
        keys = [
            arith.ori(arith.shli(key, shift), _const(last - i, _int(32)))
            for i, key in enumerate(keys)
        ]
        limit = nth_largest(keys, n, arith.minsi, arith.maxsi)
        return [arith.cmpi(_GE, key, limit) for key in keys]

    limit = nth_largest(keys, n, arith.minsi, arith.maxsi)
    above = [arith.cmpi(_GT, key, limit) for key in keys]
    room = _const(n, _int(32))
    for higher in above:
        room = arith.subi(room, _widened(higher, 32))
    kept = []
    for key, higher in zip(keys, above, strict=True):  # of equal keys the first ones
        equal = arith.cmpi(_EQ, key, limit)
        fits = arith.cmpi(_GT, room, _const(0, _int(32)))
        kept.append(arith.ori(higher, arith.andi(equal, fits)))
        room = arith.subi(room, _widened(equal, 32))
    return kept


def _bytes(kept: Sequence[Any], lanes: int) -> list[Any]:
    """Eight places of a group as one byte, lowest bit first."""
    packed = []
    for first in range(0, len(kept), 8 * lanes):
        for lane in range(lanes):
            byte = _const(0, _int(32))
            for i, bit in enumerate(kept[first + lane : first + 8 * lanes : lanes]):
                shifted = arith.shli(_widened(bit, 32), _const(i, _int(32)))
                byte = arith.ori(byte, shifted)
            packed.append(arith.trunci(_int(8), byte))
    return packed


def _load(source, start, offset: int, count: int, kind) -> list[Any]:
    run = llvm.load(
        ir.VectorType.get((count,), kind),
        _pointer(source, start, offset, kind),
        alignment=count * kind.width // 8,
    )
    return [vector.extract(run, [], [i]) for i in range(count)]


def _store(target, start, offset: int, run: Sequence[Any]) -> None:
    register = vector.from_elements(ir.VectorType.get((len(run),), _int(8)), run)
    # A bool has a byte of memory, whatever the kernel's type of it says.
    pointer = _pointer(target, start, offset, _int(8))
    llvm.store(register, pointer, alignment=len(run))


def _pointer(base, start, offset: int, kind):
    index = arith.addi(start, _const(offset, _int(64)))
    flags = llvm.GEPNoWrapFlags.none
    return llvm.getelementptr(base.type, base, [index], [_DYNAMIC], kind, flags)


def _int(width: int):
    return ir.IntegerType.get_signless(width)


def _const(value: int, kind):
    return arith.constant(kind, ir.IntegerAttr.get(kind, value))


def _index(of: Callable[..., Any]):
    return arith.index_cast(_int(64), of(gpu.Dimension.x))


def _widened(value, width: int, *, signed: bool = False):
    if value.type.width == width:
        return value
    return (arith.extsi if signed else arith.extui)(_int(width), value)
