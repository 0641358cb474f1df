"""The safetensors format: a header of JSON, then the bytes of the tensors.

Eight bytes give the header's length, lowest first. The header maps each name to a
dtype, a shape and where its bytes begin and end behind the header. The bytes are
little-endian, in C order, and leave no gap. See
https://github.com/huggingface/safetensors#format. Its package is not used, since it
reads no float8 into NumPy, and a file that does not hold together is to be refused with
its name and the cause.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import jax.numpy as jnp
import numpy as np


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

#: What NumPy has room for.
_MAX_AXES, _MAX_BYTES = 64, 2**63

#: Longer headers are refused, as by the package.
_MAX_HEADER = 100_000_000


class SparseFileError(ValueError):
    """A file does not hold what it should: names the file and the cause."""

    def __init__(self, path: os.PathLike[str], cause: object):
        super().__init__(f"{path}: {cause}")


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its dtype and shape, and where its bytes begin."""

    dtype: jnp.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """What the header of a file says, and which state of the file said so."""

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    state: tuple[int, ...]


def is_storable(dtype: Any) -> bool:
    """Whether the format has a name for a dtype, which may be one of JAX's own."""
    return dtype.name in _NAMES


def file_chunks(
    specs: Mapping[str, Any],
    read: Callable[[str], Any],
    metadata: Mapping[str, str],
) -> Iterator[bytes | memoryview]:
    """A file, chunk by chunk: one tensor after the other is asked for and written.

    Args:
      specs: what has the shape and the dtype of each tensor, by name.
      read: gives the tensor of a name, as an array of JAX or NumPy.
      metadata: what else the header is to say.
    """
    # Wide dtypes first: then all of them are aligned.
    ordered = sorted(specs.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, x in ordered:
        start, end = end, end + math.prod(x.shape) * x.dtype.itemsize
        header[name] = {
            "dtype": _NAMES[x.dtype.name],
            "shape": list(x.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name, _ in ordered:
        flat = np.ascontiguousarray(np.asarray(read(name)).reshape(-1))
        if not flat.dtype.isnative:
            flat = flat.astype(flat.dtype.newbyteorder("<"))
        yield flat.view(np.uint8).data
        del flat  # before the next one is read


def read_header(path: Path) -> Header:
    """Reads and checks the header: what it promises is there, and nothing else.

    Raises:
      SparseFileError: in all other cases.
    """
    try:
        with open(path, "rb") as file:
            state = _state(file)
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise SparseFileError(
                    path, f"{size} bytes do not hold a header of {length}"
                )
            header = parse_object(path, file.read(length))
    except OSError as error:
        raise SparseFileError(path, error) from error
    metadata = header.pop("__metadata__", {})
    if not is_text_map(metadata):
        raise SparseFileError(path, "its metadata is not a map of strings")
    entries = {}
    for name, value in header.items():
        try:
            entries[name] = _entry(value, 8 + length)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            cause = f"the header's entry of {name!r} cannot be read: {error}"
            raise SparseFileError(path, cause) from error
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        # Empty tensors may begin where another one does.
        if entry.start != end and entry.nbytes:
            cause = (
                f"{name!r} begins at byte {entry.start}, what is before ends at {end}"
            )
            raise SparseFileError(path, cause)
        end = max(end, entry.start + entry.nbytes)
    if end != size:
        raise SparseFileError(path, f"it has {size} bytes, its header tells of {end}")
    return Header(path, entries, metadata, state)


def read_tensor(header: Header, name: str) -> np.ndarray:
    """Reads one tensor, and nothing else, of a file that has not changed since.

    The array is the caller's own and may be written to.

    Raises:
      SparseFileError: the file has changed or cannot be read.
      MemoryError: there is too little for the tensor.
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
            f"{path}: there is no memory for {name!r} of shape {entry.shape}, "
            f"{entry.nbytes} bytes"
        ) from error
    if size != entry.nbytes:
        raise SparseFileError(path, f"it ends within {name!r}")
    return data.view(entry.dtype).reshape(entry.shape)


def parse_object(path: Path, text: bytes | str) -> dict[str, Any]:
    """Reads a JSON object that has no key twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key is there twice")
        return dict(pairs)

    try:
        text = text if isinstance(text, str) else text.decode()
        parsed = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise SparseFileError(path, f"it is not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise SparseFileError(path, "its JSON is not an object")
    return parsed


def is_text_map(value: Any) -> TypeGuard[dict[str, str]]:
    """Whether this maps strings to strings."""
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def as_dtype(name: Any) -> jnp.dtype:
    """The dtype of this name, if the format has it."""
    if name not in _NAMES:
        raise ValueError(f"{name!r} is no dtype of this format")
    return jnp.dtype(name)


def as_shape(value: Any) -> tuple[int, ...]:
    """A list of sizes."""
    if not isinstance(value, list) or not all(
        type(size) is int and size >= 0 for size in value
    ):
        raise ValueError(f"{value!r} is no list of sizes")
    return tuple(value)


def _entry(value: Any, data: int) -> Entry:
    if value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"it has the keys {list(value)}")
    start, end = as_shape(value["data_offsets"])
    dtype, shape = value["dtype"], as_shape(value["shape"])
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype} is not one that jaxsparse reads")
    entry = Entry(_DTYPES[dtype], shape, data + start)
    # Of an empty array, too, the sizes that are not zero count.
    room = math.prod(size or 1 for size in shape) * entry.dtype.itemsize
    if len(shape) > _MAX_AXES or room >= _MAX_BYTES:
        raise ValueError(f"no array has the shape {list(shape)}")
    if end - start != entry.nbytes:
        raise ValueError(f"{end - start} bytes for {entry.dtype}{list(entry.shape)}")
    return entry


def _state(file) -> tuple[int, ...]:
    stat = os.fstat(file.fileno())
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
