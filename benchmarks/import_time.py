"""What `import jaxsparse` adds to `import jax, optax`.

    python -m benchmarks.import_time

Each import runs in a process of its own, the two in turn, and the median of the paired
differences is printed.
"""

import argparse
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version


def seconds(modules: str) -> float:
    """The time that importing takes in a fresh process, without starting Python."""
    code = (
        "import time; start = time.perf_counter(); "
        f"import {modules}; print(time.perf_counter() - start)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return float(run.stdout)


def main():
    """Prints the two medians and the median difference."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    seconds("jax, optax, jaxsparse")  # writes the byte code
    pairs = [
        (seconds("jax, optax"), seconds("jax, optax, jaxsparse")) for _ in range(rounds)
    ]
    before, after = (statistics.median(side) for side in zip(*pairs, strict=True))
    added = statistics.median(b - a for a, b in pairs)
    print(f"Python {platform.python_version()}, jax {version('jax')}, {rounds} rounds")
    print(f"import jax, optax             {before:.3f} s")
    print(f"import jax, optax, jaxsparse  {after:.3f} s")
    print(f"jaxsparse adds                {added:.3f} s")


if __name__ == "__main__":
    main()
