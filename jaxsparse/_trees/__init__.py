"""Leaves of any tree by their canonical path, and tables of them."""

from jaxsparse._trees.by_parameter import (
    map_by_parameter as map_by_parameter,
)
from jaxsparse._trees.fit_table import (
    fit_table as fit_table,
)
from jaxsparse._trees.fold import (
    alike as alike,
    fold as fold,
    fold_with_others as fold_with_others,
    without_numbers as without_numbers,
)
from jaxsparse._trees.paths import (
    Keys as Keys,
    Leaves as Leaves,
    PathConflictError as PathConflictError,
    array_shapes as array_shapes,
    flatten as flatten,
    flatten_as as flatten_as,
    flatten_masks as flatten_masks,
    flatten_with_keys as flatten_with_keys,
    is_abstract as is_abstract,
    is_array as is_array,
    is_dense_entry as is_dense_entry,
    is_numeric as is_numeric,
    map_named as map_named,
    nest as nest,
    path_name as path_name,
    replace_masks as replace_masks,
    require_values as require_values,
    without_box as without_box,
)
from jaxsparse._trees.pytree import (
    PyTree as PyTree,
)
from jaxsparse._trees.require_kind import (
    require_kind as require_kind,
)
from jaxsparse._trees.stand_in import (
    StandIn as StandIn,
)
from jaxsparse._trees.table import (
    Tabular as Tabular,
    bytes_text as bytes_text,
    percent_text as percent_text,
    shape_text as shape_text,
    table as table,
    weights_text as weights_text,
)
from jaxsparse._trees.variable_kinds import (
    non_parameters as non_parameters,
)
from jaxsparse._trees.variables import (
    change_variables as change_variables,
    with_changes as with_changes,
)
