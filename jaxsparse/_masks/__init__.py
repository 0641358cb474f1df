"""Masks of whole trees: searched, applied."""

from jaxsparse._masks.mask_search import (
    kept_count as kept_count,
    search_masks as search_masks,
)
from jaxsparse._masks.masks import (
    best_masks as best_masks,
    create_masks as create_masks,
    mask_leaf as mask_leaf,
    mask_params as mask_params,
    mask_straight_through as mask_straight_through,
    match_entries as match_entries,
    match_masks as match_masks,
)
from jaxsparse._masks.scores import (
    random_scores as random_scores,
    saliency_scores as saliency_scores,
)
from jaxsparse._masks.searcher import (
    MagnitudeSearcher as MagnitudeSearcher,
    Searcher as Searcher,
    SearchResult as SearchResult,
)
