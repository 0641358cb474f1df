"""Which parameters are output layers, routers or adapters, by their products."""

from collections.abc import Iterator, Mapping, Sequence, Set as AbstractSet
from typing import Literal, NamedTuple, get_args

from jaxsparse._trace.graph import Step, graph_of
from jaxsparse._trace.layer_record import Layers
from jaxsparse._trace.layers import LINEAR, find_layers
from jaxsparse._trace.product_rules import PRODUCTS
from jaxsparse._trace.program import Program


#: What a weight does in a model: a head is an output layer, a router chooses experts,
#: and an adapter is one factor of a low-rank term that is added to a layer.
Role = Literal["head", "adapter", "router"]

#: All roles.
ROLES: tuple[Role, ...] = get_args(Role)


class Roles(NamedTuple):
    """The roles that a trace shows.

    Attributes:
      by_leaf: the role of each leaf that has one: all products with the leaf have it;
        or one of them is a router, or the product of two factors that a weight is the
        sum of.
      lacks_head: whether products follow one another and none is an output layer.
    """

    by_leaf: dict[str, Role]
    lacks_head: bool


def find_roles(program: Program) -> Roles:
    """Returns the roles of the leaves of a program."""
    layers = find_layers(
        graph_of(program.bound),
        list(program.arrays),
        len(program.inputs),
        program.record.selections,
    )
    adapters, merges = set(_adapters(layers)), _low_rank_merges(layers)
    heads, routers = _heads(layers, adapters), _routers(layers)
    products: dict[str, set[int]] = {}
    for i, layer in layers.layers.items():
        for path in layer.leaves:
            products.setdefault(path, set()).add(i)
    by_leaf: dict[str, Role] = {}
    for path, of_leaf in products.items():
        if of_leaf & routers:
            by_leaf[path] = "router"
        elif of_leaf & merges or of_leaf <= adapters:
            by_leaf[path] = "adapter"
        elif of_leaf <= heads:
            by_leaf[path] = "head"
    follows = any(layer.before for layer in layers.layers.values())
    return Roles(by_leaf, follows and not heads)


def _followed(layers: Layers) -> set[int]:
    """Returns the products whose results reach another product."""
    return {i for layer in layers.layers.values() for i in layer.before}


def _routers(layers: Layers) -> set[int]:
    """Returns the products that choose experts.

    Their outputs go through softmax or sigmoid, the highest are chosen, and the result
    scales or selects what other products compute.
    """
    used = layers.gates | _followed(layers)
    return layers.chosen & layers.normalized & used


def _heads(layers: Layers, adapters: AbstractSet[int]) -> set[int]:
    """Returns the products that are output layers.

    At least one product precedes an output layer and none follows it. It is not part of
    a sum of layers: its outputs meet those of no product that others follow, as in a
    residual block, and are not added to those of another last product, unless that is
    its low-rank adapter. After its outputs were reduced, as by a loss, its result may
    meet anything.
    """
    followed = _followed(layers)
    last = {
        i
        for i, layer in layers.layers.items()
        if layer.operand is not None and layer.before and i not in followed
    }
    for meeting in layers.meetings:
        one, two = meeting.first, meeting.second
        for flow, other in ((one, two), (two, one)):
            for i in last & flow.outputs:
                rivals = {
                    j
                    for j in other.outputs - flow.outputs
                    if layers.layers[j].leaves != layers.layers[i].leaves
                    and j not in adapters
                }
                added = meeting.is_sum and i in flow.linear and rivals & other.linear
                if added or rivals & followed:
                    last.discard(i)
    return last


def _adapters(layers: Layers) -> Iterator[int]:
    """Returns the two products of each low-rank term that is added to a layer.

    `b` multiplies the result of `a`, which nothing changed but linear operations, and
    `a` multiplies what the layer multiplies. The rank is below the number of inputs of
    `a` and of outputs of `b`.
    """
    pairs = _low_rank_pairs(layers)
    producers = {i: step for step in layers.graph.steps for i in step.outputs}
    for meeting in layers.meetings if pairs else ():
        if not meeting.is_sum:
            continue
        one, two = meeting.operands
        for flow, other in ((meeting.first, two), (meeting.second, one)):
            for b in flow.linear & pairs.keys():
                factor = layers.layers[pairs[b]].operand
                assert factor is not None
                inputs = _sources([factor], producers, _PASSES)
                common = inputs & _multiplied(other, producers)
                if any(i >= layers.num_params for i in common):
                    yield from (pairs[b], b)


def _low_rank_merges(layers: Layers) -> set[int]:
    """Returns the products of two factors of a low rank that are added to a weight."""
    ranks = {i: layers.layers[i] for i in layers.merges}
    return {i for i, layer in ranks.items() if layer.contracted < layer.outputs}


def _low_rank_pairs(layers: Layers) -> dict[int, int]:
    """Returns for each product that multiplies a low-rank result alone what made it."""
    pairs = {}
    for b, layer in layers.layers.items():
        if len(layer.before) != 1:
            continue
        ((a, reach),) = layer.before.items()
        factor, rank = layers.layers[a], layer.contracted
        if (
            factor.operand is not None
            and reach.linear
            and reach.features is not None
            and rank == factor.outputs
            and rank < min(factor.contracted, layer.outputs)
        ):
            pairs[b] = a
    return pairs


#: Operations through which a layer and its adapter may take the same input: casts,
#: moves and dropout.
_PASSES = frozenset(
    [
        "broadcast_in_dim",
        "convert_element_type",
        "copy",
        "div",
        "mul",
        "name",
        "optimization_barrier",
        "reshape",
        "select_n",
        "sharding_constraint",
        "squeeze",
        "transpose",
    ]
)


def _multiplied(value: int, producers: Mapping[int, Step]) -> set[int]:
    """Returns what the products multiply whose results are summed to a value."""
    summed = _sources([value], producers, LINEAR | {"div", "mul"})
    products = [producers[i] for i in summed if i in producers]
    operands = [
        i for step in products if step.name in PRODUCTS for i in step.operands[:2]
    ]
    return _sources(operands, producers, _PASSES)


def _sources(
    values: Sequence[int], producers: Mapping[int, Step], through: frozenset[str]
) -> set[int]:
    """Returns the values that reach some values through some operations only."""
    sources: set[int] = set()
    pending = [*values]
    while pending:
        value = pending.pop()
        if value in sources:
            continue
        sources.add(value)
        step = producers.get(value)
        if step is not None and step.name in through:
            pending.extend(step.operands)
    return sources
