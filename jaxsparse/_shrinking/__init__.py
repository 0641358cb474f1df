"""Channels that are taken out of a model, and what is left fitted to do without."""

from jaxsparse._shrinking.new_sizes import (
    new_sizes as new_sizes,
)
from jaxsparse._shrinking.reap import (
    reap_scores as reap_scores,
)
from jaxsparse._shrinking.report import (
    LeafShrinkage as LeafShrinkage,
    ShrinkReport as ShrinkReport,
)
from jaxsparse._shrinking.shrink import (
    ShrinkResult as ShrinkResult,
    grow_back as grow_back,
    shrink_params as shrink_params,
)
