"""N:M weight sparsity for JAX: exact masks for whole models, kept while they train."""

from jaxsparse._calibration import (
    ADMMSearcher as ADMMSearcher,
    LeafStatistics as LeafStatistics,
    ReconstructedStage as ReconstructedStage,
    Reconstruction as Reconstruction,
    SequentialResult as SequentialResult,
    SparseGPTSearcher as SparseGPTSearcher,
    WandaSearcher as WandaSearcher,
    collect_statistics as collect_statistics,
    fit_weights as fit_weights,
    input_importances as input_importances,
    prune_sequentially as prune_sequentially,
    refine_masks as refine_masks,
    ria_scores as ria_scores,
    wanda_scores as wanda_scores,
)
from jaxsparse._channels import (
    ChannelGroup as ChannelGroup,
    ChannelGroups as ChannelGroups,
    ChannelMember as ChannelMember,
    PermutationResult as PermutationResult,
    PermutedGroup as PermutedGroup,
    channel_groups as channel_groups,
    permute_channels as permute_channels,
)
from jaxsparse._compressed import (
    Compressed as Compressed,
    DroppedActivations as DroppedActivations,
    accelerate as accelerate,
    compress as compress,
    compress_params as compress_params,
    decompress as decompress,
    decompress_params as decompress_params,
    dropped_activations as dropped_activations,
    from_semi_structured as from_semi_structured,
    nm_matmul as nm_matmul,
    quantize_compressed as quantize_compressed,
    sparse_apply as sparse_apply,
    to_semi_structured as to_semi_structured,
)
from jaxsparse._files import (
    SparseFile as SparseFile,
    SparseFileError as SparseFileError,
    TorchFile as TorchFile,
    from_torch_layout as from_torch_layout,
    load_sparse as load_sparse,
    open_sparse as open_sparse,
    open_tensors as open_tensors,
    open_torch as open_torch,
    save_sparse as save_sparse,
    save_torch as save_torch,
    to_torch_layout as to_torch_layout,
)
from jaxsparse._masks import (
    MagnitudeSearcher as MagnitudeSearcher,
    Searcher as Searcher,
    SearchResult as SearchResult,
    create_masks as create_masks,
    mask_params as mask_params,
    random_scores as random_scores,
    saliency_scores as saliency_scores,
)
from jaxsparse._patterns import (
    NM as NM,
    Block as Block,
    Channel as Channel,
    PerOutput as PerOutput,
    Unstructured as Unstructured,
)
from jaxsparse._plans import (
    LeafPlan as LeafPlan,
    Plan as Plan,
    Rule as Rule,
    contraction_axes as contraction_axes,
    distribute_by_erdos_renyi as distribute_by_erdos_renyi,
    flax_axes as flax_axes,
    leaf_uses as leaf_uses,
    plan_sparsity as plan_sparsity,
)
from jaxsparse._recovery import (
    Compensation as Compensation,
    CompensationReport as CompensationReport,
    LeafCompensation as LeafCompensation,
    LowRank as LowRank,
    MaskLogits as MaskLogits,
    allocate as allocate,
    apply_adapters as apply_adapters,
    compensate_low_rank as compensate_low_rank,
    create_adapters as create_adapters,
    distillation_loss as distillation_loss,
    feature_loss as feature_loss,
    init_mask_logits as init_mask_logits,
    learned_masks as learned_masks,
    outlier_ratios as outlier_ratios,
    recalibrate_batch_stats as recalibrate_batch_stats,
)
from jaxsparse._reports import (
    CalibrationReport as CalibrationReport,
    LeafError as LeafError,
    LeafReport as LeafReport,
    LeafSharding as LeafSharding,
    ShardingReport as ShardingReport,
    SparsityReport as SparsityReport,
    calibration_report as calibration_report,
    check_sparsity as check_sparsity,
    metrics as metrics,
    sharding_report as sharding_report,
    sparsity as sparsity,
    sparsity_report as sparsity_report,
)
from jaxsparse._shrinking import (
    LeafShrinkage as LeafShrinkage,
    ShrinkReport as ShrinkReport,
    ShrinkResult as ShrinkResult,
    grow_back as grow_back,
    reap_scores as reap_scores,
    shrink_params as shrink_params,
)
from jaxsparse._trace import Use as Use
from jaxsparse._training import (
    RegrowthState as RegrowthState,
    SparseState as SparseState,
    StraightThroughState as StraightThroughState,
    abstract_state as abstract_state,
    add_sr_ste_decay as add_sr_ste_decay,
    cubic_schedule as cubic_schedule,
    get_masks as get_masks,
    keep_params_sparse as keep_params_sparse,
    one_shot_schedule as one_shot_schedule,
    regrow_at_random as regrow_at_random,
    regrow_by_gradient as regrow_by_gradient,
    straight_through as straight_through,
    wrap_optimizer as wrap_optimizer,
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


__version__ = "0.1.0"
