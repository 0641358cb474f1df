"""Where elements along an axis may be the same, so that their order decides.

Of several largest elements `argmax` returns the first. The outputs of a product with a
weight are all different, but not those of `relu`, and not a value times a mask.
"""

from collections.abc import Sequence

from jaxsparse._channels.elementwise import COPIES
from jaxsparse._channels.parts import Parts, atoms_of, fix
from jaxsparse._channels.value import Value


#: Operations that keep different elements different, but for coincidences.
KEEPS_DISTINCT = COPIES | frozenset(
    [
        "abs",
        "add",
        "broadcast_in_dim",
        "div",
        "erf",
        "exp",
        "exp2",
        "log",
        "log1p",
        "logistic",
        "mul",
        "neg",
        "reshape",
        "slice",
        "squeeze",
        "sub",
        "tanh",
        "transpose",
    ]
)


def distinct_parts(parts: Parts, operands: Sequence[Value]) -> frozenset[int]:
    """Returns the parts along which all operands that have them have no ties."""
    atoms = [
        {x for axis in value.axes for x in atoms_of(parts, axis)} for value in operands
    ]
    own = [_atoms(parts, value) for value in operands]
    tied = {x for held, free in zip(atoms, own, strict=True) for x in held - free}
    return frozenset(x for free in own for x in free) - tied


def fix_ties(parts: Parts, value: Value, axis: int) -> None:
    """Fixes an axis of a value unless no two elements along it are the same."""
    if not set(atoms_of(parts, axis)) <= _atoms(parts, value):
        fix(parts, axis, "elements may be equal, and the first is chosen")


def _atoms(parts: Parts, value: Value) -> set[int]:
    return {x for part in value.distinct for x in atoms_of(parts, part)}
