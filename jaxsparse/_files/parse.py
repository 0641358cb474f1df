"""The error of an invalid file, and JSON that comes from files."""

import json
import os
from pathlib import Path
from typing import Any, TypeGuard


class SparseFileError(ValueError):
    """Raised for a file that is invalid or unexpected; names the file and the cause."""

    def __init__(self, path: os.PathLike[str], cause: object):
        super().__init__(f"{path}: {cause}")


def parse_object(path: Path, text: bytes | str) -> dict[str, Any]:
    """Parses a JSON object; `path` is named in errors.

    Raises:
      SparseFileError: it is not valid JSON, not an object, or has a duplicate key.
    """

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("it has a duplicate key")
        return dict(pairs)

    try:
        text = text if isinstance(text, str) else text.decode()
        parsed = json.loads(text, object_pairs_hook=to_dict)
    except (ValueError, RecursionError) as error:
        raise SparseFileError(path, f"it is not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise SparseFileError(path, "its JSON is not an object")
    return parsed


def is_text_map(value: Any) -> TypeGuard[dict[str, str]]:
    """Returns whether a value maps strings to strings."""
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
