"""Files in the layout of PyTorch and Hugging Face, for trees in Flax's."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Array, PyTree

from jaxsparse._compressed import Compressed
from jaxsparse._files.leaves import Spec
from jaxsparse._files.sparse_file import SparseFile, open_tensors, save_leaves
from jaxsparse._files.torch_layout import Move, apply_move, flax_moves, to_torch_layout


if TYPE_CHECKING:
    _Leaves = Mapping[str, Array | Compressed]
else:
    _Leaves = Mapping  # without parameters: a check of types would read a leaf


@dataclass(frozen=True, eq=False)
class TorchFile(_Leaves):
    """The leaves of a file of PyTorch, by Flax's paths and in Flax's layout.

    Attributes:
      specs: the leaves as `jax.ShapeDtypeStruct`, or `Compressed` of such.
      names: the name that each leaf has in the file.
      moves: how the axes of each leaf move.
      tensors: the file itself.
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

    What `to_torch_layout` makes of the tree is saved as `save_sparse` does it. Whoever
    reads safetensors reads its arrays; of a compressed leaf, `up.weight`, these are
    `up.weight/values` and `up.weight/indices`. Decompress the tree before, with
    `decompress_params`, for files that any library can load.

    Args:
      path: where to: a name that ends in `.safetensors`, in a folder that is there.
      params: a tree of arrays and `Compressed`.
      like: what the tree came from, as for `to_torch_layout`: of `open_torch(source)`
        it is `open_torch(source).tensors.specs`.
      max_file_bytes: a larger tree is split into several files, with an index.

    Raises:
      ValueError, TypeError: as `to_torch_layout` and `save_sparse` do.

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


def open_torch(path: str | os.PathLike[str]) -> TorchFile:
    """The leaves of a safetensors file of PyTorch by Flax's paths, in Flax's layout.

    Each leaf is read, and turned, when it is asked for; see `from_torch_layout` for
    names and layouts.

    Args:
      path: the file, `model.safetensors`; of several files the index is
        `model.safetensors.index.json`.

    Raises:
      FileNotFoundError: there is none.
      SparseFileError: a file or the index does not hold together.
      ValueError: two tensors would have one path.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_torch(f"{folder}/a.safetensors", {"up": {"kernel": jnp.ones((16, 8))}})
    ...     leaves = open_torch(f"{folder}/a.safetensors")
    ...     print(list(leaves), leaves["up/kernel"].shape)
    ['up/kernel'] (16, 8)
    """
    tensors = open_tensors(path)
    found = flax_moves({name: tuple(x.shape) for name, x in tensors.specs.items()})
    return TorchFile(
        {
            path: apply_move(name, tensors.specs[name], move)
            for path, (name, move) in found.items()
        },
        {path: name for path, (name, _) in found.items()},
        {path: move for path, (_, move) in found.items()},
        tensors,
    )
