"""Checksums of the tensors of a file, which detect damaged bytes.

The metadata of a file have a JSON object under `jaxsparse.crc32`: the CRC-32 of the
bytes of each tensor by its name, and that of the metadata's entry `jaxsparse` under
`__metadata__`, each as eight hexadecimal digits. CRC-32 detects every change of up to
32 consecutive bits; it is no protection against intent.
"""

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from jaxsparse._files.parse import SparseFileError, is_text_map, parse_object


#: The entry of a file's metadata that has the checksums.
CHECKSUMS = "jaxsparse.crc32"

_OF_METADATA = "__metadata__"


def checksum(data: bytes | memoryview) -> str:
    """Returns the CRC-32 of bytes."""
    return f"{zlib.crc32(data):08x}"


def with_checksums(
    metadata: Mapping[str, str], checksums: Mapping[str, str]
) -> dict[str, str]:
    """Returns the metadata of a file whose tensors have these checksums.

    The length of their JSON does not depend on the values of the checksums.
    """
    of_metadata = checksum(metadata.get("jaxsparse", "").encode())
    entry = json.dumps({**checksums, _OF_METADATA: of_metadata}, separators=(",", ":"))
    return {**metadata, CHECKSUMS: entry}


def read_checksums(
    path: Path, metadata: Mapping[str, str], names: Iterable[str]
) -> dict[str, str]:
    """Returns the checksums in the metadata of a file, empty if it has none.

    Raises:
      SparseFileError: they are not those of the tensors of these names.
    """
    if CHECKSUMS not in metadata:
        return {}
    entry = parse_object(path, metadata[CHECKSUMS])
    if not is_text_map(entry) or entry.keys() != {*names, _OF_METADATA}:
        raise SparseFileError(path, "its checksums are not those of its tensors")
    return entry


def check_tensor(
    path: Path, name: str, data: bytes | memoryview, checksums: Mapping[str, str]
) -> None:
    """Checks the bytes of a tensor, if the file has checksums.

    Raises:
      SparseFileError: the bytes are not those that were saved.
    """
    if checksums and checksum(data) != checksums[name]:
        cause = (
            f"the bytes of tensor {name!r} do not match their checksum: the file is "
            "damaged, or another program changed it; verify=False loads it as it is"
        )
        raise SparseFileError(path, cause)


def check_metadata(
    path: Path, metadata: Mapping[str, str], checksums: Mapping[str, str]
) -> None:
    """Checks what the metadata say of the leaves, if the file has checksums.

    Raises:
      SparseFileError: the metadata are not those that were saved.
    """
    text = metadata.get("jaxsparse", "")
    if checksums and checksum(text.encode()) != checksums[_OF_METADATA]:
        cause = (
            "its metadata do not match their checksum: the file is damaged, or another "
            "program changed it; verify=False loads it as it is"
        )
        raise SparseFileError(path, cause)
