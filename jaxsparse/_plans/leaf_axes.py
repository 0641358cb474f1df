"""What is known of a leaf's axes before any rule is asked."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LeafAxes:
    """The part that each axis of a leaf plays in the product that consumes it.

    Attributes:
      group: the axis along which groups lie, or None where there is no single one.
      contracted: the axes that the product sums over (a convolution: its input
        channels, whose spatial axes are in none of the three).
      output: the axes that become axes of the result.
      batch: the axes along which there are separate products.
      alignment: what `m` has to divide so that no group straddles a cut that the
        computation makes along the axis; 0 where it makes none.
      reason: why there is no group axis; empty where there is one.
      note: what is to be known of a leaf that has one.
      head: whether this is the model's output layer.
    """

    group: int | None = None
    contracted: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    alignment: int = 0
    reason: str = ""
    note: str = ""
    head: bool = False
