"""Trees as files: safetensors, PyTorch's layout, Orbax."""

from jaxsparse._files.leaves import (
    Spec as Spec,
    read_leaf as read_leaf,
)
from jaxsparse._files.model_folder import (
    is_other_format as is_other_format,
    left_out as left_out,
    weights_of as weights_of,
    write_model_folder as write_model_folder,
)
from jaxsparse._files.orbax import (
    is_orbax_checkpoint as is_orbax_checkpoint,
    open_orbax_arrays as open_orbax_arrays,
    read_orbax_array as read_orbax_array,
    write_orbax_arrays as write_orbax_arrays,
)
from jaxsparse._files.parse import (
    SparseFileError as SparseFileError,
    parse_object as parse_object,
)
from jaxsparse._files.rewrite import (
    rewrite_tensors as rewrite_tensors,
)
from jaxsparse._files.safetensors import (
    Header as Header,
    read_tensor as read_tensor,
)
from jaxsparse._files.sharded_files import (
    index_of as index_of,
    stale_files as stale_files,
    without_index as without_index,
)
from jaxsparse._files.sparse_file import (
    SparseFile as SparseFile,
    load_sparse as load_sparse,
    open_sparse as open_sparse,
    open_tensors as open_tensors,
    save_leaves as save_leaves,
    save_sparse as save_sparse,
)
from jaxsparse._files.spill import (
    spilled_tensors as spilled_tensors,
)
from jaxsparse._files.torch_file import (
    TorchFile as TorchFile,
    open_torch as open_torch,
    save_torch as save_torch,
)
from jaxsparse._files.torch_layout import (
    from_torch_layout as from_torch_layout,
    to_torch_layout as to_torch_layout,
)
