"""Channel groups of a function of parameters, from its trace."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxsparse._channels.families import settle_families
from jaxsparse._channels.groups import (
    ChannelGroup,
    ChannelGroups,
    ChannelMember,
    ChannelRole,
)
from jaxsparse._channels.locations import Location, interleaved_atoms, locations_in
from jaxsparse._channels.parts import Parts, atoms_of, fix
from jaxsparse._channels.propagate import Flow, read_graph
from jaxsparse._channels.separate import separate_atoms
from jaxsparse._trace import BoundJaxpr, Graph, graph_of, trace
from jaxsparse._trees import PyTree, array_shapes, flatten


def channel_groups(
    fn: Callable[..., Any], params: PyTree, *args: Any, **kwargs: Any
) -> ChannelGroups:
    """Returns which axes of the leaves are the same channels.

    If the channels of a group that is not fixed are permuted in all its members,
    `fn(params, *args, **kwargs)` is the same, but for rounding. The function is traced,
    not run: nothing is computed, and shapes are enough. An operation that is not
    understood fixes the axes that it meets.

    The axes of inputs and outputs of the function are fixed. What else belongs to the
    model, such as batch statistics, must be in `params`:
    `{"params": ..., "batch_stats": ...}`.

    Args:
      fn: any JAX function of the parameters: a forward pass or a loss.
      params: a tree of arrays or `jax.ShapeDtypeStruct`.
      *args: further arguments; arrays may be `jax.ShapeDtypeStruct`, other objects are
        passed to `fn` unchanged.
      **kwargs: further arguments by name.

    Returns:
      The groups, in the order of the leaves. Axes of size 1 are in none, nor are leaves
      that `fn` does not read.

    Raises:
      ValueError: two leaves have the same path, or a size is a symbol. Errors that `fn`
        raises when it is traced are passed on.

    >>> import jax
    >>> shape = lambda *s: jax.ShapeDtypeStruct(s, "float32")
    >>> fn = lambda params, x: jax.nn.relu(x @ params["up"]) @ params["down"]
    >>> params = {"up": shape(16, 64), "down": shape(64, 8)}
    >>> groups = channel_groups(fn, params, shape(2, 16))
    >>> print(groups)
    group  channels  members         permuted                taken out
    0      64        down[0], up[1]  yes                     yes
    1      8         down[1]         an output of the model  no
    2      16        up[0]           an input of the model   no
    >>> groups[0].members[1].role
    'output'
    """
    return find_groups(fn, params, args, kwargs)


def find_groups(
    fn: Callable[..., Any],
    params: PyTree,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
) -> ChannelGroups:
    """As `channel_groups`, for a tuple of arguments."""
    program = trace(fn, params, args, kwargs)
    shapes = array_shapes(flatten(params).by_path)
    graph = _graph(program.bound, len(shapes))
    for value in graph.values:
        if not all(isinstance(size, int | np.integer) for size in value.shape):
            raise ValueError(
                f"the shape {value.shape} has symbols: give arrays, or their shapes"
            )
    flow = read_graph(graph, shapes, len(program.inputs))
    return ChannelGroups(tuple(_groups(flow, list(shapes))))


def _graph(bound: BoundJaxpr, leaves: int) -> Graph:
    """Returns the graph of a program whose first inputs are leaves.

    A leaf that no result needs may belong to the model: in training batch statistics
    are only updated. What is computed from it shows which channels it has.
    """
    graph = graph_of(bound)
    idle = set(range(leaves)) - _used(graph)
    return graph_of(bound, idle) if idle else graph


def _used(graph: Graph) -> set[int]:
    """Returns the numbers of the values that steps or results use."""
    return {*graph.outputs, *(i for step in graph.steps for i in step.operands)}


def _groups(flow: Flow, paths: Sequence[str]) -> list[ChannelGroup]:
    parts, graph = flow.record.parts, flow.graph
    leaves = {flow.values[i].axes for i in range(len(paths))}
    settle_families(parts, flow.record.regions, leaves)
    used = _used(graph)
    locations: dict[int, list[tuple[str, Location]]] = {}
    for i, path in enumerate(paths):
        if i not in used:
            continue
        axes = flow.values[i].axes
        for atom in interleaved_atoms(parts, axes):
            fix(parts, atom, "interleaved with other channels")
        for location in locations_in(parts, axes):
            locations.setdefault(location.atom, []).append((path, location))
    free = [atom for atom in locations if "fixed" not in parts.marks.get(atom, {})]
    separate = separate_atoms(parts, flow.record.regions, free)
    roles = _roles(flow)
    return [
        _group(parts, atom, own, separate.get(atom, set()), roles)
        for atom, own in locations.items()
    ]


def _roles(flow: Flow) -> dict[tuple[str, int], ChannelRole]:
    """Returns what products do with the atoms of leaves, by path and atom."""
    roles: dict[tuple[str, int], ChannelRole] = {}
    for path, part, role in flow.record.roles:
        for atom in atoms_of(flow.record.parts, part):
            if roles.get((path, atom)) != "input":
                roles[path, atom] = role
    return roles


def _group(
    parts: Parts,
    atom: int,
    locations: Sequence[tuple[str, Location]],
    separate: set[int],
    roles: Mapping[tuple[str, int], ChannelRole],
) -> ChannelGroup:
    """Returns the group of an atom from all its locations."""
    index = [
        k
        for k in locations[0][1].factors
        if k in separate
        and all(location.factors.count(k) == 1 for _, location in locations)
    ]
    members = tuple(
        ChannelMember(
            path,
            location.slices,
            tuple(parts.sizes[x] for x in location.factors),
            location.channel,
            tuple(location.factors.index(k) for k in index),
            location.axis,
            roles.get((path, atom), "elementwise"),
        )
        for path, location in locations
    )
    marks = parts.marks.get(atom, {})
    kept = "" if "chosen" in marks else marks.get("kept", "")
    if any(location.stacked for _, location in locations):
        kept = kept or "other channels are stacked on it"
    fixed = marks.get("fixed", "")
    sizes = tuple(parts.sizes[k] for k in index)
    return ChannelGroup(parts.sizes[atom], sizes, members, fixed, fixed or kept)
