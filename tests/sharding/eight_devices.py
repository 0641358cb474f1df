"""Runs Python with the CPU as eight devices."""

import os
import subprocess
import sys

from tests import xla_flags


def run_on_eight_devices(*arguments):
    # Partitioning happens before what is left out.
    flags = f"--xla_force_host_platform_device_count=8 {xla_flags.QUICK}"
    run = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
