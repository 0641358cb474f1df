"""The arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer


FileArgument = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="A .safetensors file, a .safetensors.index.json, the folder of a Hugging "
        "Face model, or the folder of an Orbax checkpoint.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PlainOption = Annotated[
    bool,
    typer.Option(
        "--plain",
        help="Print one line for each tensor, with tabs and whole names, as when the "
        "output is piped.",
    ),
]
VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", help="Print the name of each tensor to stderr."),
]
