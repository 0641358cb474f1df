"""Verses of the King James Bible by group of books, and sentences of another text."""

import re
from typing import Any, NamedTuple

import numpy as np
from minilm import load_tokens
from real_data import bible_verses, load_reference
from smollm import spread


LENGTH = 64  # tokens of a sentence, at most

# Each begins a group: law, history, wisdom, prophets, Gospels and Acts, letters and
# Revelation.
FIRST_BOOKS = ("Genesis", "Joshua", "Job", "Isaiah", "Matthew", "Romans")


class Task(NamedTuple):
    """Tokens `(count, LENGTH)`, and the classes of those that have some."""

    calibration: Any
    fit: tuple[Any, Any]
    held_out: tuple[Any, Any]
    other: Any


def load_task(count):
    """Verses with their groups of books, `count` of either kind of chapter."""
    verses = bible_verses()
    books = list(dict.fromkeys(verse["book"] for verse in verses))
    first = [books.index(book) for book in FIRST_BOOKS]
    indices = [books.index(verse["book"]) for verse in verses]
    groups = np.searchsorted(first, indices, side="right") - 1
    is_odd = np.array([verse["chapter"] % 2 == 1 for verse in verses])

    def half(rows):
        rows = spread(np.flatnonzero(rows), count)
        return load_tokens([verses[i]["text"] for i in rows], LENGTH), groups[rows]

    parts = re.split(r"(?<=[.:])\s+|\n\s*\n", "\n".join(load_reference()))
    sentences = np.array([part for part in parts if len(part.split()) > 7])
    other = load_tokens(spread(sentences, count // 4), LENGTH)
    fit, held_out = half(~is_odd), half(is_odd)
    return Task(spread(fit[0], 256), fit, held_out, other)


def smoke_task(count=300):
    """Lines as bytes; the classes are six parts of a text."""
    lines = [line.encode()[:32] for line in load_reference()[0].split("\n") if line]
    padded = [list(line.ljust(32, b"\0")) for line in lines]
    tokens = spread(np.array(padded, np.int32), count)
    fit, held_out = (
        (tokens[i::2], np.arange(i, count, 2) * 6 // count) for i in (0, 1)
    )
    return Task(tokens[:64], fit, held_out, tokens[:64])
