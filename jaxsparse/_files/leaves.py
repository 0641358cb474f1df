"""What a safetensors file says of the leaves of a tree that are in it.

A leaf is a tensor named by its canonical path; a compressed one is two, with `/values`
and `/indices` behind it. The metadata has, under `jaxsparse`, a JSON object with the
`format`, 1, and under `leaves` the `dtype` and `shape` of every leaf, and the `pattern`
and `axis` of the compressed ones. So each tensor is told of twice, and a file in which
the two differ is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxsparse._compressed import (
    POSITION_BITS,
    Compressed,
    compressed_shapes,
)
from jaxsparse._files.safetensors import (
    Header,
    SparseFileError,
    as_dtype,
    as_shape,
    is_storable,
    parse_object,
    read_tensor,
)
from jaxsparse._patterns import NM, as_pattern
from jaxsparse._trees import is_array


#: A leaf of which only shape and dtype are known.
Spec = jax.ShapeDtypeStruct | Compressed


def tensors_of(path: str, leaf: Any) -> dict[str, Any]:
    """The tensors of a leaf, or of its spec, by name."""
    if isinstance(leaf, Compressed):
        return {f"{path}/values": leaf.values, f"{path}/indices": leaf.indices}
    return {path: leaf}


def tensors_by_name(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of all leaves."""
    return {
        name: x
        for path, leaf in leaves.items()
        for name, x in tensors_of(path, leaf).items()
    }


def check_leaves(leaves: Mapping[str, Any]) -> None:
    """Raises unless every leaf can be stored under its path."""
    seen = {"__metadata__"}
    for path, leaf in leaves.items():
        if isinstance(leaf, Compressed):
            _check_compressed(path, leaf)
        for name, x in tensors_of(path, leaf).items():
            if not is_array(x) or not is_storable(x.dtype):
                kind = f"dtype {x.dtype}" if is_array(x) else repr(x)
                raise TypeError(
                    f"leaf {path!r} has {kind}, which safetensors files do not have: "
                    "save arrays of floats, integers or bools"
                )
            if name in seen:
                raise ValueError(f"two tensors have the name {name!r}: rename a leaf")
            seen.add(name)


def _check_compressed(path: str, leaf: Compressed) -> None:
    arrays = leaf.values, leaf.indices
    there = tuple(tuple(x.shape) for x in arrays)
    wanted = compressed_shapes(leaf.shape, leaf.pattern, leaf.axis)
    if there != wanted or leaf.indices.dtype != jnp.uint8:
        raise ValueError(
            f"leaf {path!r} of shape {leaf.shape} is compressed, with values and "
            f"indices of shapes {there} and indices of {leaf.indices.dtype}; {wanted} "
            "and uint8 belong together: map over values alone, as in "
            "dataclasses.replace(leaf, values=...)"
        )


def describe(leaves: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a file with these leaves."""
    told = {"format": 1, "leaves": {p: _described(x) for p, x in leaves.items()}}
    return {"jaxsparse": json.dumps(told, separators=(",", ":"))}


def read_specs(header: Header) -> dict[str, Spec]:
    """The leaves of a file by path, checked against its tensors.

    Raises:
      SparseFileError: metadata and tensors do not say the same.
    """
    if not has_leaf_metadata(header):
        cause = "its metadata has no entry 'jaxsparse': save_sparse did not write it"
        raise SparseFileError(header.path, cause)
    told = parse_object(header.path, header.metadata["jaxsparse"])
    if told.keys() != {"format", "leaves"} or told["format"] != 1:
        cause = "its metadata are not of format 1: it may need a later jaxsparse"
        raise SparseFileError(header.path, cause)
    try:
        specs = {path: _spec(leaf) for path, leaf in told["leaves"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        cause = f"its metadata are not valid: {error!r}"
        raise SparseFileError(header.path, cause) from error
    promised = {name: (x.shape, x.dtype) for name, x in tensors_by_name(specs).items()}
    there = {name: (x.shape, x.dtype) for name, x in header.entries.items()}
    for name in sorted(promised.keys() | there.keys()):
        if promised.get(name) != there.get(name):
            raise SparseFileError(
                header.path,
                f"tensor {name!r} is {there.get(name)}, by the metadata it is "
                f"{promised.get(name)}",
            )
    return specs


def tensor_specs(header: Header) -> dict[str, Spec]:
    """The tensors of a file that need not be ours, each a leaf, by name."""
    return {
        name: jax.ShapeDtypeStruct(entry.shape, entry.dtype)
        for name, entry in header.entries.items()
    }


def has_leaf_metadata(header: Header) -> bool:
    """Whether the metadata of a file tell of leaves."""
    return "jaxsparse" in header.metadata


def read_leaf(header: Header, path: str, spec: Spec) -> Array | Compressed:
    """Reads one leaf.

    Raises:
      SparseFileError: the file has changed, or JAX would not keep the dtype.
    """
    if jax.dtypes.canonicalize_dtype(spec.dtype) != spec.dtype:
        cause = (
            f"leaf {path!r} has dtype {spec.dtype}: enable jax_enable_x64 to load it"
        )
        raise SparseFileError(header.path, cause)
    arrays = [jnp.asarray(read_tensor(header, name)) for name in tensors_of(path, spec)]
    if isinstance(spec, Compressed):
        return replace(spec, values=arrays[0], indices=arrays[1])
    return arrays[0]


def _described(leaf: Any) -> dict[str, Any]:
    told = {"dtype": jnp.dtype(leaf.dtype).name, "shape": list(leaf.shape)}
    if isinstance(leaf, Compressed):
        told |= {"pattern": str(leaf.pattern), "axis": leaf.axis}
    return told


def _spec(told: Mapping[str, Any]) -> Spec:
    shape, dtype = as_shape(told["shape"]), as_dtype(told["dtype"])
    if told.keys() == {"dtype", "shape"}:
        return jax.ShapeDtypeStruct(shape, dtype)
    if told.keys() != {"dtype", "shape", "pattern", "axis"}:
        raise ValueError(f"a leaf has the keys {list(told)}")
    pattern, axis = as_pattern(told["pattern"]), told["axis"]
    if not isinstance(pattern, NM) or pattern.m not in POSITION_BITS:
        raise ValueError(f"a leaf has the pattern {told['pattern']!r}")
    if type(axis) is not int or not -len(shape) <= axis < 0 or shape[axis] % pattern.m:
        raise ValueError(f"a leaf of shape {shape} has {pattern} along axis {axis!r}")
    values, indices = compressed_shapes(shape, pattern, axis)
    return Compressed(
        jax.ShapeDtypeStruct(values, dtype),
        jax.ShapeDtypeStruct(indices, jnp.dtype("uint8")),
        pattern,
        axis,
    )
