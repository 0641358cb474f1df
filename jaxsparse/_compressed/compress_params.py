"""Compresses and decompresses the weights of a whole tree."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.typing import DTypeLike

from jaxsparse._compressed.compress import compress
from jaxsparse._compressed.compressed_array import decompress, is_compressed
from jaxsparse._compressed.eight_bits import as_eight_bits
from jaxsparse._compressed.indices import POSITION_BITS
from jaxsparse._compressed.quantize import quantize_compressed
from jaxsparse._masks import best_masks, mask_leaf, match_masks
from jaxsparse._patterns import NM
from jaxsparse._plans import LeafPlan, PlanLike, plan_for
from jaxsparse._trees import PyTree, flatten, require_values


def compress_params(
    params: PyTree,
    plan: PlanLike = "2:4",
    *,
    masks: PyTree | None = None,
    quantize: DTypeLike | None = None,
    importances: PyTree | None = None,
) -> PyTree:
    """Returns masked parameters whose n:m leaves are stored without their zeros.

    `decompress_params` of the result equals, bit for bit, `mask_params` of the same
    parameters and masks, unless they are quantized.

    Args:
      params: a tree of arrays.
      plan: a plan, rules or a pattern, which give the group axis of each leaf.
      masks: a tree of masks, bool or packed, with None for leaves that stay dense. The
        default is the best masks by magnitude, which leave a tree that obeys the plan
        unchanged.
      quantize: `"int8"` or `"float8_e4m3fn"` also quantizes the compressed leaves, as
        `quantize_compressed` does, with one scale for each output (of a convolution,
        for each output at each position of its window). Other leaves keep their dtype.
      importances: a tree like `params`, such as `input_importances(params, statistics)`
        returns. A leaf that is quantized gets the scales with the least error, weighted
        by its importances; one with None gets those of its largest weights.

    Returns:
      A tree like `params` with a `Compressed` for every leaf that has a mask and the
      pattern n:m in groups of 4, 8 or 16. Leaves with other patterns are masked arrays.
      Leaves without a mask are unchanged.

    Raises:
      ValueError: a leaf is compressed already, the plan, a mask or importances do not
        fit the parameters, a mask keeps more than `n` weights of a group, a leaf that
        the plan keeps dense has a mask, or there are importances but no `quantize`.
        Also what `plan_sparsity` and
        `quantize_compressed` raise.
      TypeError: a mask is neither bool nor packed uint8, or its leaf has no values.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.ones((64, 32), jnp.bfloat16), "bias": jnp.ones(32)}
    >>> small = compress_params(params)
    >>> small["kernel"].nbytes / params["kernel"].nbytes
    0.5625
    >>> small = compress_params(params, quantize="int8")
    >>> small["kernel"].nbytes  # 1,024 values, 256 indices and 32 scales of 4 bytes
    1408
    """
    if quantize is not None:
        quantize = as_eight_bits(quantize)
    leaves = flatten(params)
    importances = flatten(importances).by_path
    _check_importances(importances, leaves.by_path, quantize)
    plan = plan_for(params, plan)
    if masks is None:  # no warning of ties: a leaf of zeros is likely pruned already
        masks_by_path = best_masks(leaves.by_path, plan)
    else:
        masks_by_path = match_masks(leaves.by_path, masks)
    for path, leaf in leaves.by_path.items():
        if masks_by_path[path] is not None:
            require_values(path, leaf)
    return leaves.unflatten(
        {
            path: _compress_leaf(
                leaf,
                plan[path],
                masks_by_path[path],
                quantize=quantize,
                importances=importances.get(path),
            )
            for path, leaf in leaves.by_path.items()
        }
    )


def decompress_params(params: PyTree) -> PyTree:
    """Returns the tree with every compressed leaf as an array, zeros included.

    Traceable, and differentiable in the values of the compressed leaves.

    Args:
      params: a tree in which leaves may be `Compressed`.

    Returns:
      A tree of the same structure, with arrays only.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.ones((64, 32))}
    >>> print(decompress_params(compress_params(params))["kernel"][:4, 0])
    [1. 1. 0. 0.]
    """
    return jax.tree.map(
        lambda leaf: decompress(leaf) if is_compressed(leaf) else leaf,
        params,
        is_leaf=is_compressed,
    )


def _check_importances(
    importances: Mapping[str, Any],
    leaves: Mapping[str, Any],
    quantize: DTypeLike | None,
) -> None:
    if importances and quantize is None:
        raise ValueError(
            f"importances of leaves {[*importances][:3]} are for scales of eight bits: "
            "give quantize='int8' or 'float8_e4m3fn', or no importances"
        )
    if unknown := importances.keys() - leaves.keys():
        raise ValueError(
            f"there are importances of {sorted(unknown)[:3]}, but the parameters have "
            f"no such leaf, only {[*leaves][:3]}: give input_importances(params, ...)"
        )


def _compress_leaf(
    leaf: Any,
    plan: LeafPlan,
    mask: Any,
    *,
    quantize: DTypeLike | None,
    importances: Any,
) -> Any:
    if mask is None:
        return leaf
    if plan.pattern is None:
        raise ValueError(
            f"leaf {plan.path!r} of shape {plan.shape} has a mask, but its plan is "
            f"{plan.decision!r}: give the plan that the masks were made for"
        )
    if not isinstance(plan.pattern, NM) or plan.pattern.m not in POSITION_BITS:
        return mask_leaf(leaf, mask)
    try:
        compressed = compress(leaf, plan.pattern, mask=mask, axis=plan.axis)
        if quantize is None:
            return compressed
        return quantize_compressed(
            compressed, quantize, contracted=plan.contracted, importances=importances
        )
    except ValueError as error:
        raise ValueError(f"leaf {plan.path!r}: {error}") from None
    except TypeError as error:
        raise TypeError(f"leaf {plan.path!r}: {error}") from error
