"""What is recorded of the products of a program, and of where their results go."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from jaxsparse._trace.features import Features
from jaxsparse._trace.graph import Graph
from jaxsparse._trace.jaxpr import Path
from jaxsparse._trace.record import Selection


class Reach(NamedTuple):
    """How a product's result reaches a later value.

    Attributes:
      features: the axes that hold its outputs; None after they were reduced.
      linear: whether the value is linear in the result.
    """

    features: Features
    linear: bool


#: Reaches by index of the product's step.
Reaches = Mapping[int, Reach]


class Flow(NamedTuple):
    """What a value is computed from.

    Attributes:
      leaves: the parameters that it depends on, if it depends on no input.
      inputs: whether it depends on the inputs.
      reaches: the products whose results reach it without passing another product.
    """

    leaves: frozenset[str] = frozenset()
    inputs: bool = False
    reaches: Reaches = MappingProxyType({})

    @property
    def outputs(self) -> frozenset[int]:
        """The products whose outputs it holds, not reduced."""
        return frozenset(i for i, x in self.reaches.items() if x.features is not None)

    @property
    def linear(self) -> frozenset[int]:
        """The products in whose outputs, not reduced, it is linear."""
        return frozenset(i for i in self.outputs if self.reaches[i].linear)


class Layer(NamedTuple):
    """One product with a weight.

    Attributes:
      leaves: the parameters that its weight is computed from or selected from; for a
        product of two weights, those of both.
      operand: the number of the value that is multiplied; None if both are weights.
      before: the products whose results reach that value, or scale a weight that the
        inputs select.
      contracted: the number of elements that it sums over.
      outputs: the number of outputs; for two weights, the lower number of rows.
    """

    leaves: frozenset[str]
    operand: int | None
    before: Reaches
    contracted: int
    outputs: int


class Meeting(NamedTuple):
    """An elementwise operation in which outputs of different products meet.

    Attributes:
      first: what its first operand is computed from.
      second: what its second operand is computed from.
      operands: their numbers.
      is_sum: whether it adds or subtracts them.
    """

    first: Flow
    second: Flow
    operands: tuple[int, int]
    is_sum: bool


class Layers(NamedTuple):
    """The products of a program, by index of their step.

    Attributes:
      graph: the program.
      num_params: the number of its parameters, the first values.
      selections: products with weights that the inputs select or scale.
      layers: products of a weight and another value, or of two weights.
      merges: products of two weights that are added to another value.
      meetings: where their outputs meet.
      chosen: products among whose outputs `top_k`, `argmax` or a sort chooses.
      normalized: products whose results go through a softmax or sigmoid.
      gates: products whose results scale the outputs of another one.
    """

    graph: Graph
    num_params: int
    selections: Mapping[Path, Selection]
    layers: dict[int, Layer]
    merges: set[int]
    meetings: list[Meeting]
    chosen: set[int]
    normalized: set[int]
    gates: set[int]
