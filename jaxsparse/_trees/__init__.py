"""Leaves of any tree by their canonical path, and tables of them."""

from jaxsparse._trees.paths import (
    PathConflictError as PathConflictError,
    flatten as flatten,
    flatten_masks as flatten_masks,
    is_array as is_array,
    is_dense_entry as is_dense_entry,
    is_numeric as is_numeric,
    map_named as map_named,
    nest as nest,
    path_name as path_name,
    shapes_of as shapes_of,
    with_masks as with_masks,
)
from jaxsparse._trees.table import (
    Tabular as Tabular,
    alike as alike,
    bytes_text as bytes_text,
    fold as fold,
    shape_text as shape_text,
)
