"""Tables of leaves as text, as HTML, and for consoles of `rich`."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

from jaxsparse._trees.fit_table import shorten


class Tabular(ABC):
    """A record of leaves that is displayed as a table.

    `print` shows plain text, a notebook HTML, and a console of `rich` a `rich` table.
    """

    leaves: tuple[Any, ...]

    @abstractmethod
    def _table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """Returns the header and the cells of each line."""

    def _total(self) -> Sequence[str] | None:
        """Returns the cells of the last line, about all leaves; None without it."""
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines about the leaves together, which are printed below the table."""
        return ()

    def __str__(self) -> str:
        header, rows = self._table()
        return "\n".join([table(header, [*rows, *self._totals()]), *self.notes])

    def _repr_html_(self) -> str:
        header, rows = self._table()
        head = _html_row("th", header)
        body = "\n".join(_html_row("td", cells) for cells in rows)
        foot = "".join(
            f"\n<tfoot>{_html_row('td', cells)}</tfoot>" for cells in self._totals()
        )
        notes = "".join(f"\n<p>{escape(note)}</p>" for note in self.notes)
        rows_html = f"<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>{foot}"
        return f"<table>\n{rows_html}\n</table>{notes}"

    def __rich__(self) -> Any:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        header, rows = self._table()
        lines = [*rows, *self._totals()]
        rich_table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for i, (name, *cells) in enumerate(zip(header, *lines, strict=True)):
            # Reasons are long; names are as wide as the rest allows.
            short = i > 0 and max(map(len, cells), default=0) <= 16
            rich_table.add_column(name, overflow="fold", no_wrap=short)
        for name, *cells in lines:
            # As `Text`, brackets in a path are not read as markup.
            first: Any = _RichName(name)  # it has the methods of a renderable
            rich_table.add_row(first, *map(Text, cells))
        if self.notes:
            rich_table.caption = Text("\n".join(self.notes))
        return rich_table

    def _totals(self) -> list[Sequence[str]]:
        total = self._total()
        return [] if total is None else [total]

    def as_dict(self) -> dict[str, Any]:
        """Returns data that JSON can hold: under `leaves` a dict for each leaf.

        Patterns become the strings that they print as.
        """
        return {"leaves": [_plain(leaf) for leaf in self.leaves]}


@dataclasses.dataclass(frozen=True)
class _RichName:
    """A name that a console of `rich` shortens in the middle and never wraps."""

    name: str

    def __rich_console__(self, _console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        yield Text(shorten([self.name], options.max_width)[self.name], no_wrap=True)

    def __rich_measure__(self, _console: Any, options: Any) -> Any:
        from rich.measure import Measurement

        width = min(len(self.name), options.max_width)
        return Measurement(min(width, 16), width)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table as text, its columns left-aligned and two spaces apart."""
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def shape_text(shape: tuple[int, ...]) -> str:
    """Returns a shape as text, such as `64x32`; `scalar` for a shape without axes."""
    return "x".join(map(str, shape)) or "scalar"


def weights_text(count: int) -> str:
    """Returns a number of weights as text, from ten millions on rounded.

    >>> weights_text(85_001), weights_text(124_439_808), weights_text(8_030_261_248)
    ('85,001', '124.4M', '8.03B')
    """
    for size, unit in ((10**9, "B"), (10**6, "M")):
        if count >= max(size, 10**7):
            return f"{count / size:.4g}{unit}"
    return f"{count:,}"


def percent_text(share: float) -> str:
    """Returns a share of one as text.

    >>> percent_text(0.5)
    '50.0 %'
    """
    return f"{100 * share:.1f} %"


def bytes_text(part: int, whole: int) -> str:
    """Returns a number of bytes as text, as a part of another number of bytes.

    >>> bytes_text(576, 1024), bytes_text(9 << 20, 16 << 20), bytes_text(64, 64)
    ('576 of 1024 B', '9 of 16 MiB', '64 B')
    """
    unit, size = "B", 1
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if whole // size < 10_000:
            break
        unit, size = larger, size * 1024
    prefix = "" if part == whole else f"{part / size:.4g} of "
    return f"{prefix}{whole / size:.4g} {unit}"


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _plain(leaf: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass as data that JSON can hold."""
    names = [field.name for field in dataclasses.fields(leaf)]
    return {name: _plain_value(getattr(leaf, name)) for name in names}


def _plain_value(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case tuple():
            return list(value)
    return str(value)
