"""One walker over jaxprs, for whoever reads, runs or rewrites a model.

`interpret` goes through the equations of a jaxpr with values of any kind. What an
equation means is left to a rule, so that the same walk can carry axes of parameters
(no compute, shapes only) or arrays (see `evaluate`). `control_flow` reads the
primitives that hold jaxprs of their own, whichever version of JAX wrote them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend import core


class BoundJaxpr(NamedTuple):
    """A jaxpr inside an equation, with the constants that it closes over."""

    jaxpr: Any
    consts: Sequence[Any]


class Call(NamedTuple):
    """Runs its jaxpr once, on the operands of the equation: `jit`, `remat`, ..."""

    body: BoundJaxpr


class Scan(NamedTuple):
    """Operands are constants, carries and stacked inputs, in this order."""

    body: BoundJaxpr
    num_consts: int
    num_carry: int
    length: int
    reverse: bool
    unroll: int


class While(NamedTuple):
    """Operands are constants of the condition, of the body, and carries."""

    condition: BoundJaxpr
    body: BoundJaxpr
    num_condition: int
    num_body: int


class Cond(NamedTuple):
    """The first operand is the index of the branch, which takes the others."""

    branches: tuple[BoundJaxpr, ...]


class ShardMap(NamedTuple):
    """Runs its jaxpr on shards; a spec tells how an operand is cut."""

    body: BoundJaxpr
    mesh: Any
    in_specs: tuple[Any, ...]
    out_specs: tuple[Any, ...]
    check_vma: bool
    manual_axes: frozenset[str]


ControlFlow = Call | Scan | While | Cond | ShardMap


class PathStep(NamedTuple):
    """An equation on the way to another, or that itself.

    Attributes:
      identity: tells it from all others of a program.
      primitive: the name of its primitive.
      part: which of the jaxprs in it.
    """

    identity: int
    primitive: str
    part: int


#: Where an equation stands: those around it, from the outermost one, and itself. One
#: jaxpr may be called from several places.
Path = tuple[PathStep, ...]


def step_into(path: Path, eqn, part: int = 0) -> Path:
    """The path of an equation, or of one of the jaxprs in it."""
    return (*path, PathStep(id(eqn), eqn.primitive.name, part))


#: The parameter that holds the jaxpr of a primitive that calls it once.
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


def control_flow(eqn) -> ControlFlow | None:
    """How an equation runs the jaxprs in it; None for a primitive without any."""
    name, params = eqn.primitive.name, eqn.params
    if name in _CALLS:
        return Call(_inner(params[_CALLS[name]]))
    match name:
        case "scan":
            return _scan(eqn)
        case "while":
            return While(
                _inner(params["cond_jaxpr"]),
                _inner(params["body_jaxpr"]),
                params["cond_nconsts"],
                params["body_nconsts"],
            )
        case "cond":
            return Cond(tuple(map(_inner, params["branches"])))
        case "shard_map":
            return ShardMap(
                _inner(params["jaxpr"]),
                params["mesh"],
                params["in_specs"],
                params["out_specs"],
                params["check_vma"],
                frozenset(params["newly_manual_axes"]),
            )
    return None


def body_part(condition: BoundJaxpr) -> int:
    """The part that a loop's body is: 0, or 2 if it is a batch of loops.

    The steps of such a batch run for all of it until the last is done.
    """
    return 2 if condition.jaxpr.outvars[0].aval.shape else 0


def interpret(
    inner: BoundJaxpr,
    args: Sequence[Any],
    rule: Callable[[Any, list[Any]], Sequence[Any]],
    constant: Callable[[Any], Any] = lambda value: value,
) -> list[Any]:
    """Walks through a jaxpr.

    Args:
      inner: the jaxpr and its constants.
      args: one value of any kind for each input.
      rule: `(equation, inputs) -> outputs`, in values of that kind.
      constant: makes such a value of a literal or a constant array.

    Returns:
      The values of the outputs.
    """
    jaxpr = inner.jaxpr
    env = dict(zip(jaxpr.constvars, map(constant, inner.consts), strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    live, last_use = _liveness(jaxpr)

    def read(var):
        return constant(var.val) if isinstance(var, core.Literal) else env[var]

    for i in live:
        eqn = jaxpr.eqns[i]
        outputs = rule(eqn, [read(var) for var in eqn.invars])
        env.update(zip(eqn.outvars, outputs, strict=True))
        for var in last_use.get(i, ()):
            del env[var]  # so that values which are arrays free their memory
    return [read(var) for var in jaxpr.outvars]


def _inner(jaxpr) -> BoundJaxpr:
    """A closed or an open jaxpr."""
    return BoundJaxpr(getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()))


def _scan(eqn) -> Scan:
    """Reads the parts of a scan off the shapes; its parameters differ by version.

    Inside the body a stacked input or output has one axis less than outside.
    """
    body = _inner(eqn.params["jaxpr"])
    ranks = lambda variables: [len(v.aval.shape) for v in variables]
    same = lambda inside, outside: sum(
        a == b for a, b in zip(ranks(inside), ranks(outside), strict=True)
    )
    num_carry = same(body.jaxpr.outvars, eqn.outvars)
    return Scan(
        body,
        same(body.jaxpr.invars, eqn.invars) - num_carry,
        num_carry,
        eqn.params["length"],
        eqn.params["reverse"],
        eqn.params["unroll"],
    )


def _liveness(jaxpr) -> tuple[list[int], dict[int, list[Any]]]:
    """The equations that results depend on, in order, and what each is the last to use.

    A derivative traced by JAX holds the whole forward pass, needed or not.
    """
    variables = lambda vs: [v for v in vs if not isinstance(v, core.Literal)]
    needed = set(variables(jaxpr.outvars))
    live: list[int] = []
    last_use: dict[int, list[Any]] = {}
    for i, eqn in reversed(list(enumerate(jaxpr.eqns))):
        if not (eqn.effects or needed.intersection(eqn.outvars)):
            continue
        live.append(i)
        last_use[i] = sorted(set(variables(eqn.invars)) - needed, key=id)
        needed.update(variables(eqn.invars))
    return live[::-1], last_use
