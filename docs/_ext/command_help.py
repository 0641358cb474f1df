"""A directive that shows what a command prints with `--help`."""

import os
import subprocess
import sys
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class CommandHelp(SphinxDirective):
    """Runs `jaxsparse COMMAND --help`, as on a terminal of 80 columns."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Returns the output as a block of text."""
        command = [sys.executable, "-m", "jaxsparse", self.arguments[0], "--help"]
        help_text = subprocess.run(
            command,
            env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        return [nodes.literal_block(help_text, help_text, language="text")]


def setup(app: Any) -> dict[str, bool]:
    """Adds the directive `command-help`."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
