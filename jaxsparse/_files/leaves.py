"""The leaves of a tree in a safetensors file: their tensors and their metadata.

A leaf is stored as a tensor named by its canonical path; a compressed leaf is stored as
two, with `/values` and `/indices` appended to the path, and if it is quantized as a
third, with `/scales`. The metadata of the file have a JSON object under `jaxsparse`:
`format`, which is 2, and `leaves`, with the `dtype` and `shape` of every leaf, the
`pattern` and `axis` of the compressed ones, and for quantized ones the dtype of their
values, `quantized`, and the shape of their scales, `scales`. So each
tensor is described twice, and a file in which the two differ is rejected. Files of
format 2 have checksums; those of format 1 have none.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array

from jaxsparse._compressed import (
    POSITION_BITS,
    Compressed,
    array_fault,
    code_fault,
    compressed_shapes,
    require_fitting_arrays,
)
from jaxsparse._files.checksums import CHECKSUMS, check_metadata
from jaxsparse._files.parse import SparseFileError, parse_object
from jaxsparse._files.safetensors import (
    Header,
    as_dtype,
    as_shape,
    is_storable,
    read_tensor,
)
from jaxsparse._patterns import NM, as_pattern
from jaxsparse._trees import is_abstract, is_array


#: The shape and dtype of a leaf. A `Compressed` has them in place of its two arrays.
Spec = jax.ShapeDtypeStruct | Compressed


def tensors_of(path: str, leaf: Any) -> dict[str, Any]:
    """Returns the tensors of a leaf, or the specs of its tensors, by name."""
    if isinstance(leaf, Compressed):
        return {f"{path}/{field}": x for field, x in _arrays_of(leaf).items()}
    return {path: leaf}


def _arrays_of(leaf: Compressed) -> dict[str, Any]:
    """Returns the arrays of a compressed leaf by field."""
    arrays = {"values": leaf.values, "indices": leaf.indices}
    return arrays | {"scales": leaf.scales} if leaf.is_quantized else arrays


def tensors_by_name(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tensors of all leaves by name."""
    return {
        name: x
        for path, leaf in leaves.items()
        for name, x in tensors_of(path, leaf).items()
    }


def check_leaves(leaves: Mapping[str, Any]) -> None:
    """Checks that every leaf can be stored under its path.

    Raises:
      ValueError: two tensors have the same name, or the arrays of a compressed leaf do
        not match or have impossible codes.
      TypeError: a leaf is not an array, has no values, or the format does not have its
        dtype.
    """
    names = {"__metadata__"}
    for path, leaf in leaves.items():
        if isinstance(leaf, Compressed):
            require_fitting_arrays(leaf, f"leaf {path!r}")
        for name, x in tensors_of(path, leaf).items():
            if not is_array(x) or not is_storable(x.dtype):
                content = f"has dtype {x.dtype}" if is_array(x) else f"is {x!r}"
                raise TypeError(
                    f"leaf {path!r} {content}, which safetensors files cannot store: "
                    "save arrays of floats, integers or bools, for example "
                    "equinox.filter(model, equinox.is_array)"
                )
            if is_abstract(x) or isinstance(x, Tracer):
                raise TypeError(
                    f"leaf {path!r} of shape {tuple(leaf.shape)} is a "
                    f"{type(x).__name__} without values: save arrays, outside jax.jit "
                    "and jax.eval_shape"
                )
            if name in names:
                raise ValueError(f"two tensors have the name {name!r}: rename a leaf")
            names.add(name)
        if isinstance(leaf, Compressed) and (fault := code_fault(leaf)):
            raise ValueError(_describe_fault(path, leaf, fault))


def _describe_fault(path: str, leaf: Compressed, fault: str) -> str:
    return (
        f"leaf {path!r} of shape {leaf.shape}, {leaf.pattern} along axis "
        f"{leaf.axis + leaf.ndim}: {fault}: its indices are damaged, or those of "
        "another pattern"
    )


