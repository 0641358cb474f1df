"""Tables in which equal layers of a model are one line."""

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, TypeVar


_Item = TypeVar("_Item")


class Tabular(ABC):
    """A record of leaves that is displayed as a table.

    `print` shows plain text, a notebook HTML, and a console of `rich` a `rich` table.
    """

    leaves: tuple[Any, ...]

    @abstractmethod
    def _table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """Returns the header and the cells of each line."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines about the leaves together, which are printed below the table."""
        return ()

    def __str__(self) -> str:
        return "\n".join([table(*self._table()), *self.notes])

    def _repr_html_(self) -> str:
        header, rows = self._table()
        head = _html_row("th", header)
        body = "\n".join(_html_row("td", cells) for cells in rows)
        notes = "".join(f"\n<p>{escape(note)}</p>" for note in self.notes)
        rows_html = f"<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>"
        return f"<table>\n{rows_html}\n</table>{notes}"

    def __rich__(self) -> Any:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        header, rows = self._table()
        rich_table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for name, *cells in zip(header, *rows, strict=True):
            short = max(map(len, cells), default=0) <= 16  # paths and reasons are long
            rich_table.add_column(name, overflow="fold", no_wrap=short)
        for cells in rows:
            # As `Text`, brackets in a path are not read as markup.
            rich_table.add_row(*map(Text, cells))
        if self.notes:
            rich_table.caption = Text("\n".join(self.notes))
        return rich_table

    def as_dict(self) -> dict[str, Any]:
        """Returns data that JSON can hold: under `leaves` a dict for each leaf.

        Patterns become the strings that they print as.
        """
        return {"leaves": [_plain(leaf) for leaf in self.leaves]}


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


def fold(rows: Iterable[tuple[str, tuple[str, ...]]]) -> list[tuple[str, ...]]:
    """Folds rows `(path, cells)` that differ only by numbers in the path into one.

    >>> fold([("l_0/w1", ("2:4",)), ("l_1/w1", ("2:4",)), ("b", ("dense",))])
    [('l_*/w1 (x2)', '2:4'), ('b', 'dense')]
    """
    folded: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for path, cells in rows:
        folded.setdefault((_without_numbers(path), cells), []).append(path)
    return [(_folded_name(paths), *cells) for (_, cells), paths in folded.items()]


def alike(items: Mapping[str, _Item]) -> dict[str, list[_Item]]:
    """Groups items whose paths differ only by numbers under one name.

    >>> alike({"l_0/w": 1, "l_1/w": 2, "b": 3})
    {'l_*/w (x2)': [1, 2], 'b': [3]}
    """
    groups: dict[str, list[str]] = {}
    for path in items:
        groups.setdefault(_without_numbers(path), []).append(path)
    return {
        _folded_name(paths): [items[path] for path in paths]
        for paths in groups.values()
    }


def shape_text(shape: tuple[int, ...]) -> str:
    """Returns a shape as text, such as `64x32`; `scalar` for a shape without axes."""
    return "x".join(map(str, shape)) or "scalar"


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


def _folded_name(paths: Sequence[str]) -> str:
    """Returns one name for paths: a number that all of them share stays."""
    if len(paths) == 1:
        return paths[0]
    pieces = zip(*(re.split(r"(\d+)", path) for path in paths), strict=True)
    name = "".join(piece[0] if len(set(piece)) == 1 else "*" for piece in pieces)
    return f"{name} (x{len(paths)})"


def _without_numbers(path: str) -> str:
    return re.sub(r"\d+", "*", path)


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
