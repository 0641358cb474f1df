"""Safetensors files in PyTorch's layout, as trees in Flax's layout."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Array

from jaxsparse._compressed import Compressed
from jaxsparse._files.leaves import Spec
from jaxsparse._files.sparse_file import SparseFile, open_tensors, save_leaves
from jaxsparse._files.torch_layout import Move, apply_move, flax_moves, to_torch_layout
from jaxsparse._trees import PyTree


if TYPE_CHECKING:
    _Leaves = Mapping[str, Array | Compressed]
else:
    _Leaves = Mapping  # without parameters: a check of types would read a leaf


@dataclass(frozen=True, eq=False)
class TorchFile(_Leaves):
    """The leaves of a file of PyTorch, by Flax's paths and in Flax's layout.

    Attributes:
      specs: the leaves as `jax.ShapeDtypeStruct`, or `Compressed` of such.
      names: the name of each leaf in the file.
      moves: for each leaf, the axes of the tensor that form each of its axes; None if
        they are the same.
      tensors: the file itself, in PyTorch's layout.
    """

    specs: Mapping[str, Spec]
    names: Mapping[str, str]
    moves: Mapping[str, Move | None]
    tensors: SparseFile

    def __getitem__(self, path: str) -> Array | Compressed:
        name = self.names[path]
        return apply_move(name, self.tensors[name], self.moves[path])

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def save_torch(
    path: str | os.PathLike[str],
    params: PyTree,
    *,
    like: Mapping[str, Any] | None = None,
    max_file_bytes: int = 5 * 10**9,
) -> None:
    """Saves a tree in Flax's layout as a file in that of PyTorch and Hugging Face.

    The tree is converted by `to_torch_layout` and saved like by `save_sparse`. Any
    library that reads safetensors can read the file, but a compressed leaf,
    `up.weight`, is stored as `up.weight/values` and `up.weight/indices`. For a file
    that other libraries can use, call `decompress_params` on the tree first.

    Args:
      path: the file to write. Its name must end in `.safetensors`, and its folder must
        exist.
      params: a tree of arrays and `Compressed`.
      like: the state dict that the tree came from, as in `to_torch_layout`. For a tree
        from `open_torch(source)`, pass `open_torch(source).tensors.specs`.
      max_file_bytes: a larger tree is split into several files, with an index.

    Raises:
      ValueError, TypeError: what `to_torch_layout` and `save_sparse` raise.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_torch(f"{folder}/a.safetensors", {"up": {"kernel": jnp.ones((16, 8))}})
    ...     print(open_tensors(f"{folder}/a.safetensors")["up.weight"].shape)
    (8, 16)
    """
    save_leaves(
        Path(path),
        to_torch_layout(params, like=like),
        max_file_bytes=max_file_bytes,
        metadata={"format": "pt"},
    )


def open_torch(path: str | os.PathLike[str], *, verify: bool = True) -> TorchFile:
    """Opens a safetensors file of PyTorch as a tree in Flax's layout.

    Each leaf is read and transposed on access. `from_torch_layout` documents names and
    layouts.

    Args:
      path: the file, `model.safetensors`; the index of several files is
        `model.safetensors.index.json`.
      verify: whether to compare each tensor with its checksum when it is read, if the
        file has checksums.

    Returns:
      A mapping from Flax's paths to leaves.

    Raises:
      FileNotFoundError: the path has neither a file nor an index.
      SparseFileError: a file or the index is invalid.
      ValueError: two tensors would have the same path.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_torch(f"{folder}/a.safetensors", {"up": {"kernel": jnp.ones((16, 8))}})
    ...     leaves = open_torch(f"{folder}/a.safetensors")
    ...     print(list(leaves), leaves["up/kernel"].shape)
    ['up/kernel'] (16, 8)
    """
    tensors = open_tensors(path, verify=verify)
    moves = flax_moves({name: tuple(x.shape) for name, x in tensors.specs.items()})
    return TorchFile(
        {
            path: apply_move(name, tensors.specs[name], move)
            for path, (name, move) in moves.items()
        },
        {path: name for path, (name, _) in moves.items()},
        {path: move for path, (_, move) in moves.items()},
        tensors,
    )
