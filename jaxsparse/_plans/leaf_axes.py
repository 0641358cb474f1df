"""The axes of a leaf, before any rule is applied."""

from dataclasses import dataclass

from jaxsparse._plans.plan_error import Remedy
from jaxsparse._trace import Role


@dataclass(frozen=True)
class LeafAxes:
    """The role of each axis of a leaf in the product that contracts it.

    Attributes:
      group: the axis along which groups lie, or None if there is no single one.
      contracted: the axes that the product sums over. For a convolution, its input
        channels; its spatial axes are in none of the three.
      output: the axes that become axes of the result.
      batch: the axes along which there are separate products.
      alignment: what `m` must divide so that no group crosses an index at which the
        computation splits the axis; 0 if it does not split it.
      reason: why there is no group axis; empty if there is one.
      remedy: the kind of remedy for that, if there is one.
      note: a condition on the plan of a leaf that has a group axis.
      role: what the leaf is for, if it stays dense for that by default.
    """

    group: int | None = None
    contracted: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    alignment: int = 0
    reason: str = ""
    remedy: Remedy | None = None
    note: str = ""
    role: Role | None = None
