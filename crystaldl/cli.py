"""The command ``crystaldl``.

Exit codes: 0 done; 1 done, but a result is not confident; 2 bad input, said in one sentence on stderr; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crystaldl import __version__
from crystaldl.errors import CrystaldlError, DataError, PlausibilityWarning
from crystaldl.models.registry import registry

DONE, NOT_CONFIDENT, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

# What the library raises for input it cannot use. Anything else is a defect and keeps its traceback.
EXPECTED = (CrystaldlError, ValueError, TypeError, OSError, ImportError)


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
            _say("error", error)
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
    _add_classify(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_demo(commands)
    return parser


def _say(kind: str, message: object, about: object = None) -> None:
    """One line on stderr."""
    text = " ".join(str(message).split()) or type(message).__name__
    if about is not None and str(about) not in text:
        text = f"{about}: {text}"
    sys.stderr.write(f"crystaldl: {kind}: {text}\n")


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    # other packages' warnings are for their programmers, not for someone at a terminal
    if issubclass(category, PlausibilityWarning):
        _say("warning", message)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows])
    return "".join(line.rstrip() + "\n" for line in lines)


def _plain(value: Any) -> Any:
    """Only what strict JSON knows: arrays become lists, and numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_json(value: Any) -> None:
    sys.stdout.write(json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


# ---------------------------------------------------------------------- models


def _add_models(commands: Any) -> None:
    parser = commands.add_parser("models", help="list the models that ship with the package")
    parser.add_argument("--json", action="store_true", help="the whole cards as JSON")
    parser.set_defaults(run=_models)


def _models(args: argparse.Namespace) -> int:
    cards = sorted(registry().values(), key=lambda card: (card.task, not card.default, card.name))
    if args.json:
        _write_json([card.to_dict() for card in cards])
        return DONE
    if not cards:
        sys.stdout.write("No trained model ships with this version.\n")
        return DONE
    rows = []
    for card in cards:
        figures = "; ".join(f"{f['metric']} {_number(f['value'])} ({f['data']})" for f in card.figures[:3])
        size = f"{card.bytes / 1e6:.1f} MB"
        rows.append((card.name + " *" * card.default, card.task, f"{card.parameters:,}", size, figures))
    sys.stdout.write(_table(("name", "task", "parameters", "size", "figures"), rows))
    sys.stdout.write("* default of its task\n")
    return DONE


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------- classify


def _add_classify(commands: Any) -> None:
    parser = commands.add_parser(
        "classify",
        help="crystal system and space group of powder patterns",
        description="Crystal system and space group of powder patterns, each with a calibrated probability.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path, help="measured powder patterns")
    parser.add_argument("--wavelength", help="in Å or by name (CuKa, MoKa, …); needed where the file does not say it")
    parser.add_argument("--method", default="auto", help="auto, network, npcnn, … (default: %(default)s)")
    parser.add_argument("--model", help="exact name of a model (see: crystaldl models)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="everything that is known, as JSON")
    parser.set_defaults(run=_classify)


def _wavelength(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _classify(args: argparse.Namespace) -> int:
    from crystaldl.powder.classify import classify_patterns
    from crystaldl.powder.pattern import PowderPattern

    patterns, errors = {}, {}
    for position, file in enumerate(args.files):
        try:
            patterns[position] = PowderPattern.from_file(file, wavelength=_wavelength(args.wavelength))
        except EXPECTED as error:
            _say("error", error, about=file)
            errors[position] = " ".join(str(error).split())
    results: dict[int, Any] = {}
    options = {"method": args.method, "model": args.model, "device": args.device}
    try:
        found = classify_patterns(list(patterns.values()), progress=_many(patterns), **options) if patterns else []
        results = dict(zip(patterns, found, strict=True))
    except DataError:
        # one pattern that cannot be classified must not cost the others their answer
        for position, pattern in patterns.items():
            try:
                (results[position],) = classify_patterns([pattern], progress=False, **options)
            except DataError as error:
                _say("error", error, about=args.files[position])
                errors[position] = " ".join(str(error).split())
    _write_results(args, results, errors)
    if errors:
        return BAD_INPUT
    return DONE if all(result.confident for result in results.values()) else NOT_CONFIDENT


def _many(patterns: Any) -> bool:
    """Whether a bar is worth showing, and someone is there to see it."""
    return len(patterns) > 1 and sys.stderr.isatty()


def _write_results(args: argparse.Namespace, results: dict[int, Any], errors: dict[int, str]) -> None:
    if args.json:
        entries = (
            {"file": str(file)} | (results[i].to_dict() if i in results else {"error": errors[i]})
            for i, file in enumerate(args.files)
        )
        _write_json(list(entries))
    elif results:
        rows = [_row(args.files[position], result) for position, result in results.items()]
        header = ("file", "system", "probability", "space group", "probability", "confident")
        sys.stdout.write(_table(header, rows))


def _row(file: Path, result: Any) -> tuple[str, ...]:
    number, symbol = result.space_group, result.space_group_symbol
    probability = result.space_group_probabilities[number - 1]
    system = result.crystal_system
    return (
        str(file),
        str(system),
        f"{result.crystal_system_probabilities[system]:.2f}",
        f"{symbol} ({number})",
        f"{probability:.2f}",
        "yes" if result.confident else "no",
    )


# ---------------------------------------------------------------------- train


def _add_train(commands: Any) -> None:
    train = commands.add_parser("train", help="train a model again, or a new one")
    wings = train.add_subparsers(dest="wing", required=True, metavar="WING")
    parser = wings.add_parser(
        "powder",
        help="the networks behind PowderPattern.classify",
        description="Train a powder network on simulated patterns. Under torchrun, one process per device.",
    )
    parser.add_argument("--minutes", type=float, help="wall-clock budget of the whole run, evaluations included")
    parser.add_argument("--max-steps", type=int, help="budget of the whole run in steps")
    parser.add_argument("--session-minutes", type=float, help="leave with a checkpoint after this long in this call")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    parser.add_argument("--resume", type=Path, metavar="CKPT", help="checkpoint (or output directory) to go on from")
    parser.add_argument("--out", type=Path, default=Path("training"), help="output directory (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--size", choices=("smoke", "full"), default="full", help="(default: %(default)s)")
    parser.add_argument("--model", help="which network to train; the recipe's default when left out")
    parser.add_argument("--shared", type=Path, metavar="DIR", help="directory with structures and measured patterns")
    parser.add_argument("--adapt", type=Path, metavar="CKPT", help="second stage: start from CKPT, add measured patterns")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.set_defaults(run=_train_powder)


def _train_powder(args: argparse.Namespace) -> int:
    # here and nowhere else: what a user runs must not need the training extra
    from tqdm.contrib.logging import logging_redirect_tqdm

    from crystaldl.powder.recipe import train_command

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Lightning announces devices and tips at INFO; the one line per evaluation is what matters
    logging.getLogger("lightning").setLevel(logging.WARNING)
    with logging_redirect_tqdm():
        code = train_command(args)
    return code if isinstance(code, int) else DONE


# ---------------------------------------------------------------------- evaluate


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="measure the models on data kept out of training")
    wings = evaluate.add_subparsers(dest="wing", required=True, metavar="WING")
    parser = wings.add_parser("powder", help="the methods of PowderPattern.classify, side by side")
    parser.add_argument("--shared", type=Path, required=True, metavar="DIR", help="structures and measured patterns")
    parser.add_argument("--runs", type=Path, required=True, metavar="DIR", help="training runs; adaptations are kept there")
    figures = ("measured", "held-out", "cubic", "mixtures", "realism")
    parser.add_argument("--only", nargs="+", choices=figures, help="some of the figures")
    parser.add_argument("--minutes", type=float, default=4.0, help="adaptation of one fold (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.set_defaults(run=_evaluate_powder)


def _evaluate_powder(args: argparse.Namespace) -> int:
    from crystaldl.powder.evaluate import evaluate_command

    sys.stdout.write(evaluate_command(args))
    return DONE


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
