"""Sparse training inside any Optax optimizer."""

from jaxsparse._training.abstract_state import (
    abstract_state as abstract_state,
)
from jaxsparse._training.regrowth import (
    regrow_at_random as regrow_at_random,
    regrow_by_gradient as regrow_by_gradient,
)
from jaxsparse._training.schedule import (
    cubic_schedule as cubic_schedule,
    one_shot_schedule as one_shot_schedule,
)
from jaxsparse._training.state import (
    RegrowthState as RegrowthState,
    SparseState as SparseState,
    StraightThroughState as StraightThroughState,
    flip_rates as flip_rates,
    get_masks as get_masks,
)
from jaxsparse._training.straight_through import (
    add_sr_ste_decay as add_sr_ste_decay,
    straight_through as straight_through,
)
from jaxsparse._training.wrap_optimizer import (
    keep_params_sparse as keep_params_sparse,
    wrap_optimizer as wrap_optimizer,
)
