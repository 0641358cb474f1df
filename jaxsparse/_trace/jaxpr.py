"""One interpreter of jaxprs, for code that analyses, runs or rewrites a model.

`interpret` evaluates the equations of a jaxpr on values of any type. A rule decides
what an equation does, so the same interpreter can propagate axes of parameters (shapes
only, no compute) or arrays (see `evaluate`). `control_flow` reads the primitives that
contain jaxprs, for every supported version of JAX.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend import core
from jax.extend.core import JaxprEqn


class BoundJaxpr(NamedTuple):
    """A jaxpr with the constants that it closes over.

    Attributes:
      jaxpr: an open jaxpr, or a `SubJaxpr`, which has the same attributes.
      consts: one value for each of its `constvars`.
    """

    jaxpr: Any
    consts: Sequence[Any]


class Call(NamedTuple):
    """An equation that runs its jaxpr once, on its operands: `jit`, `remat`, ...

    Attributes:
      body: the jaxpr.
    """

    body: BoundJaxpr


class Scan(NamedTuple):
    """A `scan`. Its operands are constants, carries and stacked inputs, in this order.

    Attributes:
      body: the jaxpr of one step.
      num_consts: the number of constants.
      num_carry: the number of carries.
      length: the number of steps.
      reverse: whether steps run from the last to the first.
      unroll: the number of steps in one iteration of the compiled loop.
    """

    body: BoundJaxpr
    num_consts: int
    num_carry: int
    length: int
    reverse: bool
    unroll: int


class While(NamedTuple):
    """A `while` loop.

    Its operands are constants of the condition, constants of the body, and carries.

    Attributes:
      condition: the jaxpr that decides whether to go on.
      body: the jaxpr of one step.
      num_condition: the number of constants of the condition.
      num_body: the number of constants of the body.
    """

    condition: BoundJaxpr
    body: BoundJaxpr
    num_condition: int
    num_body: int


class Cond(NamedTuple):
    """A `cond` or `switch`. Its first operand is the index of the branch.

    Attributes:
      branches: the jaxprs, each of which takes the other operands.
    """

    branches: tuple[BoundJaxpr, ...]


class ShardMap(NamedTuple):
    """A `shard_map`, which runs its jaxpr on shards.

    Attributes:
      body: the jaxpr of one shard.
      mesh: the mesh.
      in_specs: how each operand is sharded.
      out_specs: how each output is sharded.
      check_vma: as in `jax.shard_map`.
      manual_axes: the axes of the mesh that it maps over.
    """

    body: BoundJaxpr
    mesh: Any
    in_specs: tuple[Any, ...]
    out_specs: tuple[Any, ...]
    check_vma: bool
    manual_axes: frozenset[str]


ControlFlow = Call | Scan | While | Cond | ShardMap


class PathStep(NamedTuple):
    """One equation on the path to another equation, or the last one itself.

    Attributes:
      identity: distinguishes it from all other equations of a program.
      primitive: the name of its primitive.
      part: the index of the jaxpr in it.
    """

    identity: int
    primitive: str
    part: int


#: The equations around an equation, from the outermost one, and the equation itself.
#: It identifies the equation: one jaxpr may be called by several equations.
Path = tuple[PathStep, ...]


def step_into(path: Path, eqn: JaxprEqn, part: int = 0) -> Path:
    """Returns the path of an equation, or of one of the jaxprs in it."""
    return (*path, PathStep(id(eqn), eqn.primitive.name, part))


#: For primitives that call one jaxpr once: the name of the parameter that holds it.
_CALLS = {
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "custom_vmap_call": "call",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
}


def var_shape(var: Any) -> tuple[Any, ...]:
    """Returns the shape of a variable or literal. Sizes are integers or symbols."""
    return tuple(var.aval.shape)


def control_flow(eqn: JaxprEqn) -> ControlFlow | None:
    """Returns how an equation runs the jaxprs in it; None if it contains none."""
    name, params = eqn.primitive.name, eqn.params
    if name in _CALLS:
        return Call(_bind_jaxpr(params[_CALLS[name]]))
    match name:
        case "scan":
            return _scan(eqn)
        case "while":
            return While(
                _bind_jaxpr(params["cond_jaxpr"]),
                _bind_jaxpr(params["body_jaxpr"]),
                params["cond_nconsts"],
                params["body_nconsts"],
            )
        case "cond":
            return Cond(tuple(map(_bind_jaxpr, params["branches"])))
        case "shard_map":
            return ShardMap(
                _bind_jaxpr(params["jaxpr"]),
                params["mesh"],
                params["in_specs"],
                params["out_specs"],
                params["check_vma"],
                frozenset(params["newly_manual_axes"]),
            )
    return None


def body_part(condition: BoundJaxpr) -> int:
    """Returns the index of a loop's body: 0, or 2 if it is a batch of loops.

    A batch of loops runs the body for the whole batch until its last loop is done.
    """
    return 2 if var_shape(condition.jaxpr.outvars[0]) else 0


def interpret(
    bound: BoundJaxpr,
    args: Sequence[Any],
    rule: Callable[[JaxprEqn, list[Any]], Sequence[Any]],
    constant: Callable[[Any], Any] = lambda value: value,
    *,
    effects: bool = False,
    keep: Callable[[Any], bool] = lambda _: False,
) -> list[Any]:
    """Evaluates a jaxpr equation by equation, on values of any type.

    Args:
      bound: the jaxpr and its constants.
      args: one value for each input.
      rule: `(equation, inputs) -> outputs`, on values of that type.
      constant: converts a literal or a constant array to a value of that type.
      effects: whether the rule is also called for what only equations without outputs
        need, such as a debug print. To an analysis that means nothing.
      keep: whether the rule is also called for all that is computed from an input of
        this value, though no output needs it.

    Returns:
      The values of the outputs.
    """
    jaxpr = bound.jaxpr
    env = dict(zip(jaxpr.constvars, map(constant, bound.consts), strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    kept = [var for var, arg in zip(jaxpr.invars, args, strict=True) if keep(arg)]
    live, last_use = _liveness(jaxpr, effects, kept)

    def read(var):
        return constant(var.val) if isinstance(var, core.Literal) else env[var]

    for i in live:
        eqn = jaxpr.eqns[i]
        outputs = rule(eqn, [read(var) for var in eqn.invars])
        env.update(zip(eqn.outvars, outputs, strict=True))
        for var in last_use.get(i, ()):
            del env[var]  # frees the memory of arrays
    return [read(var) for var in jaxpr.outvars]


def _bind_jaxpr(jaxpr: Any) -> BoundJaxpr:
    """Returns a closed or an open jaxpr with its constants."""
    return BoundJaxpr(getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()))


def _scan(eqn: JaxprEqn) -> Scan:
    """Reads the parts of a scan from shapes; its parameters differ between versions.

    Inside the body a stacked input or output has one axis fewer than outside.
    """
    body = _bind_jaxpr(eqn.params["jaxpr"])
    ranks = lambda variables: [len(var_shape(v)) for v in variables]
    num_unstacked = lambda inside, outside: sum(
        a == b for a, b in zip(ranks(inside), ranks(outside), strict=True)
    )
    num_carry = num_unstacked(body.jaxpr.outvars, eqn.outvars)
    return Scan(
        body,
        num_unstacked(body.jaxpr.invars, eqn.invars) - num_carry,
        num_carry,
        eqn.params["length"],
        eqn.params["reverse"],
        eqn.params["unroll"],
    )


def _liveness(
    jaxpr: Any, effects: bool, kept: Sequence[Any]
) -> tuple[list[int], dict[int, list[Any]]]:
    """Returns the equations that are needed, and the variables that each uses last.

    Needed is what outputs depend on, what has effects, and what depends on variables
    that are kept. A derivative traced by JAX contains the whole forward pass, needed or
    not.
    """
    variables = lambda vs: [v for v in vs if not isinstance(v, core.Literal)]
    needed = set(kept)
    for eqn in jaxpr.eqns if kept else ():
        if needed.intersection(variables(eqn.invars)):
            needed.update(eqn.outvars)
    needed.update(variables(jaxpr.outvars))
    live: list[int] = []
    last_use: dict[int, list[Any]] = {}
    for i, eqn in reversed(list(enumerate(jaxpr.eqns))):
        has_effect = eqn.effects and (effects or eqn.outvars)
        if not (has_effect or needed.intersection(eqn.outvars)):
            continue
        live.append(i)
        last_use[i] = sorted(set(variables(eqn.invars)) - needed, key=id)
        needed.update(variables(eqn.invars))
    return live[::-1], last_use
