"""The options that choose a method of pruning and its calibration data."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from jaxsparse._language_models import MODEL_TYPES
from jaxsparse.cli.leaves import Leaves


class Method(Enum):
    """How the weights to keep are chosen."""

    magnitude = "magnitude"
    wanda = "wanda"
    sparsegpt = "sparsegpt"


MethodOption = Annotated[
    Method,
    typer.Option(
        "--method",
        help="magnitude keeps the largest weights. wanda weighs them by their inputs, "
        "and sparsegpt also updates those that are kept; both need --calibrate, and "
        f"the folder of a model of type {', '.join(MODEL_TYPES)}.",
    ),
]
CalibrateOption = Annotated[
    Path | None,
    typer.Option(
        "--calibrate",
        metavar="TEXT_OR_NPZ",
        help="What the model reads for wanda and sparsegpt: a text, or token ids as an "
        "array 'tokens' of shape (samples, length) in an .npz, or as an .npy.",
    ),
]
SamplesOption = Annotated[
    int | None,
    typer.Option(
        "--samples",
        min=1,
        help="How many sequences are chosen at random: of a text 128 by default, of "
        "token ids all.",
    ),
]
LengthOption = Annotated[
    int | None,
    typer.Option(
        "--length",
        min=1,
        help="Tokens in a sequence: of a text 512 by default, of token ids all.",
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="Chooses the sequences; 0 by default."),
]
PermuteOption = Annotated[
    bool,
    typer.Option(
        "--permute",
        help="First put the hidden channels of MLPs and the channels of values in the "
        "order with which n:m keeps most. The model computes the same. FILE is the "
        f"folder of a model of type {', '.join(MODEL_TYPES)}. The channels between "
        "blocks keep their order: they lie in every tensor, and gain least.",
    ),
]


@dataclass(frozen=True)
class Data:
    """The calibration data that are asked for.

    Attributes:
      path: the file.
      samples: the number of sequences, or None for the default.
      length: their length, or None for the default.
      seed: the seed of the choice.
    """

    path: Path
    samples: int | None
    length: int | None
    seed: int


def checked_data(
    leaves: Leaves,
    method: Method,
    path: Path | None,
    samples: int | None,
    length: int | None,
    seed: int | None,
) -> Data | None:
    """Returns the calibration data that a method uses; None for magnitude.

    Raises:
      ValueError: options are missing or have no effect, or FILE is no folder.
    """
    if method is Method.magnitude:
        for option, value in (
            ("--calibrate", path),
            ("--samples", samples),
            ("--length", length),
            ("--seed", seed),
        ):
            if value is not None:
                raise ValueError(
                    f"{option} has no effect on --method magnitude: give --method "
                    "wanda or sparsegpt"
                )
        return None
    if path is None:
        raise ValueError(
            f"--method {method.value} needs calibration data: give --calibrate with a "
            "text, or an .npz of token ids"
        )
    if leaves.kind != "folder":
        raise ValueError(
            f"{leaves.path} must be the folder of a Hugging Face model for --method "
            f"{method.value}, which runs the model that its config.json describes"
        )
    return Data(path, samples, length, seed or 0)
