"""What a walk through a computation knows of its values, and what it writes down."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jax.extend import source_info_util

from jaxsparse._trace.jaxpr import Path, step_into
from jaxsparse._trace.view import View


class AbstractValue(NamedTuple):
    """What is known of a value.

    Attributes:
      views: what it shows of parameters, if it is made of nothing else.
      inputs: whether it depends on the inputs.
      params: whether it depends on parameters.
      zero: whether it is a constant of zeros.
      frontier: the products with parameters that reach it through no further one.
    """

    views: tuple[View, ...] = ()
    inputs: bool = False
    params: bool = False
    zero: bool = False
    frontier: frozenset[frozenset[str]] = frozenset()


@dataclass(frozen=True)
class Use:
    """One place where a computation uses a leaf.

    Attributes:
      primitive: the operation.
      kind: "contraction", "gather", "elementwise", or "lost" for an operation that is
        not understood.
      contracted: the leaf's axes that are summed over (a convolution: input channels).
      batch: the leaf's axes along which there are separate products.
      output: the leaf's axes that become axes of the result.
      group: the axis along which groups lie, or None.
      alignment: what `m` has to divide so that groups fit the product; 0 for anything.
      groups: the feature groups of a convolution.
      other: the shape of the other operand.
      merged: whether the leaf was summed with other parameters before.
      reason: why there is no group axis.
      node: the leaves that this product multiplies by.
      source: the line of the program, as far as JAX knows it.
    """

    primitive: str
    kind: str
    contracted: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    group: int | None = None
    alignment: int = 0
    groups: int = 1
    other: tuple[int, ...] | None = None
    merged: bool = False
    reason: str = ""
    node: frozenset[str] = frozenset()
    source: str = ""


class OperandAxes(NamedTuple):
    """What a product does with the axes of one of its operands."""

    contracted: tuple[int, ...]
    batch: tuple[int, ...]
    spatial: tuple[int, ...] = ()
    groups: int = 1


class Contraction(NamedTuple):
    """A product with a parameter.

    Attributes:
      operand: which of its operands shows the parameter, 0 or 1.
      side: what the product does with the axes of that operand.
      view: what the operand shows of the parameter.
      shape: the shape of the operand.
    """

    operand: int
    side: OperandAxes
    view: View
    shape: tuple[int, ...]


class Record(NamedTuple):
    """What a walk writes down, and where it is.

    Attributes:
      uses: pairs of a leaf and a use of it.
      before: products that others precede.
      after: products that others follow.
      contractions: products with parameters, by their path.
      path: the equations around, from the outermost one.
    """

    uses: list[tuple[str, Use]]
    before: set[frozenset[str]]
    after: set[frozenset[str]]
    contractions: dict[Path, list[Contraction]]
    path: Path = ()

    def inside(self, eqn, part: int = 0) -> "Record":
        """The same record, inside an equation."""
        return self._replace(path=step_into(self.path, eqn, part))


def new_record() -> Record:
    """A record in which nothing is written."""
    return Record([], set(), set(), {})


def combine(values: Sequence[AbstractValue]) -> AbstractValue:
    """What depends on all of these, without any view."""
    return AbstractValue(
        inputs=any(value.inputs for value in values),
        params=any(value.params for value in values),
        frontier=frozenset().union(*(value.frontier for value in values)),
    )


def source_line(eqn) -> str:
    """The line of the program that an operation comes from."""
    return source_info_util.summarize(eqn.source_info)
