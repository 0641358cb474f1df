"""Paths that differ only by numbers, folded into one name that says which.

The names have the braces of a shell: `layers.{0..11}.up`, `layers.{0,3}.up`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import TypeVar


_Item = TypeVar("_Item")
_NUMBER = re.compile("[0-9]{1,9}")


def fold(rows: Iterable[tuple[str, tuple[str, ...]]]) -> list[tuple[str, ...]]:
    """Folds rows `(path, cells)` that differ only by numbers in the path into one.

    >>> fold([("l_0/w", ("2:4",)), ("l_1/w", ("2:4",)), ("b", ("dense",))])
    [('l_{0,1}/w', '2:4'), ('b', 'dense')]
    """
    alike_rows: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for path, cells in rows:
        alike_rows.setdefault((without_numbers(path), cells), []).append(path)
    return [
        (name, *cells)
        for (_, cells), paths in alike_rows.items()
        for name in _fold_paths(paths)
    ]


def fold_with_others(
    rows: Iterable[tuple[str, tuple[str, ...]]],
    others: Iterable[tuple[str, tuple[str, ...]]],
) -> list[tuple[str, ...]]:
    """Folds rows as `fold` does, and further rows whatever their paths are.

    >>> fold_with_others([("w", ("2:4",))], [("act", ("-",)), ("norm", ("-",))])
    [('w', '2:4'), ('2 leaves', '-')]
    """
    paths_of: dict[tuple[str, ...], list[str]] = {}
    for path, cells in others:
        paths_of.setdefault(cells, []).append(path)
    return fold(rows) + [
        (paths[0] if len(paths) == 1 else f"{len(paths)} leaves", *cells)
        for cells, paths in paths_of.items()
    ]


def alike(items: Mapping[str, _Item]) -> dict[str, list[_Item]]:
    """Groups items whose paths differ only by numbers under one name.

    >>> alike({"l_0/w": 1, "l_1/w": 2, "b": 3})
    {'l_{0,1}/w': [1, 2], 'b': [3]}
    """
    alike_paths: dict[str, list[str]] = {}
    for path in items:
        alike_paths.setdefault(without_numbers(path), []).append(path)
    return {
        name: [items[path] for path in paths]
        for all_paths in alike_paths.values()
        for name, paths in _fold_paths(all_paths).items()
    }


def without_numbers(path: str) -> str:
    """Returns what a path has in common with those that differ only by numbers.

    >>> without_numbers("layers.11.up")
    'layers.*.up'
    """
    return _NUMBER.sub("*", path)


def _fold_paths(paths: Sequence[str]) -> dict[str, list[str]]:
    """Returns paths of one template by names that stand for exactly these paths."""
    path_of = {tuple(_NUMBER.findall(path)): path for path in paths}
    words = _NUMBER.split(paths[0])
    folded = {}
    for box in _boxes([*path_of]):
        members = [path_of[numbers] for numbers in product(*box)]
        braces = [_braces(values) for values in box]
        name = "".join(
            x for pair in zip(words, [*braces, ""], strict=True) for x in pair
        )
        folded[name] = members
    return folded


def _boxes(numbers: Sequence[tuple[str, ...]]) -> list[tuple[tuple[str, ...], ...]]:
    """Returns products of values at each position that together are these numbers.

    >>> _boxes([("0", "1"), ("0", "2"), ("1", "1"), ("1", "2"), ("2", "1")])
    [(('0', '1'), ('1', '2')), (('2',), ('1',))]
    """
    boxes = [tuple((number,) for number in each) for each in numbers]
    for i in reversed(range(len(numbers[0]))):
        merged: dict[tuple[tuple[tuple[str, ...], ...], ...], list[str]] = {}
        for box in boxes:
            merged.setdefault((box[:i], box[i + 1 :]), []).extend(box[i])
        boxes = [
            (*before, tuple(sorted(values, key=_value)), *after)
            for (before, after), values in merged.items()
        ]
    return boxes


def _value(number: str) -> tuple[int, str]:
    return int(number), number


def _braces(numbers: Sequence[str]) -> str:
    """Returns sorted numbers in braces, with three or more in a row as a range.

    >>> _braces(["0", "1", "2", "5", "7", "8"])
    '{0..2,5,7,8}'
    """
    if len(numbers) == 1:
        return numbers[0]
    runs: list[list[str]] = []
    for number in numbers:
        last = runs[-1][-1] if runs else None
        if last is not None and number == str(int(last) + 1).zfill(len(last)):
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = (f"{x[0]}..{x[-1]}" if len(x) > 2 else ",".join(x) for x in runs)
    return f"{{{','.join(texts)}}}"
