"""The rule of each primitive: how it carries axes from its operands to its outputs."""

from collections.abc import Callable, Sequence

from jax.extend.core import JaxprEqn

from jaxsparse._channels import lookups, moves, products, reductions
from jaxsparse._channels.elementwise import COPIES, ELEMENTWISE, copy, elementwise
from jaxsparse._channels.value import Record, Value
from jaxsparse._trace import REDUCTIONS


#: `(equation, operands, record) -> outputs`, or None for what is not understood.
Rule = Callable[[JaxprEqn, Sequence[Value], Record], "list[Value] | None"]

#: Rules that know what to do with positions.
POSITION_RULES: dict[str, Rule] = {
    **dict.fromkeys(COPIES, copy),
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(lookups.SCATTERS, lookups.scatter),
    "broadcast_in_dim": moves.broadcast,
    "concatenate": moves.concatenate,
    "dynamic_slice": lookups.dynamic_slice,
    "dynamic_update_slice": lookups.dynamic_update_slice,
    "gather": lookups.gather,
    "reshape": moves.reshape,
    "slice": moves.slice_,
    "sort": reductions.sort,
    "split": moves.split,
    "squeeze": moves.squeeze,
    "stack": moves.stack,
    "tile": moves.tile,
    "transpose": moves.transpose,
    "unstack": moves.unstack,
}

#: All rules, by the name of the primitive.
RULES: dict[str, Rule] = {
    **POSITION_RULES,
    **dict.fromkeys(REDUCTIONS, reductions.reduce_axes),
    **dict.fromkeys(reductions.CUMULATIVE, reductions.accumulate),
    **dict.fromkeys(reductions.WINDOWS, reductions.reduce_windows),
    "approx_top_k": reductions.top_k,
    "argmax": reductions.find_largest,
    "argmin": reductions.find_largest,
    "conv_general_dilated": products.convolution,
    "dot_general": products.dot_general,
    "iota": lookups.iota,
    "pad": moves.pad,
    "random_bits": lookups.random_bits,
    "ragged_dot_general": products.ragged_dot,
    "rev": moves.reverse,
    "top_k": reductions.top_k,
}
