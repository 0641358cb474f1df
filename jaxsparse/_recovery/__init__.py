"""What brings accuracy back: distillation, adapters, learned masks, allocation."""

from jaxsparse._recovery.adapters import (
    apply_adapters as apply_adapters,
    create_adapters as create_adapters,
)
from jaxsparse._recovery.allocation import (
    allocate as allocate,
)
from jaxsparse._recovery.batch_stats import (
    recalibrate_batch_stats as recalibrate_batch_stats,
)
from jaxsparse._recovery.compensation import (
    Compensation as Compensation,
    compensate_low_rank as compensate_low_rank,
)
from jaxsparse._recovery.compensation_report import (
    CompensationReport as CompensationReport,
    LeafCompensation as LeafCompensation,
)
from jaxsparse._recovery.distillation import (
    distillation_loss as distillation_loss,
    feature_loss as feature_loss,
)
from jaxsparse._recovery.learned_masks import (
    MaskLogits as MaskLogits,
    init_mask_logits as init_mask_logits,
    learned_masks as learned_masks,
)
from jaxsparse._recovery.low_rank import (
    LowRank as LowRank,
)
from jaxsparse._recovery.outliers import (
    outlier_ratios as outlier_ratios,
)
