"""Arrays of equal elements, which no ranking tells apart."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Integer

from jaxsparse._patterns.ranking import rank_by_magnitude, rank_by_value
from jaxsparse._trees import is_numeric


def constant_arrays(arrays: Mapping[str, Any], *, signed: bool = False) -> set[str]:
    """Returns the names of those arrays whose elements all rank the same.

    Each shard is read where it is. Of an array that is not constant only one row is
    read, and the rows of all arrays are waited for together. An array is not read if
    its values are not known here: tracers, shapes alone, and arrays that other
    processes hold a part of. Nothing is read under a trace.

    Args:
      arrays: arrays of real numbers by name. Anything else is not constant.
      signed: whether elements rank by value instead of by magnitude.
    """
    parts = {name: _parts_on_devices(x) for name, x in arrays.items()}
    try:
        no_mesh = jax.set_mesh(None)  # each part is on one device of any mesh
    except ValueError:  # under a trace
        return set()
    with no_mesh:
        rows = {name: _first_row(x[0]) for name, x in parts.items() if x}
        return {
            name
            for name, row in jax.device_get(rows).items()
            if _may_be_constant(row) and _is_constant(parts[name], signed)
        }


def _parts_on_devices(x: Any) -> list[Any]:
    """Returns arrays on one device each; none if the values are not known here."""
    if not is_numeric(x) or math.prod(x.shape) < 2:
        return []
    if isinstance(x, np.ndarray):
        return [x]
    is_concrete = isinstance(x, jax.Array) and not isinstance(x, Tracer)
    if not is_concrete or x.is_deleted() or not x.is_fully_addressable:
        return []
    return [shard.data for shard in x.addressable_shards if shard.replica_id == 0]


def _first_row(x: Any) -> Any:
    if isinstance(x, np.ndarray) or x.device.platform == "cpu":
        return np.asarray(x)[(0,) * (x.ndim - 1)]  # a view, and nothing to compile
    return _slice_row(x)


@jax.jit
def _slice_row(x: Array) -> Array:
    return x[(0,) * (x.ndim - 1)]


def _may_be_constant(row: np.ndarray) -> bool:
    """Returns False if two elements differ; equal ones may differ in precision."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        magnitudes = np.abs(row.astype(np.float64))
    return len(np.unique(magnitudes)) == 1  # NaN is one value


def _is_constant(parts: list[Any], signed: bool) -> bool:
    keys = np.ravel(jax.device_get([_extreme_keys(part, signed) for part in parts]))
    return bool((keys == keys[0]).all())


@partial(jax.jit, static_argnames="signed")
def _extreme_keys(x: Any, signed: bool) -> Integer[Array, "2"]:
    """Returns the lowest and the highest key of an array."""
    keys = (rank_by_value if signed else rank_by_magnitude)(x).keys
    return jnp.stack([keys.min(), keys.max()])
