"""One array: its pattern, its groups, its best mask."""

from jaxsparse._patterns.groups import (
    columns as columns,
    group_axis as group_axis,
    joined as joined,
    numbers as numbers,
    split as split,
)
from jaxsparse._patterns.nm_search import (
    best_mask as best_mask,
    magnitude_mask as magnitude_mask,
)
from jaxsparse._patterns.packed_nm_search import (
    best_packed_mask as best_packed_mask,
)
from jaxsparse._patterns.packing import (
    as_bool as as_bool,
    pack_mask as pack_mask,
    packed_axis as packed_axis,
    packed_shape as packed_shape,
    unpack_mask as unpack_mask,
)
from jaxsparse._patterns.pattern import (
    NM as NM,
    Block as Block,
    Channel as Channel,
    Pattern as Pattern,
    PatternLike as PatternLike,
    PerOutput as PerOutput,
    Unstructured as Unstructured,
    as_pattern as as_pattern,
)
from jaxsparse._patterns.ranking import (
    Ranked as Ranked,
    by_magnitude as by_magnitude,
    by_value as by_value,
    check_rankable as check_rankable,
    count_true as count_true,
    is_zero as is_zero,
    only_above as only_above,
    only_within as only_within,
    wide_float as wide_float,
)
from jaxsparse._patterns.tiles import (
    over_tiles as over_tiles,
    rank_tiles as rank_tiles,
    spread_tiles as spread_tiles,
)
from jaxsparse._patterns.transposable import (
    best_transposable_mask as best_transposable_mask,
)
from jaxsparse._patterns.unstructured import (
    best_row_mask as best_row_mask,
    best_unstructured_masks as best_unstructured_masks,
)
