"""Products with compressed weights on NVIDIA's Hopper GPUs.

Weights of 2:4 are multiplied by sparse tensor cores, those of 4:8 and 8:16 expanded in
registers for few rows, and values of eight bits widened there. `kernel_choice` selects
the kernel and its tiles; `kernels/*.cuh` explain how they work.
Under `vmap`, batches of `x` become more rows, and stacked weights, such as experts, are
multiplied in one launch. Over automatic axes of a mesh each device multiplies its own
shards.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from jaxsparse._compressed.batched_products import multiply_batch
from jaxsparse._compressed.compressed_array import Compressed
from jaxsparse._compressed.kernel_choice import (
    FEW_ROWS,
    ExpandingChoice,
    KernelChoice,
    TileChoice,
    choose_expanding,
    choose_kernel,
    choose_tile,
)
from jaxsparse._compressed.kernel_support import (
    MIXED,
    decompresses,
    fits,
    library_of,
    multiple_of_k,
    require_size,
)
from jaxsparse._compressed.packed_form import unpack_form, unpack_transposed
from jaxsparse._compressed.quantized_matmul import weight_only_matmul
from jaxsparse._compressed.xla_matmul import xla_matmul
from jaxsparse._patterns import NM
from jaxsparse._sharding import Spare, partition_contraction
from jaxsparse.kernels import cuda_target
from jaxsparse.kernels.export import kernel_on_gpu


#: The most weights of one launch.
MAX_WEIGHTS = 4


class _Layout(NamedTuple):
    """How the operands of one launch follow one another.

    Attributes:
      pattern: that of all weights.
      weights: the number of weights.
      scaled: whether they have scales.
      transposed: whether a packed weight that follows is the transposed one.
      exported: whether a program that is exported uses the kernel too.
      stack: the number of leading axes of all arrays that stack weights, with the rows
        of each, by `vmap`.
    """

    pattern: NM
    weights: int
    scaled: bool
    transposed: bool
    exported: bool
    stack: int = 0

    def split(self, arrays: Sequence[Any]) -> list[Sequence[Any]]:
        """Returns the arrays of each weight."""
        each = 3 if self.scaled else 2
        return [arrays[i : i + each] for i in range(0, len(arrays), each)]


def cuda_matmul(
    x: Array,
    compressed: Compressed,
    packed: Array | None = None,
    *,
    transposed: bool = False,
    exported: bool,
) -> Array:
    """Multiplies by one weight, as `cuda_matmuls` by several."""
    options = {"transposed": transposed, "exported": exported}
    return cuda_matmuls(x, [compressed], packed, **options)[0]


# `jit` caches the functions that are created here, and their compilation.
@partial(jax.jit, static_argnames=("transposed", "exported"))
def cuda_matmuls(
    x: Array,
    weights: list[Compressed],
    packed: Array | None = None,
    *,
    transposed: bool = False,
    exported: bool,
) -> list[Array]:
    """Multiplies on a GPU of compute capability 9.0, or by XLA on other devices.

    Args:
      x: `[..., k]`, for which `unsupported_reason` is empty.
      weights: at most `MAX_WEIGHTS` weights of shapes `[k, out]`, of the same pattern
        and dtype, or all quantized to the same dtype. They are multiplied in one
        launch.
      packed: the only weight by `pack_form`. Where devices must be sent the weight,
        this array is sent instead, in one collective.
      transposed: whether it is the transposed weight, `[out, k]` with groups along
        `out`. It is then compressed along `k` on each device.
      exported: whether a program that is exported uses the kernel too, which must then
        be registered wherever it runs, and so do many rows of 4:8 and 8:16.

    Returns:
      For each weight `[..., out]`, accumulated in float32 and rounded once. If `k` is
      sharded, the partial sum of each device is rounded too.
    """
    pattern, scaled = weights[0].pattern, weights[0].is_quantized
    layout = _Layout(pattern, len(weights), scaled, transposed, exported)
    group_bytes = max(1, pattern.m // 8)
    arrays = []
    for weight in weights:
        size, out = weight.indices.shape
        by_group = (size // group_bytes, group_bytes, out)  # shards cut no group
        arrays += [weight.values, weight.indices.reshape(by_group)]
        if layout.scaled:
            arrays.append(weight.scales)
    return _multiply(layout, x, *arrays, *([] if packed is None else [packed]))


def _multiply(layout: _Layout, x: Array, *arrays: Array) -> list[Array]:
    """Multiplies by the arrays of each weight, which a packed one may follow."""
    stack = " ".join(f"s{i}" for i in range(layout.stack))
    rows = " ".join(f"r{i}" for i in range(x.ndim - 1 - layout.stack))
    rules, contracted = [f"{stack} {rows} k"], ["k"]
    for i in range(layout.weights):
        rules += [f"{stack} values{i} out{i}", f"{stack} indices{i} bytes out{i}"]
        contracted += [f"values{i}", f"indices{i}"]
        if layout.scaled:
            rules.append(f"{stack} one out{i}")
    results = ", ".join(f"{stack} {rows} out{i}" for i in range(layout.weights))
    rule = f"{', '.join(rules)} -> {results}"
    has_packed = len(arrays) >= len(rules)
    spare = _spare(arrays[0].dtype, layout.transposed) if has_packed else None
    multiply = custom_vmap(
        partition_contraction(partial(_multiply_shard, layout), rule, contracted, spare)
    )
    multiply.def_vmap(partial(_multiply_batch, layout))
    return multiply(x, *arrays)


def _spare(dtype: DTypeLike, transposed: bool) -> Spare:
    """Returns how a packed weight, or the transposed one, stands in for a weight."""

    def restore(packed: Array) -> tuple[Array, Array]:
        unpack = unpack_transposed if transposed else unpack_form
        restored = unpack(packed, dtype)
        return restored.values, restored.indices[:, None]  # a byte for each two groups

    if transposed:
        return Spare("groups nine k", {"groups": "out0"}, restore)
    return Spare("groups nine out0", {"groups": "k"}, restore)


def _multiply_batch(
    layout: _Layout, size: int, batched: list[bool], *operands: ArrayLike
) -> tuple[list[Array], list[bool]]:
    x, *arrays = map(jnp.asarray, operands)
    weights = layout.split(arrays)
    packed = [*chain(*weights[layout.weights :])]  # of the only weight, not stacked

    def multiply(
        stack: int, rows: Array, weights: Sequence[Sequence[Array]]
    ) -> list[Array]:
        own = layout._replace(weights=len(weights), stack=stack)
        more = packed if stack == layout.stack else ()
        return _multiply(own, rows, *chain(*weights), *more)

    weights = weights[: layout.weights]
    return multiply_batch(multiply, layout.stack, size, x, weights, batched)


def _multiply_shard(layout: _Layout, x: Array, *arrays: Array) -> list[Array]:
    stack, inner = x.shape[: layout.stack], x.shape[layout.stack : -1]
    size, count, k = math.prod(stack), math.prod(inner), x.shape[-1]
    merged = (size,) if stack else ()
    rows = x.reshape(*merged, count, k)
    if stack:
        arrays = tuple(a.reshape(size, *a.shape[layout.stack :]) for a in arrays)
    outs = [weight[0].shape[-1] for weight in layout.split(arrays)]
    if layout.exported:  # and so asked for
        require_size(size, count, k, outs)
    suits = fits(size, count, k, outs)
    suits = suits and k % multiple_of_k(layout.pattern) == 0
    if not layout.exported:
        suits = suits and not decompresses(layout.pattern, count)
    multiply = by_xla = partial(_multiply_by_xla, layout)
    if suits:
        kernel = partial(_multiply_by_kernel, layout)
        multiply = partial(kernel_on_gpu, kernel, by_xla, exported=layout.exported)
    products = multiply(rows, *arrays)
    shapes = [(*x.shape[:-1], out) for out in outs]
    return [y.reshape(shape) for y, shape in zip(products, shapes, strict=True)]


def _weight(
    layout: _Layout,
    x: Array,
    values: Array,
    by_group: Array,
    scales: Array | None = None,
) -> Compressed:
    *stack, groups, group_bytes, out = by_group.shape
    indices = by_group.reshape(*stack, groups * group_bytes, out)
    dtype = None if scales is None else x.dtype
    return Compressed(values, indices, layout.pattern, -2, scales, dtype)


def _multiply_by_xla(layout: _Layout, x: Array, *arrays: Array) -> list[Array]:
    multiply = weight_only_matmul if layout.scaled else xla_matmul
    if layout.stack:
        multiply = jax.vmap(multiply)
    weights = layout.split(arrays)
    return [multiply(x, _weight(layout, x, *weight)) for weight in weights]


def _multiply_by_kernel(layout: _Layout, x: Array, *arrays: Array) -> list[Array]:
    weights = layout.split(arrays)
    outs = [weight[0].shape[-1] for weight in weights]
    *stack, rows, k = x.shape
    options = {"stack": math.prod(stack)}
    library = library_of(layout.pattern)
    if layout.pattern.m != 4:
        choice = choose_expanding(rows, k, *outs, **options)
        return launch(library, choice, x.dtype, x, weights)
    if layout.scaled and rows > FEW_ROWS:
        choice = choose_tile(rows, k, *outs, **options)
        return launch(MIXED, choice, x.dtype, x, weights)
    choice = choose_kernel(rows, k, *outs, eight_bits=layout.scaled, **options)
    flags = {"scaled": layout.scaled, "scaled_rows": False}
    return launch(library, choice, x.dtype, x, weights, **flags)


def launch(
    library: str,
    choice: KernelChoice | ExpandingChoice | TileChoice,
    dtype: DTypeLike,
    x: Array,
    weights: Sequence[Sequence[Array]],
    *row_scales: Array,
    **options: bool,
) -> list[Array]:
    """Calls a kernel for several weights.

    Args:
      library: that of the kernel.
      choice: which of its kernels.
      dtype: of the products.
      x: `[rows, k]`, or a stack of them.
      weights: values, indices and perhaps scales of each weight, or of stacks.
      *row_scales: of the rows, if they are quantized.
      **options: what else the kernel is given.
    """
    outs = [weight[0].shape[-1] for weight in weights]
    multiply = jax.ffi.ffi_call(
        cuda_target.target(library),
        [jax.ShapeDtypeStruct((*x.shape[:-1], out), dtype) for out in outs],
    )
    parameters = {
        name: np.int64(value) if isinstance(value, int) else value
        for name, value in choice._asdict().items()
    }
    arrays = [array for weight in weights for array in weight]
    return list(multiply(x, *row_scales, *arrays, **parameters, **options))
