"""Products of squared ReLUs: where a program computes `relu(h)**2 @ w`.

The gradient of `h` is zero where `relu(h)` is, and if `h` is used for nothing else, it
is also that of the product that `h` comes from.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from jax.extend.core import JaxprEqn

from jaxsparse._trace.jaxpr import (
    BoundJaxpr,
    Call,
    Cond,
    Path,
    Scan,
    While,
    body_part,
    control_flow,
    interpret,
    step_into,
    var_shape,
)
from jaxsparse._trace.relu_equations import (
    has_literal,
    is_product_with_itself,
    is_relu,
    is_relu_jaxpr,
    is_square,
)


class SquaredReLUs(NamedTuple):
    """The products of squared ReLUs in a program.

    Attributes:
      products: by the path of each the operand, 0 or 1, that is a squared ReLU. The
        product sums over the last axis of it.
      relus: the paths of the ReLUs.
      sources: the products whose results reach nothing but squared ReLUs of these
        products, through sums and elementwise factors: their gradients are zero where
        those of `h` are.
    """

    products: dict[Path, int]
    relus: frozenset[Path]
    sources: frozenset[Path]

    def inside(self, path: Path) -> bool:
        """Returns whether any of this is inside the equation at a path."""
        outer = [step.identity for step in path]
        return any(
            [step.identity for step in inner[: len(outer)]] == outer
            for inner in (*self.products, *self.relus)
        )


def find_squared_relus(bound: BoundJaxpr) -> SquaredReLUs:
    """Returns the products that multiply by a squared ReLU.

    A ReLU is `jax.nn.relu(h)` or `jnp.maximum(h, 0)`. Nothing lies between it, its
    square and the product, but for calls of jitted functions.

    Args:
      bound: the program, a function that is not yet differentiated.

    Raises:
      ValueError: the program has the gradient of a squared ReLU in it, too.
    """
    notes = _Notes({}, {}, Counter(), set(), set(), set(), [])
    args = [None] * len(bound.jaxpr.invars)
    _use(_walk(bound, args, (), notes), notes)
    found = notes.products
    relus = frozenset(value.relu for value in found.values())
    if (
        relus & notes.transposed
        or notes.squared & notes.multiplied
        or (notes.squared and notes.checkpoints)
    ):
        shapes = {str(notes.shapes[relu]): None for relu in notes.squared}
        raise ValueError(
            f"fn multiplies a ReLU that it squares, of shape {' or '.join(shapes)}, by "
            "something else, or sums squares over other axes than the last, as "
            "gradients do: give the function that is differentiated, as in "
            "jax.grad(accelerate(loss, plan, activations=True))"
        )
    lone = [
        value.sources
        for value in found.values()
        if all(notes.uses[path] == 1 for path in value.lineage)
    ]
    products = {path: value.operand for path, value in found.items()}
    return SquaredReLUs(products, relus, frozenset[Path]().union(*lone))


NO_SQUARED_RELUS = SquaredReLUs({}, frozenset(), frozenset())


class _Value(NamedTuple):
    """A value on the way from a product to a squared ReLU.

    Attributes:
      stage: how far it is.
      sources: the products that it is a sum of.
      lineage: the equations that computed it from these, of which each result must be
        used once.
      made_by: the last of them.
      relu: the equation of the ReLU.
      direct: whether it is still a ReLU, or its square, as that was computed.
      operand: as which operand it reaches its product.
    """

    stage: Literal["sum", "relu", "squared"]
    sources: frozenset[Path]
    lineage: frozenset[Path]
    made_by: Path
    relu: Path = ()
    direct: bool = False
    operand: int = -1


class _Notes(NamedTuple):
    """What is noted on the way.

    Attributes:
      products: the squared ReLUs that reach a product, by its path.
      shapes: those of ReLUs.
      uses: how often the result of each equation is used.
      squared, multiplied: ReLUs that are squared, or multiplied by something else.
      transposed: those of squares in products that do not sum over their last axis.
      checkpoints: those with gradients inside.
    """

    products: dict[Path, _Value]
    shapes: dict[Path, tuple[Any, ...]]
    uses: Counter[Path]
    squared: set[Path]
    multiplied: set[Path]
    transposed: set[Path]
    checkpoints: list[Path]


def _walk(bound: BoundJaxpr, args: Sequence[Any], path: Path, notes: _Notes) -> Any:
    return interpret(bound, args, partial(_rule, path, notes), lambda _: None)


def _rule(
    path: Path, notes: _Notes, eqn: JaxprEqn, inputs: list[_Value | None]
) -> Sequence[_Value | None]:
    here = step_into(path, eqn)
    nothing = [None] * len(eqn.outvars)
    match control_flow(eqn):
        case None:
            _use(inputs[:1] if is_product_with_itself(eqn) else inputs, notes)
            return [_follow(here, notes, eqn, inputs), *nothing[1:]]
        case Call(body) if eqn.primitive.name.startswith("custom_"):
            _use(inputs, notes)  # its rule of derivatives is kept as it is
            return [_relu(here, notes, eqn, inputs)] if is_relu_jaxpr(body) else nothing
        case Call(body):
            if eqn.params.get("differentiated"):
                notes.checkpoints.append(here)
            if eqn.primitive.name not in CHECKPOINTS:
                return _walk(body, inputs, here, notes)
            inputs = [*map(_not_direct, inputs)]
            return [*map(_not_direct, _walk(body, inputs, here, notes))]
        case Scan(body=body, num_consts=consts, num_carry=carry):
            _use(inputs, notes)
            args = [*map(_inside_loop, inputs)]
            args[consts : consts + carry] = [None] * carry
            outputs = _walk(body, args, here, notes)
            _use(outputs, notes)
            return [None] * carry + [_inside_loop(x) for x in outputs[carry:]]
        case While(body=body) as loop:
            _use(inputs, notes)
            inside = step_into(path, eqn, body_part(loop.condition))
            _use(_walk(body, [None] * len(body.jaxpr.invars), inside, notes), notes)
        case Cond(branches=branches):
            _use(inputs, notes)
            for i, branch in enumerate(branches):
                args = [None] * len(branch.jaxpr.invars)
                _use(_walk(branch, args, step_into(path, eqn, i), notes), notes)
        case _:
            _use(inputs, notes)
    return nothing


def _use(values: Sequence[_Value | None], notes: _Notes) -> None:
    notes.uses.update(value.made_by for value in values if value is not None)


def _inside_loop(value: _Value | None) -> _Value | None:
    """Returns a value in a step of a loop, which one outside is not the source of."""
    if value is None or value.stage == "sum":
        return None
    return value._replace(sources=frozenset(), lineage=frozenset(), direct=False)


def _not_direct(value: _Value | None) -> _Value | None:
    return None if value is None else value._replace(direct=False)


def _follow(
    here: Path, notes: _Notes, eqn: JaxprEqn, inputs: Sequence[_Value | None]
) -> _Value | None:
    """Returns what is known about the result of an equation without jaxprs in it."""
    name = eqn.primitive.name
    values = [value for value in inputs if value is not None]
    if name == "dot_general":
        return _product(here, notes, eqn, inputs)
    if is_relu(eqn):
        return _relu(here, notes, eqn, values)
    if not values:
        return None
    value, *others = values
    if name in _KEEP or (name in _RESHAPES and _keeps_last_axis(eqn)):
        return _not_direct(_step(here, value))
    if value.stage == "sum" and name in _SUMS:
        if any(other.stage != "sum" for other in others):
            return None
        sources = value.sources.union(*(other.sources for other in others))
        lineage = value.lineage.union(*(other.lineage for other in others))
        return _step(here, value._replace(sources=sources, lineage=lineage))
    if value.stage == "sum" and name in _FACTORS and not others:
        return _step(here, value) if inputs[0] or name == "mul" else None
    if value.stage == "relu" and is_square(eqn):
        notes.squared.add(value.relu)
        return _step(here, value._replace(stage="squared"))
    if name not in _FACTORS:
        return None
    if value.stage == "relu" and has_literal(eqn) and (inputs[0] or name == "mul"):
        # A gradient multiplies this by something else.
        return _not_direct(_step(here, value))
    notes.multiplied.update(x.relu for x in values if x.stage == "relu")
    return None


CHECKPOINTS = frozenset(["checkpoint", "remat2"])
_KEEP = {"convert_element_type", "copy", "copy_p", "name", "sharding_constraint"}
_RESHAPES = {"expand_dims", "reshape", "squeeze"}
_SUMS, _FACTORS = {"add", "neg", "sub"}, {"div", "mul"}


def _product(
    here: Path, notes: _Notes, eqn: JaxprEqn, inputs: Sequence[_Value | None]
) -> _Value | None:
    axes, batch = eqn.params["dimension_numbers"]
    for operand, value in enumerate(inputs):
        if value is None or value.stage != "squared":
            continue
        aval: Any = eqn.invars[operand].aval
        last = len(aval.shape) - 1
        if last not in axes[operand] and not batch[operand]:
            notes.transposed.add(value.relu)
        elif tuple(axes[operand]) != (last,) or batch[operand]:
            continue
        elif value.direct and _is_large_enough(aval.shape) and _is_narrow(aval):
            notes.products[here] = value._replace(operand=operand)
    if batch[0] or not _is_narrow(eqn.outvars[0].aval):
        return None
    return _Value("sum", frozenset([here]), frozenset([here]), here)


def _is_large_enough(shape: tuple[Any, ...]) -> bool:
    """Whether the kernels take 2:4 forms of an activation, along either axis."""
    if len(shape) < 2 or not all(isinstance(size, int) for size in shape):
        return False
    return math.prod(shape[:-1]) % 16 == 0 and shape[-1] % 16 == 0


def _is_narrow(aval: Any) -> bool:
    return aval.dtype in ("bfloat16", "float16")


def _step(here: Path, value: _Value) -> _Value:
    return value._replace(lineage=value.lineage | {here}, made_by=here)


def _relu(
    here: Path, notes: _Notes, eqn: JaxprEqn, inputs: Sequence[_Value | None]
) -> _Value:
    notes.shapes[here] = var_shape(eqn.outvars[0])
    value = inputs[0] if inputs else None
    if value is None or value.stage != "sum":
        value = _Value("sum", frozenset(), frozenset(), here)
    return _step(here, value._replace(stage="relu", relu=here, direct=True))


def _keeps_last_axis(eqn: JaxprEqn) -> bool:
    old, new = var_shape(eqn.invars[0]), var_shape(eqn.outvars[0])
    in_order = eqn.primitive.name != "reshape" or eqn.params["dimensions"] is None
    return bool(in_order and old and new and old[-1] == new[-1])
