"""The products of a program: what reaches their inputs, and where their results meet.

A product here multiplies a weight by anything else. A weight is a value that is
computed from parameters alone, or one that the inputs select from such a value or
scale. The result is followed up to the next products, through floating-point values
only: an index that was chosen by it is not a result of it.
"""

import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from jaxsparse._trace.features import move_features, product_features
from jaxsparse._trace.graph import Graph, Step
from jaxsparse._trace.jaxpr import Path, var_shape
from jaxsparse._trace.layer_record import Flow, Layer, Layers, Meeting, Reach, Reaches
from jaxsparse._trace.product_rules import PRODUCTS
from jaxsparse._trace.record import Selection


#: Elementwise operations on several operands.
_MEETINGS = frozenset(
    ["add", "add_any", "atan2", "div", "max", "min", "mul", "pow", "select_n", "sub"]
)
_SUMS = frozenset(["add", "add_any", "sub"])
#: Operations that are linear in their operands together, or affine.
LINEAR = _SUMS | frozenset(
    [
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "copy_p",
        "cumsum",
        "device_put",
        "dynamic_slice",
        "dynamic_update_slice",
        "gather",
        "join",
        "name",
        "neg",
        "optimization_barrier",
        "pad",
        "pbroadcast",
        "pcast",
        "psum",
        "pvary",
        "reduce_precision",
        "reduce_sum",
        "reshape",
        "reshard",
        "rev",
        "select_n",
        "sharding_constraint",
        "slice",
        "split",
        "squeeze",
        "stack",
        "stop_gradient",
        "transpose",
        "unstack",
    ]
)
#: Operations that are linear in each operand alone.
_BILINEAR = PRODUCTS | {"mul"}
_CHOICES = frozenset(["approx_top_k", "argmax", "argmin", "sort", "top_k"])
_NORMALIZATIONS = frozenset(["exp", "exp2", "logistic"])


def find_layers(
    graph: Graph,
    paths: Sequence[str],
    num_inputs: int,
    selections: Mapping[Path, Selection],
) -> Layers:
    """Returns the products of a program.

    Args:
      graph: the program.
      paths: the paths of the parameters, its first inputs.
      num_inputs: the number of its further inputs.
      selections: its products with weights that the inputs select or scale.
    """
    flows = [Flow()] * len(graph.values)
    flows[: len(paths)] = [Flow(frozenset([path])) for path in paths]
    for i in range(len(paths), len(paths) + num_inputs):
        flows[i] = Flow(inputs=True)
    while True:
        layers = Layers(
            graph, len(paths), selections, {}, set(), [], set(), set(), set()
        )
        changed = False
        for i, step in enumerate(graph.steps):
            operands = [flows[operand] for operand in step.operands]
            for output, flow in zip(
                step.outputs, _step(layers, i, operands), strict=True
            ):
                changed |= flow != flows[output]
                flows[output] = flow
        if not (changed and graph.has_loops):
            return layers


def _step(layers: Layers, index: int, operands: Sequence[Flow]) -> list[Flow]:
    """Returns the flows of the outputs of a step, and records what it shows."""
    step = layers.graph.steps[index]
    inputs = any(flow.inputs for flow in operands)
    leaves = frozenset[str]()
    if not inputs:
        leaves = leaves.union(*(flow.leaves for flow in operands))
    if step.name in PRODUCTS:
        if any(flow.leaves for flow in operands[:2]):
            return [_product(layers, index, operands)]
        if step.path in layers.selections:
            return [_product_with_selected(layers, index, operands)]
    moved = _moved(layers.graph, step, operands)
    _record(layers, step, operands, moved)
    reaches = _merge(moved)
    types = [layers.graph.values[output] for output in step.outputs]
    return [
        Flow(leaves, inputs, reaches if jnp.issubdtype(x.dtype, jnp.inexact) else {})
        for x in types
    ]


