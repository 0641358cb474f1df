"""A model as a jaxpr: which parameter meets which product, and how."""

from jaxsparse._trace.alike import (
    NotAlikeError as NotAlikeError,
    program_key as program_key,
    stage_key as stage_key,
)
from jaxsparse._trace.evaluate import (
    EquationRule as EquationRule,
    Site as Site,
    bind as bind,
    evaluate as evaluate,
    keep_equation as keep_equation,
    run_equation as run_equation,
)
from jaxsparse._trace.factors import (
    Factored as Factored,
    factored as factored,
    run_with_factors as run_with_factors,
    without_factors as without_factors,
)
from jaxsparse._trace.features import (
    REDUCTIONS as REDUCTIONS,
)
from jaxsparse._trace.graph import (
    Graph as Graph,
    Step as Step,
    graph_of as graph_of,
)
from jaxsparse._trace.jaxpr import (
    BoundJaxpr as BoundJaxpr,
    Call as Call,
    Cond as Cond,
    ControlFlow as ControlFlow,
    Path as Path,
    Scan as Scan,
    ShardMap as ShardMap,
    While as While,
    control_flow as control_flow,
    var_shape as var_shape,
)
from jaxsparse._trace.joint_products import (
    JointProducts as JointProducts,
    join_products as join_products,
    join_products_inside as join_products_inside,
    joint_products as joint_products,
)
from jaxsparse._trace.product_inputs import (
    ProductInputs as ProductInputs,
    product_inputs as product_inputs,
)
from jaxsparse._trace.program import (
    Program as Program,
    inline_calls as inline_calls,
    trace as trace,
)
from jaxsparse._trace.record import (
    NOT_AN_OPERAND as NOT_AN_OPERAND,
    Contraction as Contraction,
    Use as Use,
)
from jaxsparse._trace.relu_equations import (
    is_square as is_square,
)
from jaxsparse._trace.results import (
    split_results as split_results,
)
from jaxsparse._trace.roles import (
    ROLES as ROLES,
    Role as Role,
    find_roles as find_roles,
)
from jaxsparse._trace.split_program import (
    Stage as Stage,
    order_stages as order_stages,
    products_of as products_of,
    split_program as split_program,
)
from jaxsparse._trace.squared_relu import (
    CHECKPOINTS as CHECKPOINTS,
    NO_SQUARED_RELUS as NO_SQUARED_RELUS,
    SquaredReLUs as SquaredReLUs,
    find_squared_relus as find_squared_relus,
)
from jaxsparse._trace.view import (
    IndexedAxis as IndexedAxis,
)
from jaxsparse._trace.view_axis import (
    AxisPiece as AxisPiece,
    ViewAxis as ViewAxis,
)
from jaxsparse._trace.view_rules import (
    KEEPS_ZEROS as KEEPS_ZEROS,
)
