"""The safetensors format: a JSON header, then the bytes of the tensors.

The first eight bytes are the length of the header, little-endian. The header maps each
name to a dtype, a shape, and the begin and end of its bytes, counted from the end of
the header. The bytes are little-endian, in C order, without gaps. See
https://github.com/huggingface/safetensors#format. The safetensors package is not used:
it cannot read float8 into NumPy, and its errors do not name the file.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from jaxsparse._files.checksums import (
    check_tensor,
    checksum,
    read_checksums,
    with_checksums,
)
from jaxsparse._files.parse import SparseFileError, is_text_map, parse_object


_NAMES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}
_DTYPES = {name: jnp.dtype(dtype) for dtype, name in _NAMES.items()}

#: The limits of NumPy.
_MAX_AXES, _MAX_BYTES = 64, 2**63

#: The limit of the safetensors package.
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
      dtype: its dtype.
      shape: its shape.
      start: the offset of its first byte in the file.
    """

    dtype: jnp.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """The header of a file.

    Attributes:
      path: the path of the file.
      entries: the tensors of the file by name.
      metadata: the metadata of the file.
      state: identifies the contents of the file, to detect later changes.
      checksums: the checksum of each tensor by name, and that of the metadata; empty
        if the file has none, or they are not to be verified.
    """

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    state: tuple[int, ...]
    checksums: Mapping[str, str]


def is_storable(dtype: Any) -> bool:
    """Returns whether the format can store a dtype; JAX's extended dtypes it cannot."""
    return dtype.name in _NAMES


def write_tensors(
    file: BinaryIO,
    specs: Mapping[str, Any],
    read: Callable[[str], Any],
    metadata: Mapping[str, str],
    *,
    checksums: bool,
) -> None:
    """Writes a whole file; each tensor is read when its bytes are next.

    Args:
      file: the file to write, which is empty.
      specs: by name, objects with the shape and the dtype of each tensor.
      read: returns the tensor of a name, as an array of JAX or NumPy.
      metadata: the metadata of the file.
      checksums: whether to store a checksum of each tensor in the metadata.
    """
    # With wide dtypes first, all tensors are aligned.
    ordered = dict(sorted(specs.items(), key=lambda item: -item[1].dtype.itemsize))
    sums = dict.fromkeys(ordered, "0" * 8)  # until the tensors were read
    file.write(
        _header(ordered, with_checksums(metadata, sums) if checksums else metadata)
    )
    for name in ordered:
        flat = np.ascontiguousarray(np.asarray(read(name)).reshape(-1))
        if not flat.dtype.isnative:
            flat = flat.astype(flat.dtype.newbyteorder("<"))
        data = flat.view(np.uint8).data
        file.write(data)
        if checksums:
            sums[name] = checksum(data)
        del flat, data  # frees the tensor before the next one is read
    if checksums:
        file.seek(0)
        file.write(_header(ordered, with_checksums(metadata, sums)))