def leaf_metadata(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Returns the metadata of a file with these leaves."""
    described = {path: _describe(leaf) for path, leaf in leaves.items()}
    entry = {"format": 2, "leaves": described}
    return {"jaxsparse": json.dumps(entry, separators=(",", ":"))}


def read_specs(header: Header) -> dict[str, Spec]:
    """Returns the specs of the leaves of a file by path.

    Raises:
      SparseFileError: the metadata are missing or invalid, or do not match the tensors.
    """
    if not has_leaf_metadata(header):
        cause = "its metadata have no entry 'jaxsparse': save_sparse did not write it"
        raise SparseFileError(header.path, cause)
    entry = parse_object(header.path, header.metadata["jaxsparse"])
    if entry.keys() != {"format", "leaves"} or entry["format"] not in (1, 2):
        cause = "its metadata are not of format 1 or 2: it may need a later jaxsparse"
        raise SparseFileError(header.path, cause)
    if entry["format"] == 2 and CHECKSUMS not in header.metadata:
        raise SparseFileError(header.path, "its metadata have no checksums")
    try:
        specs = {path: _spec(leaf) for path, leaf in entry["leaves"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        cause = f"its metadata are not valid: {error!r}"
        raise SparseFileError(header.path, cause) from error
    expected = {name: (x.shape, x.dtype) for name, x in tensors_by_name(specs).items()}
    actual = {name: (x.shape, x.dtype) for name, x in header.entries.items()}
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            raise SparseFileError(
                header.path,
                f"tensor {name!r} is {actual.get(name)}, but its metadata say "
                f"{expected.get(name)}",
            )
    check_metadata(header.path, header.metadata, header.checksums)
    return specs


def tensor_specs(header: Header) -> dict[str, Spec]:
    """Returns the spec of every tensor of a file by name, ignoring leaf metadata."""
    return {
        name: jax.ShapeDtypeStruct(entry.shape, entry.dtype)
        for name, entry in header.entries.items()
    }


def has_leaf_metadata(header: Header) -> bool:
    """Returns whether the metadata of a file describe leaves."""
    return "jaxsparse" in header.metadata


def read_leaf(header: Header, path: str, spec: Spec) -> Array | Compressed:
    """Reads one leaf.

    Raises:
      SparseFileError: the file has changed or is damaged, the codes of a compressed
        leaf are impossible, or its dtype needs `jax_enable_x64`.
    """
    if jax.dtypes.canonicalize_dtype(spec.dtype) != spec.dtype:
        cause = (
            f"leaf {path!r} has dtype {spec.dtype}: enable jax_enable_x64 to load it"
        )
        raise SparseFileError(header.path, cause)
    if not isinstance(spec, Compressed):
        return jnp.asarray(read_tensor(header, path))
    arrays = {
        field: jnp.asarray(read_tensor(header, f"{path}/{field}"))
        for field in _arrays_of(spec)
    }
    leaf = replace(spec, **arrays)
    if fault := code_fault(leaf):
        raise SparseFileError(header.path, _describe_fault(path, leaf, fault))
    return leaf


def _describe(leaf: Any) -> dict[str, Any]:
    fields = {"dtype": jnp.dtype(leaf.dtype).name, "shape": list(leaf.shape)}
    if isinstance(leaf, Compressed):
        fields |= {"pattern": str(leaf.pattern), "axis": leaf.axis}
        if leaf.is_quantized:
            scales = list(leaf.scales.shape)
            fields |= {"quantized": leaf.values.dtype.name, "scales": scales}
    return fields


def _spec(fields: Mapping[str, Any]) -> Spec:
    shape, dtype = as_shape(fields["shape"]), as_dtype(fields["dtype"])
    if fields.keys() == {"dtype", "shape"}:
        return jax.ShapeDtypeStruct(shape, dtype)
    is_quantized = "quantized" in fields
    quantized_keys = {"quantized", "scales"} if is_quantized else set()
    if fields.keys() != {"dtype", "shape", "pattern", "axis"} | quantized_keys:
        raise ValueError(f"a leaf has the keys {list(fields)}")
    pattern, axis = as_pattern(fields["pattern"]), fields["axis"]
    if not isinstance(pattern, NM) or pattern.m not in POSITION_BITS:
        raise ValueError(f"a leaf has the pattern {fields['pattern']!r}")
    if type(axis) is not int or not -len(shape) <= axis < 0 or shape[axis] % pattern.m:
        raise ValueError(f"a leaf of shape {shape} has {pattern} along axis {axis!r}")
    values, indices = compressed_shapes(shape, pattern, axis)
    stored = as_dtype(fields["quantized"]) if is_quantized else dtype
    spec = Compressed(
        jax.ShapeDtypeStruct(values, stored),
        jax.ShapeDtypeStruct(indices, jnp.dtype("uint8")),
        pattern,
        axis,
    )
    if not is_quantized:
        return spec
    scales = jax.ShapeDtypeStruct(as_shape(fields["scales"]), jnp.dtype("float32"))
    spec = replace(spec, scales=scales, quantized_from=dtype)
    if fault := array_fault(spec):
        raise ValueError(f"a leaf is compressed with {fault}")
    return spec
