"""Folders of Hugging Face's libraries: the weights of a model and all its other files.

`from_pretrained` loads them. The weights are `model.safetensors`, or several files that
`model.safetensors.index.json` names.
"""

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath

import numpy as np

from jaxsparse._files.atomic_write import write_file
from jaxsparse._files.new_folder import copy_folder, new_folder
from jaxsparse._files.rewrite import with_shapes, write_changed_file
from jaxsparse._files.safetensors import Header
from jaxsparse._files.sharded_files import (
    index_metadata,
    index_of,
    index_text,
    without_index,
)


#: The weights of models, of the parts of diffusion pipelines, and of adapters.
_WEIGHTS = ("model", "diffusion_pytorch_model", "adapter_model")

#: Files of weights in other formats, by their names in any folder and in the first.
_OTHER_FORMATS = re.compile(
    r".*\.(onnx|onnx_data|gguf|ggml|h5|msgpack|ot|tflite|mlmodel|ckpt)(\.index\.json)?"
    r"|openvino_.*\.(bin|xml)|consolidated.*\.(pth?|bin|safetensors)"
)
_OTHER_MODEL_FILES = re.compile(
    r"(pytorch_)?model.*\.(bin|pth?)(\.index\.json)?"
    r"|.*\.safetensors(\.index\.json)?"
)

#: What tools keep in a folder; it is not part of a model.
_NOT_OF_A_MODEL = {".git", ".cache"}


def weights_of(folder: Path) -> Path | None:
    """Returns the path of the safetensors file of a folder, or None.

    If there are several files and their index, it is the path of the index without
    `.index.json`.
    """
    present = {
        without_index(path)
        for pattern in ("*.safetensors", "*.safetensors.index.json")
        for path in folder.glob(pattern)
        if path.is_file()
    }
    for name in _WEIGHTS:
        if (path := folder / f"{name}.safetensors") in present:
            return path
    return present.pop() if len(present) == 1 else None


def left_out(folder: Path, headers: Sequence[Header]) -> list[str]:
    """Returns the files of a folder that its changed copy is without.

    These are the files with the same weights in other formats, which would not be
    changed, and what tools keep there.

    Args:
      folder: the folder.
      headers: the headers of its weights.

    Returns:
      Paths in the folder, with a `/` at the end of those of folders.
    """
    weights = _files_of_weights(folder, headers)
    names = [f"{name}/" for name in _NOT_OF_A_MODEL if (folder / name).is_dir()]
    paths = [
        Path(parent, name).relative_to(folder)
        for parent, _, files in os.walk(folder)
        for name in files
    ]
    names += [
        path.as_posix()
        for path in paths
        if path.parts[0] not in _NOT_OF_A_MODEL and is_other_format(path, weights)
    ]
    return sorted(names)


def is_other_format(path: PurePath, weights: Collection[str]) -> bool:
    """Returns whether a file has weights in another format than those that are read.

    Args:
      path: the path of the file in its folder.
      weights: the names of the files of the weights that are read.

    >>> names = ("config.json", "pytorch_model.bin", "2_Dense/pytorch_model.bin")
    >>> [is_other_format(PurePath(x), ("model.safetensors",)) for x in names]
    [False, True, False]
    """
    if _OTHER_FORMATS.fullmatch(path.name):
        return True
    if len(path.parts) > 1 or path.name in weights:
        return False  # the weights of other modules
    return _OTHER_MODEL_FILES.fullmatch(path.name) is not None


def write_model_folder(
    folder: Path,
    headers: Sequence[Header],
    output: Path,
    change: Callable[[str, np.ndarray], np.ndarray],
    *,
    replace: bool,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Writes a changed copy of a folder, which appears when it is complete.

    Everything else is copied, but for the files in `left_out`. In the index of several
    files `total_size` follows the shapes.

    Args:
      folder: the folder to read.
      headers: the headers of its weights.
      output: the folder to write, or a link to it.
      change: returns the tensor to write, given the name of a tensor and the tensor,
        which it may write to. The result must have the same dtype, and the same shape
        but for those in `shapes`.
      replace: whether the output may exist; it is then replaced.
      shapes: the new shapes of tensors by name.
      texts: the new texts of other files by name.

    Raises:
      FileExistsError: the output exists and is not to be replaced.
      SparseFileError: a file of the folder cannot be read, or is a link to a folder.
    """
    skipped = {*left_out(folder, headers), *(header.path.name for header in headers)}

    def ignore(parent: str, names: list[str]) -> list[str]:
        inner = Path(parent).relative_to(folder)
        paths = {name: (inner / name).as_posix() for name in names}
        return [
            name
            for name, path in paths.items()
            if path in skipped or f"{path}/" in skipped
        ]

    with new_folder(output, replace=replace) as pending:
        copy_folder(folder, pending, ignore)
        for header in headers:
            write = partial(write_changed_file, header, change, shapes=shapes)
            write_file(pending / header.path.name, write)
        index = _new_index(folder, headers, shapes)
        for name, text in {**index, **(texts or {})}.items():
            (pending / name).write_text(text, "utf-8")


def _new_index(
    folder: Path,
    headers: Sequence[Header],
    shapes: Mapping[str, tuple[int, ...]] | None,
) -> dict[str, str]:
    """Returns the name and the text of the index if tensors change their shapes."""
    weights = weights_of(folder)
    if not shapes or weights is None or not index_of(weights).exists():
        return {}
    sizes = [
        {name: entry.nbytes for name, entry in with_shapes(header, shapes).items()}
        for header in headers
    ]
    names = [header.path.name for header in headers]
    return {index_of(weights).name: index_text(names, sizes, index_metadata(weights))}


def _files_of_weights(folder: Path, headers: Sequence[Header]) -> set[str]:
    names = {header.path.name for header in headers}
    weights = weights_of(folder)
    return names if weights is None else {*names, index_of(weights).name}
