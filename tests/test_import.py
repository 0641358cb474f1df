"""What `import jaxsparse` brings along."""

import subprocess
import sys


def test_the_core_imports_none_of_its_optional_packages():
    code = """
import sys
import jaxsparse
optional = {"flax", "matplotlib", "safetensors", "typer", "rich", "equinox"}
heavy = optional & set(sys.modules)

print(sorted(heavy))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
