"""The command ``crystaldl``.

Exit codes: 0 done; 1 done, but a result is not confident; 2 bad input, said in one sentence on stderr; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crystaldl import __version__
from crystaldl.commands import diffuse, powder, stem
from crystaldl.commands.common import BAD_INPUT, DONE, EXPECTED, INTERRUPTED, say, table, write_json
from crystaldl.errors import PlausibilityWarning
from crystaldl.models.registry import registry


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process when left out.
    """
    args = _parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        warnings.simplefilter("always", PlausibilityWarning)
        try:
            return args.run(args)
        except BrokenPipeError:
            # the reader of a pipe has left; python would complain once more when it flushes stdout at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return DONE
        except KeyboardInterrupt:
            return INTERRUPTED
        except EXPECTED as error:
            if args.traceback:
                raise
            say("error", error)
            return BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crystaldl",
        description="Measured diffraction in, quantitative structure out.",
        epilog="Exit codes: 0 done, 1 a result is not confident, 2 bad input.",
    )
    parser.add_argument("--version", action="version", version=f"crystaldl {__version__}")
    parser.add_argument("--traceback", action="store_true", help="on an error, show where in the program it arose")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_models(commands)
    powder.add_classify(commands)
    diffuse.add_separate(commands)
    stem.add_strain(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_demo(commands)
    return parser


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    # other packages' warnings are for their programmers, not for someone at a terminal
    if issubclass(category, PlausibilityWarning):
        say("warning", message)


# ---------------------------------------------------------------------- models


def _add_models(commands: Any) -> None:
    parser = commands.add_parser("models", help="list the models that ship with the package")
    parser.add_argument("--json", action="store_true", help="the whole cards as JSON")
    parser.set_defaults(run=_models)


def _models(args: argparse.Namespace) -> int:
    cards = sorted(registry().values(), key=lambda card: (card.task, not card.default, card.name))
    if args.json:
        write_json([card.to_dict() for card in cards])
        return DONE
    if not cards:
        sys.stdout.write("No trained model ships with this version.\n")
        return DONE
    rows = []
    for card in cards:
        figures = "; ".join(f"{f['metric']} {_number(f['value'])} ({f['data']})" for f in card.figures[:3])
        size = f"{card.bytes / 1e6:.1f} MB"
        rows.append((card.name + " *" * card.default, card.task, f"{card.parameters:,}", size, figures))
    sys.stdout.write(table(("name", "task", "parameters", "size", "figures"), rows))
    sys.stdout.write("* default of its task\n")
    return DONE


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------- train, evaluate


def _add_train(commands: Any) -> None:
    train = commands.add_parser("train", help="train a model again, or a new one")
    wings = train.add_subparsers(dest="wing", required=True, metavar="WING")
    for wing in (powder, diffuse, stem):
        wing.add_train(wings)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="measure the models on data kept out of training")
    wings = evaluate.add_subparsers(dest="wing", required=True, metavar="WING")
    for wing in (powder, diffuse, stem):
        wing.add_evaluate(wings)


# ---------------------------------------------------------------------- demo


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser("demo", help="run the main jobs on sample data and draw a figure of each")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="output directory (default: %(default)s)")
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    from crystaldl.demo import run

    code = run(args.out)
    return code if isinstance(code, int) else DONE


if __name__ == "__main__":
    sys.exit(main())
