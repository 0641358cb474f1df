"""Several writers of one path: the last one wins, and its tree is whole."""

import errno
import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse._files import rewrite_tensors
from tests.files.saved import SPLIT, assert_same, tree


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("hows", [[SPLIT, SPLIT], [{}, SPLIT], [{}, SPLIT, SPLIT, {}]])
def test_the_last_of_several_threads_wins(path, hows):
    trees = [tree(seed) for seed in range(len(hows))]
    for _ in range(10):
        start = threading.Barrier(len(hows))

        def save(i, start=start):
            start.wait()
            js.save_sparse(path, trees[i], **hows[i])

        with ThreadPoolExecutor(len(hows)) as pool:
            list(pool.map(save, range(len(hows))))
        loaded = js.load_sparse(path)
        winner = int(loaded["step"])
        assert_same(loaded, trees[winner])
        files = {x.name for x in path.parent.iterdir()}
        assert len(files) == (5 if hows[winner] else 1), files


def test_a_writer_waits_for_the_one_before(path):
    """The second of two writers begins while the first one writes its tensors."""
    js.save_sparse(path, {"a": jnp.zeros(4), "b": jnp.zeros(4)})
    headers = [js.open_tensors(path).headers["a"]]
    writing, proceed = threading.Event(), threading.Event()

    def change(_, tensor):
        writing.set()
        assert proceed.wait(60)
        return tensor + np.float32(1)

    first = threading.Thread(
        target=rewrite_tensors, args=(path, headers, path, change), kwargs=REPLACE
    )
    second = threading.Thread(target=js.save_sparse, args=(path, {"c": jnp.ones(2)}))
    first.start()
    assert writing.wait(60)
    second.start()
    second.join(0.2)
    assert second.is_alive()
    assert (js.load_sparse(path)["a"] == 0).all()
    proceed.set()
    first.join()
    second.join()
    assert list(js.load_sparse(path)) == ["c"]
    assert [x.name for x in path.parent.iterdir()] == [path.name]


REPLACE = {"replace": True}


@pytest.mark.parametrize("how", [{}, SPLIT])
def test_what_was_written_in_the_meantime_is_not_replaced(path, how):
    """Without --force, also if OUT appears after the command has looked for it."""
    source = path.with_name("source.safetensors")
    js.save_sparse(source, tree(0))
    headers = list(
        {x.path: x for x in js.open_tensors(source).headers.values()}.values()
    )
    js.save_sparse(path, tree(1), **how)
    with pytest.raises(FileExistsError, match="already exists"):
        rewrite_tensors(source, headers, path, lambda _, x: x, replace=False)
    assert_same(js.load_sparse(path), tree(1))


def test_the_lock_of_a_writer_that_was_killed(path):
    lock = path.with_name(f".{path.name}.lock")
    lock.touch()
    js.save_sparse(path, tree())
    assert [x.name for x in path.parent.iterdir()] == [path.name]


def test_a_failed_writer_leaves_no_lock(path, monkeypatch):
    def full(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", full)
    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            js.save_sparse(path, tree())
        assert not list(path.parent.iterdir())


def test_a_file_system_without_locks(path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match="only one process at a time write there"):
        js.save_sparse(path, tree())
    assert_same(js.load_sparse(path), tree())


def test_a_rewritten_file_has_checksums_of_its_new_tensors(path):
    js.save_sparse(path, tree(), **SPLIT)
    tensors = js.open_tensors(path)
    headers = {header.path: header for header in tensors.headers.values()}
    output = path.with_name("out.safetensors")
    change = lambda name, x: x + x.dtype.type(1) if name == "mlp/bias" else x
    rewrite_tensors(path, [*headers.values()], output, change, replace=False)
    np.testing.assert_array_equal(js.load_sparse(output)["mlp"]["bias"], [1, 2, 3])
