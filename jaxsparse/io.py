"""Sparse trees as safetensors files, with n:m weights stored without their zeros.

`save_sparse` and `load_sparse` are for whole trees, `open_sparse` for single leaves,
and `open_tensors` for files of other programs. `open_torch`, `save_torch`,
`to_torch_layout` and `from_torch_layout` are for PyTorch's layout.
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
