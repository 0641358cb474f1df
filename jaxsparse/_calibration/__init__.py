"""Statistics of layers' inputs, and pruning by them (Wanda, SparseGPT)."""

from jaxsparse._calibration.admm_searcher import (
    ADMMSearcher as ADMMSearcher,
)
from jaxsparse._calibration.chain import (
    ChainStage as ChainStage,
    PrunedStage as PrunedStage,
    prune_chain as prune_chain,
)
from jaxsparse._calibration.collect import (
    collect_statistics as collect_statistics,
)
from jaxsparse._calibration.fit_weights import (
    fit_weights as fit_weights,
)
from jaxsparse._calibration.held_out import (
    best_shrinkage as best_shrinkage,
)
from jaxsparse._calibration.importances import (
    input_importances as input_importances,
)
from jaxsparse._calibration.leaf_statistics import (
    LeafStatistics as LeafStatistics,
    fill_starved as fill_starved,
    match_statistics as match_statistics,
    starved_problems as starved_problems,
    warn_of_few_tokens as warn_of_few_tokens,
    warn_of_starved as warn_of_starved,
)
from jaxsparse._calibration.least_squares import (
    kept_least_squares as kept_least_squares,
)
from jaxsparse._calibration.map_solves import (
    map_solves as map_solves,
)
from jaxsparse._calibration.output_error import (
    output_error as output_error,
)
from jaxsparse._calibration.reconstruction import (
    ReconstructedStage as ReconstructedStage,
    Reconstruction as Reconstruction,
)
from jaxsparse._calibration.refine_masks import (
    refine_masks as refine_masks,
)
from jaxsparse._calibration.ria import (
    ria_scores as ria_scores,
)
from jaxsparse._calibration.second_moments import (
    match_second_moments as match_second_moments,
    shrunk_moments as shrunk_moments,
)
from jaxsparse._calibration.sequential import (
    prune_sequentially as prune_sequentially,
)
from jaxsparse._calibration.sequential_result import (
    SequentialResult as SequentialResult,
    plan_of_result as plan_of_result,
)
from jaxsparse._calibration.shrinkage import (
    SHRINKAGE as SHRINKAGE,
    Shrinkage as Shrinkage,
    check_shrinkage as check_shrinkage,
)
from jaxsparse._calibration.sparsegpt_searcher import (
    SparseGPTSearcher as SparseGPTSearcher,
)
from jaxsparse._calibration.wanda import (
    WandaSearcher as WandaSearcher,
    wanda_scores as wanda_scores,
)
