"""Which leaves are pruned, to what pattern, along which axis, and why not."""

from jaxsparse._plans.axes_from_flax import (
    axes_from_names as axes_from_names,
    flax_axes as flax_axes,
)
from jaxsparse._plans.axes_from_torch import (
    TRANSPOSED as TRANSPOSED,
    axes_from_torch_names as axes_from_torch_names,
    is_embedding as is_embedding,
    refuse_tensors as refuse_tensors,
)
from jaxsparse._plans.axes_from_trace import (
    contraction_axes as contraction_axes,
    leaf_uses as leaf_uses,
)
from jaxsparse._plans.erdos_renyi import (
    distribute_by_erdos_renyi as distribute_by_erdos_renyi,
)
from jaxsparse._plans.leaf_axes import (
    LeafAxes as LeafAxes,
)
from jaxsparse._plans.leaf_plan import (
    LeafPlan as LeafPlan,
    counted_groups as counted_groups,
    plan_no_array as plan_no_array,
    pruned_weights as pruned_weights,
)
from jaxsparse._plans.plan import (
    NothingPrunableError as NothingPrunableError,
    Plan as Plan,
    PlanLike as PlanLike,
    is_plan_like as is_plan_like,
    plan_for as plan_for,
    plan_for_part as plan_for_part,
    plan_or_rules as plan_or_rules,
    plan_sparsity as plan_sparsity,
)
from jaxsparse._plans.plan_error import (
    PlanError as PlanError,
    Remedy as Remedy,
)
from jaxsparse._plans.plan_table import (
    could_be_pruned as could_be_pruned,
    count_text as count_text,
)
from jaxsparse._plans.rule import (
    ASP_SIZES as ASP_SIZES,
    Rule as Rule,
    expression_meant as expression_meant,
)
