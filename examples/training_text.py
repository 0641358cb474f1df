"""Text to train a pruned language model on, and to evaluate it on.

Pieces that share thirteen tokens in a row with the texts to evaluate on are left out.
"""

import re
from functools import partial

import numpy as np
from real_data import load_bible, load_reference
from smollm import load_tokenizer, spread


LENGTH = 513  # the last token of a piece is only predicted
SHARED = 13  # tokens in a row that training and evaluation do not share
CHARACTERS = 10_000_000  # of each file
EPOCHS = 6  # a text that is read more often is learned by heart


def cut(tokenizer, text):
    """All pieces of `LENGTH` tokens, encoded by paragraphs, in parallel."""
    paragraphs = tokenizer.encode_batch(re.split(r"(?<=\n\n)", text))
    tokens = np.concatenate([np.array(part.ids, np.int32) for part in paragraphs])
    return tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH)


def hashes(pieces):
    """A hash of every `SHARED` tokens in a row, a row for each piece."""
    factors = np.random.default_rng(0).integers(2**63, size=SHARED, dtype=np.uint64)
    width = LENGTH - SHARED + 1
    columns = [pieces[:, i : i + width].astype(np.uint64) for i in range(SHARED)]
    return sum(column * factor for column, factor in zip(columns, factors, strict=True))


def load_training(files, text_files, calibrated, evaluated):
    """Pieces to calibrate on, to train on (own and other texts), to evaluate on."""
    pieces = partial(cut, load_tokenizer())
    texts = {"KJV": load_bible(), "CPython": load_reference()}
    own = [pieces(text) for text, _ in texts.values()]
    held_out = {name: text for name, (_, text) in texts.items()}
    held_out |= {file.stem: file.read_text("utf-8") for file in text_files}
    held_out = {
        name: spread(pieces(text), evaluated) for name, text in held_out.items()
    }
    seen = np.unique([hashes(text) for text in held_out.values()])
    unseen = lambda text: text[~np.isin(hashes(text), seen).any(axis=1)]
    others = []
    for file in files:
        text = unseen(pieces(file.read_text("utf-8")[:CHARACTERS]))
        print(f"{file.name}: {text.size} tokens to train on")
        others.append(text)
    calibration = np.concatenate([spread(text, calibrated // 2) for text in own])
    own = unseen(np.concatenate(own))
    return calibration, own, np.concatenate(others or [own]), held_out


def mixed_batches(own, others, batch, steps):
    """Batches of which an eighth is from the texts that are calibrated on.

    It is less where these texts would be read more than `EPOCHS` times.
    """
    count = max(1, min(batch // 8, EPOCHS * len(own) // steps))
    rng = np.random.default_rng(0)

    def stream(pieces):
        while True:
            yield from pieces[rng.permutation(len(pieces))]

    first, second = stream(own), stream(others)
    for _ in range(steps):
        rows = [next(first) for _ in range(count)]
        yield np.stack(rows + [next(second) for _ in range(batch - count)])
