"""Sparse trees as files: safetensors, in which n:m weights are without their zeros.

`save_sparse`, `load_sparse`, and `open_sparse` for single leaves; `open_tensors` for
the files of others. PyTorch's layout of them: `open_torch`, `save_torch`,
`to_torch_layout` and `from_torch_layout`.
"""

from jaxsparse._files import (
    SparseFile as SparseFile,
    SparseFileError as SparseFileError,
    TorchFile as TorchFile,
    from_torch_layout as from_torch_layout,
    load_sparse as load_sparse,
    open_sparse as open_sparse,
    open_tensors as open_tensors,
    open_torch as open_torch,
    save_sparse as save_sparse,
    save_torch as save_torch,
    to_torch_layout as to_torch_layout,
)
