"""One array: its pattern, its groups, its best mask."""

from jaxsparse._patterns.constant import (
    constant_arrays as constant_arrays,
)
from jaxsparse._patterns.enumeration import (
    enumerate_patterns as enumerate_patterns,
)
from jaxsparse._patterns.groups import (
    group_axis as group_axis,
    group_positions as group_positions,
    iota_along as iota_along,
    merge_groups as merge_groups,
    split_groups as split_groups,
)
from jaxsparse._patterns.nm_search import (
    best_nm_mask as best_nm_mask,
    magnitude_mask as magnitude_mask,
)
from jaxsparse._patterns.packed_nm_search import (
    best_packed_nm_mask as best_packed_nm_mask,
)
from jaxsparse._patterns.packing import (
    as_bool as as_bool,
    check_mask as check_mask,
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
    fraction_hint as fraction_hint,
)
from jaxsparse._patterns.ranking import (
    RankKeys as RankKeys,
    check_rankable as check_rankable,
    count_true as count_true,
    is_rankable as is_rankable,
    is_zero as is_zero,
    rank_above as rank_above,
    rank_by_magnitude as rank_by_magnitude,
    rank_by_value as rank_by_value,
    rank_within as rank_within,
    wide_float as wide_float,
)
from jaxsparse._patterns.tiles import (
    expand_tiles as expand_tiles,
    rank_tiles as rank_tiles,
    reduce_tiles as reduce_tiles,
)
from jaxsparse._patterns.transposable import (
    best_transposable_mask as best_transposable_mask,
)
from jaxsparse._patterns.unstructured import (
    best_row_mask as best_row_mask,
    best_unstructured_masks as best_unstructured_masks,
)
