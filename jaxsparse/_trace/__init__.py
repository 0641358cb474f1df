"""A model as a jaxpr: which parameter meets which product, and how."""

from jaxsparse._trace.evaluate import (
    Rule as Rule,
    Site as Site,
    as_it_stands as as_it_stands,
    bind as bind,
    evaluate as evaluate,
    run_site as run_site,
)
from jaxsparse._trace.jaxpr import (
    Cond as Cond,
    Path as Path,
    Scan as Scan,
    ShardMap as ShardMap,
    Structure as Structure,
    While as While,
    structure as structure,
)
from jaxsparse._trace.product_inputs import (
    Rows as Rows,
    rows_of as rows_of,
)
from jaxsparse._trace.program import (
    Program as Program,
    trace as trace,
)
from jaxsparse._trace.record import (
    Contraction as Contraction,
    Record as Record,
    Use as Use,
    Value as Value,
)
from jaxsparse._trace.split_program import (
    Stage as Stage,
    cut_program as cut_program,
    order_leaves as order_leaves,
)
from jaxsparse._trace.view import (
    Dim as Dim,
    Factor as Factor,
    Indexed as Indexed,
)
from jaxsparse._trace.view_rules import (
    KEEPS_ZEROS as KEEPS_ZEROS,
)
