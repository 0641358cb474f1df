"""`prune` on 2 GB: memory near the largest leaf, and killed twenty times.

It takes some minutes and 6 GB of disk, so only who names this file runs it:
`python -m pytest -s tests/long/prune_two_gigabytes.py`.
"""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.cli.command import assert_complete, command, kill_prune, write_matrices


LEAVES, ROWS, COLUMNS = 32, 8192, 4096
LARGEST = 2 * ROWS * COLUMNS

# By a small process, since the peak of a child counts what its parent had, too.
MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "model.safetensors"
    write_matrices(path, LEAVES, ROWS, COLUMNS)
    assert path.stat().st_size > 2 * 10**9
    yield path
    path.unlink()


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units")
def test_memory_stays_near_the_largest_leaf(model):
    output = model.with_name("out.safetensors")
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *command("prune", model, "-o", output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    seconds = time.perf_counter() - start
    peak = 1024 * int(done.stdout.split()[-1])
    print(f"\nprune of 2 GB: {seconds:.1f} s, {peak / 1e6:.0f} MB at most")
    assert peak < 3 * LARGEST + 600e6
    assert_complete(model, output)
    subprocess.run(command("check", output), stderr=subprocess.DEVNULL, check=True)
    output.unlink()


def test_killed_twenty_times(model):
    output = model.with_name("out.safetensors")
    draw = np.random.default_rng()
    complete = 0
    for _ in range(20):
        after, wait = int(draw.integers(0, LEAVES + 1)), float(draw.uniform(0, 0.5))
        assert kill_prune(model, output, after, wait=wait) in (-signal.SIGKILL, 0)
        if output.exists():
            complete += 1
            assert_complete(model, output)
            output.unlink()
        for left in model.parent.glob("out.*.tmp"):
            left.unlink()
    print(f"\n20 kills: {complete} times OUT was complete, else not there")
