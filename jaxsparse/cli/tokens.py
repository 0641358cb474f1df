"""The token ids that a model is calibrated on, from a text or an array."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxsparse._language_models import LanguageModel
from jaxsparse.cli.console import print_note
from jaxsparse.cli.method import Data


@dataclass(frozen=True)
class Tokens:
    """Sequences of token ids.

    Attributes:
      path: the file that they are from.
      ids: the ids, int32 of shape `(samples, length)`.
      seed: the seed of their choice.
    """

    path: Path
    ids: np.ndarray
    seed: int

    def describe(self) -> str:
        """Returns the number of tokens and where they are from."""
        samples, length = self.ids.shape
        return (
            f"{self.ids.size:,} tokens: {samples} x {length} of {self.path}, seed "
            f"{self.seed}"
        )


def load_tokens(data: Data, folder: Path, model: LanguageModel) -> Tokens:
    """Returns the sequences that are asked for.

    Args:
      data: what is asked for.
      folder: the folder of the model, with the tokenizer for texts.
      model: the model, whose vocabulary and positions limit the ids.

    Raises:
      ValueError: the file is neither a text nor token ids, or they do not fit.
      ImportError: it is a text, and `tokenizers` is not installed.
    """
    if data.length is not None and data.length > model.positions:
        raise ValueError(
            f"--length {data.length} is more than the {model.positions} positions of "
            "the model"
        )
    if data.path.suffix in (".npz", ".npy"):
        sequences = _read_array(data.path)
        if data.length is not None:
            if data.length > sequences.shape[1]:
                raise ValueError(
                    f"{data.path} has sequences of {sequences.shape[1]} tokens, fewer "
                    f"than --length {data.length}"
                )
            sequences = sequences[:, : data.length]
        samples = data.samples or len(sequences)
    else:
        length = data.length or min(512, model.positions)
        sequences = _cut(_tokenize(data.path, folder), length, data.path)
        samples = data.samples or 128
    if sequences.shape[1] > model.positions:
        raise ValueError(
            f"{data.path} has sequences of {sequences.shape[1]} tokens, more than the "
            f"{model.positions} positions of the model: give --length {model.positions}"
        )
    _check_ids(sequences, data.path, model.vocab)
    if len(sequences) < samples:
        print_note(
            f"{data.path} has only {len(sequences)} sequences of {sequences.shape[1]} "
            f"tokens, not {samples}: all are used"
        )
    chosen = np.random.default_rng(data.seed).permutation(len(sequences))[:samples]
    ids = sequences[np.sort(chosen)].astype(np.int32)
    return Tokens(data.path, ids, data.seed)


def _read_array(path: Path) -> np.ndarray:
    """Returns the token ids of a file, of shape `(samples, length)`."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = {"tokens": loaded}
        else:
            with loaded:
                arrays = dict(loaded)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a file of numbers: {error}") from error
    if "tokens" not in arrays:
        raise ValueError(
            f"{path} has no array 'tokens', but {', '.join(arrays)}: save it with "
            "numpy.savez(path, tokens=ids)"
        )
    ids = arrays["tokens"]
    if ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"{path} has tokens of shape {ids.shape} and dtype {ids.dtype}: they must "
            "be integers of shape (samples, length)"
        )
    return ids


def _tokenize(path: Path, folder: Path) -> np.ndarray:
    """Returns the token ids of a text, by the tokenizer of a model."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is neither a text in UTF-8 nor an .npz or .npy of token ids: "
            f"{error}"
        ) from error
    try:
        import tokenizers
    except ImportError:
        raise ImportError(
            "to read a text, --calibrate needs tokenizers: python -m pip install "
            "tokenizers; or give token ids in an .npz"
        ) from None
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ValueError(
            f"there is no {file}, which a text needs: give --calibrate token ids in an "
            ".npz"
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no other class
        raise ValueError(f"{file} is not a tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)


def _cut(ids: np.ndarray, length: int, path: Path) -> np.ndarray:
    """Cuts token ids into sequences of a length; a rest is dropped."""
    if len(ids) < length:
        raise ValueError(
            f"{path} has {len(ids)} tokens, too few for one sequence of {length}: give "
            "a longer text, or a smaller --length"
        )
    return ids[: len(ids) // length * length].reshape(-1, length)


def _check_ids(ids: np.ndarray, path: Path, vocab: int) -> None:
    invalid = (ids < 0) | (ids >= vocab)
    if invalid.any():
        sample, position = (int(i) for i in np.argwhere(invalid)[0])
        raise ValueError(
            f"{path} has the token id {int(ids[sample, position])} at position "
            f"{position} of sequence {sample}, but the model has the ids 0 to "
            f"{vocab - 1}: use its own tokenizer"
        )
