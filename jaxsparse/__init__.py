"""N:M weight sparsity for JAX: exact masks for whole models, kept while they train."""

from jaxsparse._abstract_state import abstract_state as abstract_state
from jaxsparse._calibration_report import (
    CalibrationReport as CalibrationReport,
    LeafError as LeafError,
    calibration_report as calibration_report,
)
from jaxsparse._check import check_sparsity as check_sparsity
from jaxsparse._compress import (
    Compressed as Compressed,
    compress as compress,
    decompress as decompress,
)
from jaxsparse._compress_params import (
    compress_params as compress_params,
    decompress_params as decompress_params,
)
from jaxsparse._contraction import (
    contraction_axes as contraction_axes,
    leaf_uses as leaf_uses,
)
from jaxsparse._erdos_renyi import (
    distribute_by_erdos_renyi as distribute_by_erdos_renyi,
)
from jaxsparse._fit_weights import fit_weights as fit_weights
from jaxsparse._leaf_plan import LeafPlan as LeafPlan
from jaxsparse._leaf_statistics import LeafStatistics as LeafStatistics
from jaxsparse._masks import (
    create_masks as create_masks,
    mask_params as mask_params,
    sparsity as sparsity,
)
from jaxsparse._metrics import metrics as metrics
from jaxsparse._names import flax_axes as flax_axes
from jaxsparse._nm_matmul import nm_matmul as nm_matmul
from jaxsparse._pattern import (
    NM as NM,
    Block as Block,
    Channel as Channel,
    PerOutput as PerOutput,
    Unstructured as Unstructured,
)
from jaxsparse._plan import (
    Plan as Plan,
    plan_sparsity as plan_sparsity,
)
from jaxsparse._regrowth import (
    regrow_at_random as regrow_at_random,
    regrow_by_gradient as regrow_by_gradient,
)
from jaxsparse._rule import Rule as Rule
from jaxsparse._schedule import (
    cubic_schedule as cubic_schedule,
    one_shot_schedule as one_shot_schedule,
)
from jaxsparse._searcher import (
    MagnitudeSearcher as MagnitudeSearcher,
    Searcher as Searcher,
    SearchResult as SearchResult,
)
from jaxsparse._semi_structured import (
    from_semi_structured as from_semi_structured,
    to_semi_structured as to_semi_structured,
)
from jaxsparse._sequential import prune_sequentially as prune_sequentially
from jaxsparse._sharding_report import (
    LeafSharding as LeafSharding,
    ShardingReport as ShardingReport,
    sharding_report as sharding_report,
)
from jaxsparse._sparse_apply import sparse_apply as sparse_apply
from jaxsparse._sparsegpt_searcher import SparseGPTSearcher as SparseGPTSearcher
from jaxsparse._state import (
    RegrowthState as RegrowthState,
    SparseState as SparseState,
    StraightThroughState as StraightThroughState,
    get_masks as get_masks,
)
from jaxsparse._statistics import collect_statistics as collect_statistics
from jaxsparse._straight_through import (
    add_sr_ste_decay as add_sr_ste_decay,
    straight_through as straight_through,
)
from jaxsparse._torch_files import (
    TorchFile as TorchFile,
    open_torch as open_torch,
    save_torch as save_torch,
)
from jaxsparse._torch_layout import (
    from_torch_layout as from_torch_layout,
    to_torch_layout as to_torch_layout,
)
from jaxsparse._transform import (
    keep_params_sparse as keep_params_sparse,
    wrap_optimizer as wrap_optimizer,
)
from jaxsparse._tree_scores import (
    random_scores as random_scores,
    saliency_scores as saliency_scores,
)
from jaxsparse._values import Use as Use
from jaxsparse._wanda import WandaSearcher as WandaSearcher
from jaxsparse.io import (
    SparseFile as SparseFile,
    SparseFileError as SparseFileError,
    load_sparse as load_sparse,
    open_sparse as open_sparse,
    open_tensors as open_tensors,
    save_sparse as save_sparse,
)
from jaxsparse.magnitude import (
    compute_valid_1d_patterns as compute_valid_1d_patterns,
    create_asp_mask as create_asp_mask,
    fill as fill,
    get_nmprune_info as get_nmprune_info,
    m4n2_1d as m4n2_1d,
    mn_1d_best as mn_1d_best,
    reshape_1d as reshape_1d,
)
from jaxsparse.report import (
    LeafReport as LeafReport,
    SparsityReport as SparsityReport,
    sparsity_report as sparsity_report,
)
