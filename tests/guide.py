"""Runs the code of a page; what it prints has to be as the page says.

python -m tests.guide FILE
"""

import io
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path


def main():
    text, namespace, printed = Path(sys.argv[1]).read_text(), {}, ""
    for language, block in re.findall(r"```(python|text)\n(.*?)```", text, re.DOTALL):
        if language == "python":
            with redirect_stdout(io.StringIO()) as out:
                exec(compile(block, sys.argv[1], "exec"), namespace)
            printed = out.getvalue()
        else:
            assert block.strip() == printed.strip(), printed


if __name__ == "__main__":
    main()
