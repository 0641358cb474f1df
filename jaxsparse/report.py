"""Reports: what was pruned, how much of it, and what that cost."""

from jaxsparse._reports import (
    LeafReport as LeafReport,
    SparsityReport as SparsityReport,
    sparsity_report as sparsity_report,
)
