"""The command ``crystaldl``.

Exit codes: 0 done; 1 done, but a result is not confident; 2 bad input, said in one sentence on stderr; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crystaldl import __version__

from .commands import completion, diffuse, powder, stem
from .commands.common import BAD_INPUT, DONE, EXPECTED, INTERRUPTED, say, table, write_json
from .errors import PlausibilityWarning
from .models.registry import ModelCard, registry

#: columns of a terminal that tables keep to
WIDTH = 120


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process when left out.
    """
    args = _parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
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
    completion.add_completion(commands, parser)
    return parser


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    # other packages' warnings are for their programmers, not for someone at a terminal
    if issubclass(category, PlausibilityWarning):
        say("warning", message)


# ---------------------------------------------------------------------- models


def _add_models(commands: Any) -> None:
    parser = commands.add_parser(
        "models", help="list the models that ship with the package", epilog="Example: crystaldl models --json"
    )
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
    header = ("name", "task", "parameters", "size", "figures")
    heads = [_head(card) for card in cards]
    width = WIDTH - sum(2 + max(len(row[i]) for row in [header, *heads]) for i in range(4))
    rows: list[tuple[str, ...]] = []
    for card, head in zip(cards, heads, strict=True):
        lines = _figures(card, width) or [""]
        rows += [(*head, lines[0]), *(("", "", "", "", line) for line in lines[1:])]
    sys.stdout.write(table(header, rows))
    sys.stdout.write("* default of its task; crystaldl models --json has the whole cards\n")
    return DONE


def _head(card: ModelCard) -> tuple[str, ...]:
    size = f"{card.bytes / 1e6:.1f} MB" if card.bytes > 5e4 else "<0.1 MB"
    return card.name + " *" * card.default, card.task, f"{card.parameters:,}", size


def _figures(card: ModelCard, width: int) -> list[str]:
    """The first figures of a model as lines; a card may begin with those of the methods it is compared with."""
    own = card.architecture.lower()  # FCUNet is written FCU-Net in words
    figures = [f for f in card.figures if own in f["data"].replace("-", "").lower()] or card.figures
    texts = (f"{f['metric']} {_number(f['value'])} ({f['data']})" for f in figures[:3])
    return [line for text in texts for line in textwrap.wrap(text, width, subsequent_indent="  ")]


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------- train, evaluate


def _add_train(commands: Any) -> None:
    example = "Example: crystaldl train powder --size smoke --out run"
    train = commands.add_parser("train", help="train a model again, or a new one", epilog=example)
    wings = train.add_subparsers(dest="wing", required=True, metavar="WING")
    for wing in (powder, diffuse, stem):
        wing.add_train(wings)


def _add_evaluate(commands: Any) -> None:
    example = "Example: crystaldl evaluate diffuse"
    evaluate = commands.add_parser("evaluate", help="measure the models on data kept out of training", epilog=example)
    wings = evaluate.add_subparsers(dest="wing", required=True, metavar="WING")
    for wing in (powder, diffuse, stem):
        wing.add_evaluate(wings)


# ---------------------------------------------------------------------- demo


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="run the main jobs on sample data and draw a figure of each",
        epilog="Example: crystaldl demo --out demo_output",
    )
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="output directory (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="what was found, as JSON")
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    from .demo import run

    return run(args.out, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
