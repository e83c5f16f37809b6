"""What the subcommands of ``crystaldl`` share: exit codes, messages, tables, JSON and the options of training."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..errors import CrystaldlError
from ..storage.atomic import plain

DONE, NOT_CONFIDENT, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

# What the library raises for input it cannot use. Anything else is a defect and keeps its traceback.
EXPECTED = (CrystaldlError, ValueError, TypeError, OSError, ImportError)


def say(kind: str, message: object, about: object = None) -> None:
    """One line on stderr."""
    text = " ".join(str(message).split()) or type(message).__name__
    if about is not None and str(about) not in text and not text.startswith(Path(str(about)).name):
        text = f"{about}: {text}"
    sys.stderr.write(f"crystaldl: {kind}: {text}\n")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows])
    return "".join(line.rstrip() + "\n" for line in lines)


def write_json(value: Any, stream: TextIO | None = None) -> None:
    """Strict JSON on ``stream``, stdout when left out."""
    (stream or sys.stdout).write(json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def many(items: Any) -> bool:
    """Whether a bar is worth showing, and someone is there to see it."""
    return len(items) > 1 and sys.stderr.isatty()


def add_training_options(parser: Any) -> None:
    """The options that every ``crystaldl train`` has."""
    parser.epilog = f"Example: {parser.prog} --minutes 600 --device auto --out run"
    parser.add_argument("--minutes", type=float, help="wall-clock budget of the whole run, evaluations included")
    parser.add_argument("--max-steps", type=int, help="budget of the whole run in steps")
    parser.add_argument("--session-minutes", type=float, help="leave with a checkpoint after this long in this call")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    parser.add_argument("--resume", type=Path, metavar="CKPT", help="checkpoint (or output directory) to go on from")
    parser.add_argument("--out", type=Path, default=Path("training"), help="output directory (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--size", choices=("smoke", "full"), default="full", help="(default: %(default)s)")
    parser.add_argument("--model", help="which network to train; the recipe's default when left out")
    parser.add_argument("--threads", type=int, help="CPU threads")


def run_training(train_command: Callable[[Any], Any], args: Any) -> int:
    """Run a recipe's command with its log on the terminal."""
    # here and nowhere else: what a user runs must not need the training extra
    from tqdm.contrib.logging import logging_redirect_tqdm

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Lightning announces devices and tips at INFO; the one line per evaluation is what matters
    logging.getLogger("lightning").setLevel(logging.WARNING)
    with logging_redirect_tqdm():
        code = train_command(args)
    return code if isinstance(code, int) else DONE
