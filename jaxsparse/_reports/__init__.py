"""Reports and checks: is it as planned, how sparse is it, what did it cost?"""

from jaxsparse._reports.calibration_report import (
    CalibrationReport as CalibrationReport,
    LeafError as LeafError,
    calibration_report as calibration_report,
)
from jaxsparse._reports.check import (
    SparsityError as SparsityError,
    check_sparsity as check_sparsity,
)
from jaxsparse._reports.measure import (
    sparsity as sparsity,
)
from jaxsparse._reports.metrics import (
    metrics as metrics,
)
from jaxsparse._reports.sharding_report import (
    LeafSharding as LeafSharding,
    ShardingReport as ShardingReport,
    sharding_report as sharding_report,
)
from jaxsparse._reports.sparsity_report import (
    LeafReport as LeafReport,
    SparsityReport as SparsityReport,
    sparsity_report as sparsity_report,
)
