"""Tables that fit a width: names are shortened in the middle, never wrapped."""

import math
import re
import textwrap
from collections import Counter
from collections.abc import Collection, Sequence


#: Names are not shortened to less.
_MIN_NAME = 12

#: The last column, of reasons, is not made narrower than this for longer names.
_MIN_LAST = 28


def fit_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> list[str]:
    """Returns the lines of a table that is as wide as `width` allows.

    The first column, of names, is shortened. The last column is wrapped. A table with
    more than fits in the others is wider than `width`.

    >>> rows = [("model.layers.0.up.weight", "64x32", "2:4 along axis 1")]
    >>> for line in fit_table(("tensor", "shape", "plan"), rows, 44):
    ...     print(line)
    tensor               shape  plan
    model…s.0.up.weight  64x32  2:4 along axis 1
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    free = width - sum(widths[1:-1]) - 2 * (len(widths) - 1)
    if widths[0] + widths[-1] > free:
        widths[-1] = max(min(widths[-1], _MIN_LAST), free - widths[0])
        widths[0] = min(widths[0], max(free - widths[-1], _MIN_NAME))
    short = shorten({row[0] for row in rows}, widths[0])
    lines: list[str] = []
    for first, *others in (header, *((short[x], *cells) for x, *cells in rows)):
        lines += _lines([first, *others], widths)
    return lines


def shorten(names: Collection[str], width: int) -> dict[str, str]:
    """Shortens names to a width in the middle, to different texts where that can be.

    >>> shorten(["model.layers.{0..3}.mlp.up.weight", "up.weight"], 32).values()
    dict_values(['up.weight', 'model.layers.{0..3}…lp.up.weight'])
    >>> list(shorten(["encoder.a.weight", "encoder.b.weight"], 12).values())
    ['e…r.a.weight', 'e…r.b.weight']
    """
    short = {name: name for name in names if len(name) <= width}
    choices = {name: _cuts(name, width) for name in names if len(name) > width}
    for i in range(max(map(len, choices.values()), default=0)):
        cuts = {name: texts[i] for name, texts in choices.items() if i < len(texts)}
        counts = Counter([*cuts.values(), *short.values()])
        short |= {name: cut for name, cut in cuts.items() if counts[cut] == 1}
        choices = {name: x for name, x in choices.items() if name not in short}
    return short | {name: texts[-1] for name, texts in choices.items()}


def _cuts(name: str, width: int) -> list[str]:
    """Returns a name without its middle in several ways, the best first.

    The best keeps the numbers of layers, the next the first part of the name.
    """
    kept = max(width - 1, 2)
    heads = [
        head[0]
        for pattern in (r".*?\}", r"[^./]+")
        if (head := re.match(pattern, name)) and len(head[0]) <= kept - _MIN_NAME
    ]
    heads += [name[: math.floor(kept * share)] for share in (0.1, 0.4, 0.6)]
    return [f"{head}…{name[len(head) - kept :].lstrip('./')}" for head in heads]


def _lines(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Returns the lines of a row, more than one if its last cell is wrapped."""
    *fixed, last = cells
    first, *more = textwrap.wrap(last, widths[-1]) or [""]
    start = "".join(
        f"{cell:{width}}  " for cell, width in zip(fixed, widths, strict=False)
    )
    return [f"{start}{first}".rstrip(), *(" " * len(start) + x for x in more)]
