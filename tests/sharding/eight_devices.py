"""Runs Python with the CPU as eight devices."""

import os
import subprocess
import sys


def run_on_eight_devices(*arguments):
    # Partitioning happens before LLVM, whose optimisations are not under test.
    flags = (
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
        " --xla_llvm_disable_expensive_passes=true"
    )
    run = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
