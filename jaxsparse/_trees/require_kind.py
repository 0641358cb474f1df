"""An argument of the wrong kind is refused before anything is read from it."""

from typing import Any


def require_kind(taker: str, given: Any, kinds: tuple[type, ...], remedy: str) -> None:
    """Raises unless an argument is of one of the kinds.

    Args:
      taker: the function that takes it.
      given: the argument.
      kinds: the classes that it may have.
      remedy: what to give instead.

    Raises:
      TypeError: it is of another kind.

    >>> require_kind("root", "2", (float,), "give float(x)")
    Traceback (most recent call last):
      ...
    TypeError: root takes a float, got str: give float(x)
    """
    if not isinstance(given, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        shape = getattr(given, "shape", None)
        got = type(given).__name__ + ("" if shape is None else f" of shape {shape}")
        raise TypeError(f"{taker} takes a {wanted}, got {got}: {remedy}")
