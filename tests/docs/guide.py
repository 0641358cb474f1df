"""Runs the code of a page and checks that it prints what the page says.

python -m tests.docs.guide FILE
"""

import io
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path


def run(path: Path) -> None:
    text, namespace, printed = path.read_text(), {}, ""
    assert text.startswith("# ")
    for language, block in re.findall(r"```(python|text)\n(.*?)```", text, re.DOTALL):
        if language == "python":
            with redirect_stdout(io.StringIO()) as out:
                exec(compile(block, path.name, "exec"), namespace)
            printed = out.getvalue()
        else:
            assert block.strip() == printed.strip(), printed


if __name__ == "__main__":
    run(Path(sys.argv[1]))
