"""Weights stored without their zeros, and products with them."""

from jaxsparse._compressed.accelerate import (
    accelerate as accelerate,
)
from jaxsparse._compressed.check_arrays import (
    array_fault as array_fault,
    require_fitting_arrays as require_fitting_arrays,
    require_stored_values as require_stored_values,
)
from jaxsparse._compressed.check_codes import (
    code_fault as code_fault,
)
from jaxsparse._compressed.compress import (
    compress as compress,
)
from jaxsparse._compressed.compress_params import (
    compress_params as compress_params,
    decompress_params as decompress_params,
)
from jaxsparse._compressed.compressed_array import (
    Compressed as Compressed,
    as_dense_shapes as as_dense_shapes,
    compressed_shapes as compressed_shapes,
    decompress as decompress,
    is_compressed as is_compressed,
)
from jaxsparse._compressed.dropped_activations import (
    DroppedActivations as DroppedActivations,
    dropped_activations as dropped_activations,
)
from jaxsparse._compressed.indices import (
    POSITION_BITS as POSITION_BITS,
    code_bits as code_bits,
)
from jaxsparse._compressed.matches_plan import (
    describe_storage as describe_storage,
    is_as_planned as is_as_planned,
    plan_mismatch as plan_mismatch,
)
from jaxsparse._compressed.nm_matmul import (
    nm_matmul as nm_matmul,
)
from jaxsparse._compressed.planned_bytes import (
    planned_bytes as planned_bytes,
)
from jaxsparse._compressed.quantize import (
    quantize_compressed as quantize_compressed,
)
from jaxsparse._compressed.semi_structured import (
    from_semi_structured as from_semi_structured,
    to_semi_structured as to_semi_structured,
)
from jaxsparse._compressed.sparse_apply import (
    sparse_apply as sparse_apply,
)
