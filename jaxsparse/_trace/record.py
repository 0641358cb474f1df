"""What the analysis knows about values, and what it records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from jax.extend import source_info_util
from jax.extend.core import JaxprEqn

from jaxsparse._trace.jaxpr import Path, step_into
from jaxsparse._trace.view import View


class Selected(NamedTuple):
    """A weight that the inputs select, as a value shows it.

    Attributes:
      leaf: the path of the parameter that it is selected from.
      axes: the axes of the value that are the weight's own.
    """

    leaf: str
    axes: frozenset[int]


class AbstractValue(NamedTuple):
    """What is known about a value.

    Attributes:
      views: how it shows parameters, if it is computed from nothing else.
      inputs: whether it depends on the inputs.
      params: whether it depends on parameters.
      sign: that of all elements of a constant: -1, 0 or 1; None if it is not known. If
        it is not 0, they may still be rounded to zero.
      counts: the axis along which it is `0, 1, 2, ...`, or lists other constants.
      one_hot: the axis along which it is one-hot, times anything, or a sum of such.
      selected: the weights that it shows, if the inputs select them.
    """

    views: tuple[View, ...] = ()
    inputs: bool = False
    params: bool = False
    sign: int | None = None
    counts: int | None = None
    one_hot: int | None = None
    selected: tuple[Selected, ...] = ()

    @property
    def zero(self) -> bool:
        """Whether it is a constant of zeros."""
        return self.sign == 0

    @property
    def varies(self) -> bool:
        """Whether it depends on the inputs, if only by a factor of a parameter."""
        return self.inputs or any(view.varies for view in self.views)

    def map_views(self, move: Callable[[View], View | None]) -> "AbstractValue":
        """Applies `move` to the views that are not lost; drops those that become None.

        Lost views are kept unchanged. Weights that the inputs select are no longer
        followed.
        """
        moved = [view if view.lost else move(view) for view in self.views]
        views = tuple(view for view in moved if view is not None)
        return self._replace(views=views, selected=())


#: How a computation uses a leaf: "lost" is an operation that is not understood.
UseKind = Literal["contraction", "gather", "elementwise", "lost"]

#: The reason of a leaf that is used, but by no product.
NOT_AN_OPERAND = "not a matmul operand"


@dataclass(frozen=True)
class Use:
    """One operation of a computation that uses a leaf.

    Attributes:
      primitive: the name of the operation's JAX primitive, or "return" for a leaf that
        is only part of a result.
      kind: "contraction", "gather", "elementwise", or "lost" for an operation that is
        not understood.
      contracted: the leaf's axes that are summed over (a convolution: input channels).
      batch: the leaf's axes along which there are separate products.
      output: the leaf's axes that become axes of the result.
      group: the axis along which groups lie, or None.
      alignment: what `m` must divide for groups to fit the product; 0 for any `m`.
      groups: the feature groups of a convolution.
      other: the shape of the other operand, whose sizes may be symbols.
      merged: whether the leaf was summed with other parameters before.
      reason: why there is no group axis.
      node: the leaves that this product multiplies by.
      source: the line of the program, as far as JAX knows it.
    """

    primitive: str
    kind: UseKind
    contracted: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    group: int | None = None
    alignment: int = 0
    groups: int = 1
    other: tuple[Any, ...] | None = None
    merged: bool = False
    reason: str = ""
    node: frozenset[str] = frozenset()
    source: str = ""


class OperandAxes(NamedTuple):
    """What a product does with the axes of one of its operands.

    Attributes:
      contracted: the axes that are summed over (a convolution: its input channels).
      batch: the axes along which there are separate products.
      spatial: the window axes of a convolution's kernel.
      groups: the feature groups of a convolution.
    """

    contracted: tuple[int, ...]
    batch: tuple[int, ...]
    spatial: tuple[int, ...] = ()
    groups: int = 1


class Contraction(NamedTuple):
    """A product with a parameter.

    Attributes:
      operand: the index of the operand that shows the parameter, 0 or 1.
      axes: what the product does with the axes of that operand.
      view: how the operand shows the parameter.
      shape: the shape of the operand.
    """

    operand: int
    axes: OperandAxes
    view: View
    shape: tuple[int, ...]


class Selection(NamedTuple):
    """A product with weights that the inputs select or scale.

    Attributes:
      operand: the index of the operand that shows them, 0 or 1.
      leaves: their paths.
    """

    operand: int
    leaves: frozenset[str]


class Record(NamedTuple):
    """What the analysis records, and the equation it is inside of.

    Attributes:
      uses: pairs of a leaf's path and a use of the leaf.
      contractions: products with parameters, by the path of their equation.
      selections: products with weights that the inputs select or scale, likewise.
      path: the surrounding equations, from the outermost one.
    """

    uses: list[tuple[str, Use]]
    contractions: dict[Path, list[Contraction]]
    selections: dict[Path, Selection]
    path: Path = ()

    def inside(self, eqn: JaxprEqn, part: int = 0) -> "Record":
        """Returns the same record, inside one of the jaxprs of an equation."""
        return self._replace(path=step_into(self.path, eqn, part))


def new_record() -> Record:
    """Returns an empty record."""
    return Record([], {}, {})


def combine(values: Sequence[AbstractValue]) -> AbstractValue:
    """Returns a value without views that depends on all of these."""
    return AbstractValue(
        inputs=any(value.inputs for value in values),
        params=any(value.params for value in values),
    )


def source_line(eqn: JaxprEqn) -> str:
    """Returns the line of the program that an equation comes from."""
    return source_info_util.summarize(eqn.source_info)