def _header(ordered: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Returns all that comes before the bytes of the tensors, which are in order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, x in ordered.items():
        start, end = end, end + math.prod(x.shape) * x.dtype.itemsize
        header[name] = {
            "dtype": _NAMES[x.dtype.name],
            "shape": list(x.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_header(path: Path) -> Header:
    """Reads and checks the header of a file.

    Raises:
      SparseFileError: the file cannot be read, the header is invalid, or the tensors do
        not exactly fill the rest of the file.
    """
    try:
        with open(path, "rb") as file:
            state = _state(file)
            size = os.fstat(file.fileno()).st_size
            start = file.read(9)
            length = int.from_bytes(start[:8], "little")
            _check_start(path, start[8:], length, size)
            text = start[8:] + file.read(length - 1)
    except OSError as error:
        raise SparseFileError(path, error) from error
    header = parse_object(path, text)
    metadata = header.pop("__metadata__", {})
    if not is_text_map(metadata):
        raise SparseFileError(path, "its metadata are not a map of strings")
    entries = {}
    for name, value in header.items():
        try:
            entries[name] = _entry(value, 8 + length)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            cause = f"the header's entry of {name!r} is not valid: {error}"
            raise SparseFileError(path, cause) from error
    _check_contiguous(path, entries, 8 + length, size)
    checksums = read_checksums(path, metadata, entries)
    return Header(path, entries, metadata, state, checksums)


def read_tensor(header: Header, name: str) -> np.ndarray:
    """Reads one tensor, and only that, if the file has not changed.

    The caller owns the array and may write to it.

    Raises:
      SparseFileError: the file has changed, cannot be read, or is damaged.
      MemoryError: there is too little memory for the tensor.
    """
    entry, path = header.entries[name], header.path
    try:
        with open(path, "rb") as file:
            if _state(file) != header.state:
                raise SparseFileError(path, "it has changed since it was opened")
            file.seek(entry.start)
            data = np.empty(entry.nbytes, np.uint8)
            size = file.readinto(data.data)
    except OSError as error:
        raise SparseFileError(path, error) from error
    except MemoryError as error:
        raise MemoryError(
            f"{path}: there is too little memory for {name!r} of shape {entry.shape}, "
            f"{entry.nbytes} bytes"
        ) from error
    if size != entry.nbytes:
        raise SparseFileError(path, f"it ends within {name!r}")
    check_tensor(path, name, data.data, header.checksums)
    return data.view(entry.dtype).reshape(entry.shape)


def as_dtype(name: Any) -> jnp.dtype:
    """Returns the dtype of a name; raises `ValueError` if the format lacks it."""
    if name not in _NAMES:
        raise ValueError(f"{name!r} is not a dtype of this format")
    return jnp.dtype(name)


def as_shape(value: Any) -> tuple[int, ...]:
    """Returns a list of sizes as a tuple; raises `ValueError` if it is not one."""
    if not isinstance(value, list) or not all(
        type(size) is int and size >= 0 for size in value
    ):
        raise ValueError(f"{value!r} is not a list of sizes")
    return tuple(value)


def _check_start(path: Path, first: bytes, length: int, size: int) -> None:
    """Checks the length and the first byte of a header against the size of the file."""
    begins_well = first == b"{" and length <= _MAX_HEADER
    cause = "" if begins_well else "its first bytes are not a safetensors header"
    if length > max(size - 8, 0) or size < 8:
        # A header that begins well is that of a file that was not written to its end.
        separator = ": " if cause else ""
        cause += f"{separator}{size} bytes cannot contain a header of {length}"
    if cause:
        raise SparseFileError(path, cause)


def _check_contiguous(
    path: Path, entries: Mapping[str, Entry], start: int, end: int
) -> None:
    """Checks that tensors follow each other without gaps, from `start` to `end`."""
    offset = start
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        # An empty tensor may have any offset.
        if entry.start != offset and entry.nbytes:
            cause = (
                f"{name!r} begins at byte {entry.start}, but the bytes before it end "
                f"at {offset}"
            )
            raise SparseFileError(path, cause)
        offset = max(offset, entry.start + entry.nbytes)
    if offset != end:
        cause = f"it has {end} bytes, but its header describes {offset}"
        raise SparseFileError(path, cause)


def _entry(value: Any, data: int) -> Entry:
    if value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"it has the keys {list(value)}")
    start, end = as_shape(value["data_offsets"])
    dtype, shape = value["dtype"], as_shape(value["shape"])
    if dtype not in _DTYPES:
        raise ValueError(f"jaxsparse cannot read dtype {dtype}")
    entry = Entry(_DTYPES[dtype], shape, data + start)
    # NumPy's limit is for the product of the sizes that are not zero.
    nbytes = math.prod(size or 1 for size in shape) * entry.dtype.itemsize
    if len(shape) > _MAX_AXES or nbytes >= _MAX_BYTES:
        raise ValueError(f"no array can have the shape {list(shape)}")
    if end - start != entry.nbytes:
        raise ValueError(f"{end - start} bytes for {entry.dtype}{list(entry.shape)}")
    return entry


def _state(file: BinaryIO) -> tuple[int, ...]:
    stat = os.fstat(file.fileno())
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