def _product(layers: Layers, index: int, operands: Sequence[Flow]) -> Flow:
    step = layers.graph.steps[index]
    eqn = step.eqn
    assert eqn is not None
    first, second = operands[:2]
    both = bool(first.leaves and second.leaves)
    weight = 1 if second.leaves else 0
    shape = layers.graph.values[step.outputs[0]].shape
    features = product_features(eqn, weight)
    sizes = [shape[axis] for axis in features]
    outputs, leaves = math.prod(sizes), operands[weight].leaves
    if both:
        rows = product_features(eqn, 0)
        outputs = min(outputs, math.prod(shape[axis] for axis in rows))
        leaves, features = first.leaves | second.leaves, rows | features
    layers.layers[index] = Layer(
        leaves,
        None if both else step.operands[1 - weight],
        {} if both else operands[1 - weight].reaches,
        _contracted(eqn, weight),
        outputs,
    )
    reach = Reach(features if math.prod(sizes) != 1 else None, linear=True)
    return Flow(leaves if both else frozenset(), not both, {index: reach})


def _product_with_selected(
    layers: Layers, index: int, operands: Sequence[Flow]
) -> Flow:
    step = layers.graph.steps[index]
    eqn = step.eqn
    assert eqn is not None
    weight, leaves = layers.selections[step.path]
    shape = layers.graph.values[step.outputs[0]].shape
    features = product_features(eqn, weight)
    outputs = math.prod(shape[axis] for axis in features)
    layers.layers[index] = Layer(
        leaves,
        step.operands[1 - weight],
        _merge([flow.reaches for flow in operands[:2]]),
        _contracted(eqn, weight),
        outputs,
    )
    reach = Reach(features if outputs != 1 else None, linear=True)
    return Flow(inputs=True, reaches={index: reach})


def _contracted(eqn: JaxprEqn, weight: int) -> int:
    shape = var_shape(eqn.invars[weight])
    match eqn.primitive.name:
        case "conv_general_dilated":
            return shape[eqn.params["dimension_numbers"].rhs_spec[1]]
        case "dot_general":
            axes = eqn.params["dimension_numbers"][0][weight]
        case _:
            numbers = eqn.params["ragged_dot_dimension_numbers"]
            axes = numbers.dot_dimension_numbers[0][weight]
    return math.prod(shape[axis] for axis in axes)


def _moved(
    graph: Graph, step: Step, operands: Sequence[Flow]
) -> list[dict[int, Reach]]:
    """Returns how the products that reach each operand reach the output by it."""
    moved: list[dict[int, Reach]] = []
    for k, flow in enumerate(operands):
        others = {i for j, x in enumerate(operands) if j != k for i in x.reaches}
        reaches = {}
        for i, reach in flow.reaches.items():
            features = reach.features
            if features is not None:
                features = move_features(step, k, features, graph.values)
            is_linear = step.name in LINEAR or (
                i not in others
                and (step.name in _BILINEAR or (step.name == "div" and k == 0))
            )
            reaches[i] = Reach(features, reach.linear and is_linear)
        moved.append(reaches)
    return moved


def _merge(moved: Sequence[Reaches]) -> Reaches:
    merged: dict[int, Reach] = {}
    for reaches in moved:
        for i, reach in reaches.items():
            if i not in merged:
                merged[i] = reach
                continue
            one, other = merged[i].features, reach.features
            features = one if other is None else other if one is None else one | other
            merged[i] = Reach(features, merged[i].linear and reach.linear)
    return merged


def _record(
    layers: Layers, step: Step, operands: Sequence[Flow], moved: Sequence[Reaches]
) -> None:
    if not any(moved):
        return
    if step.name in _CHOICES:
        layers.chosen.update(operands[0].outputs)
    if step.name in _NORMALIZATIONS:
        layers.normalized.update(operands[0].reaches)
    if step.name == "mul" or step.name in PRODUCTS:
        for gates, gated in ((moved[0], moved[1]), (moved[1], moved[0])):
            layers.gates.update(i for i in gates if _scales(i, gates[i], gated))
    if step.name not in _MEETINGS:
        return
    first, second = operands[-2:]
    is_sum = step.name in _SUMS
    if is_sum:
        for one, other in ((first, second), (second, first)):
            if one.leaves and (other.leaves or other.inputs):
                layers.merges.update(one.linear - other.outputs)
    if first.outputs != second.outputs:
        pair = step.operands[-2], step.operands[-1]
        layers.meetings.append(Meeting(first, second, pair, is_sum))


def _scales(product: int, reach: Reach, gated: Reaches) -> bool:
    """Returns whether a product scales outputs of others, not one by one."""
    own = reach.features or frozenset[int]()
    return any(
        i != product and x.features is not None and not x.features <= own
        for i, x in gated.items()
    )
