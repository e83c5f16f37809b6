"""``crystaldl classify``, ``crystaldl train powder`` and ``crystaldl evaluate powder``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..errors import DataError
from .common import (
    BAD_INPUT,
    DONE,
    EXPECTED,
    NOT_CONFIDENT,
    add_training_options,
    many,
    run_training,
    say,
    table,
    write_json,
)


def add_classify(commands: Any) -> None:
    """Add ``classify`` to the subcommands."""
    parser = commands.add_parser(
        "classify",
        help="crystal system and space group of powder patterns",
        description="Crystal system and space group of powder patterns, each with a calibrated probability.",
        epilog="Example: crystaldl classify *.xy --wavelength CuKa --json",
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


def _classify(args: Any) -> int:
    from ..powder.classify import classify_patterns
    from ..powder.pattern import PowderPattern

    patterns, errors = {}, {}
    for position, file in enumerate(args.files):
        try:
            patterns[position] = PowderPattern.from_file(file, wavelength=_wavelength(args.wavelength))
        except EXPECTED as error:
            say("error", error, about=file)
            errors[position] = " ".join(str(error).split())
    results: dict[int, Any] = {}
    options = {"method": args.method, "model": args.model, "device": args.device}
    try:
        found = classify_patterns(list(patterns.values()), progress=many(patterns), **options) if patterns else []
        results = dict(zip(patterns, found, strict=True))
    except DataError:
        # one pattern that cannot be classified must not cost the others their answer
        for position, pattern in patterns.items():
            try:
                (results[position],) = classify_patterns([pattern], progress=False, **options)
            except DataError as error:
                say("error", error, about=args.files[position])
                errors[position] = " ".join(str(error).split())
    _write_results(args, results, errors)
    if errors:
        return BAD_INPUT
    return DONE if all(result.confident for result in results.values()) else NOT_CONFIDENT


def _write_results(args: Any, results: dict[int, Any], errors: dict[int, str]) -> None:
    if args.json:
        entries = (
            {"file": str(file)} | (results[i].to_dict() if i in results else {"error": errors[i]})
            for i, file in enumerate(args.files)
        )
        write_json(list(entries))
    elif results:
        rows = [_row(args.files[position], result) for position, result in results.items()]
        header = ("file", "system", "probability", "space group", "probability", "confident", "looks like")
        sys.stdout.write(table(header, rows))


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
        result.looks_like,
    )


def add_train(wings: Any) -> None:
    """Add ``powder`` to the subparsers of ``train``."""
    parser = wings.add_parser(
        "powder",
        help="the networks behind PowderPattern.classify",
        description="Train a powder network on simulated patterns. Under torchrun, one process per device.",
    )
    add_training_options(parser)
    parser.add_argument("--shared", type=Path, metavar="DIR", help="directory with structures and measured patterns")
    parser.add_argument("--adapt", type=Path, metavar="CKPT", help="second stage: start from CKPT, add measured patterns")
    parser.set_defaults(run=_train)


def _train(args: Any) -> int:
    from ..powder.recipe.training import train_command

    return run_training(train_command, args)


def add_evaluate(wings: Any) -> None:
    """Add ``powder`` to the subparsers of ``evaluate``."""
    parser = wings.add_parser(
        "powder",
        help="the methods of PowderPattern.classify, side by side",
        epilog="Example: crystaldl evaluate powder --shared data --runs runs",
    )
    parser.add_argument("--shared", type=Path, required=True, metavar="DIR", help="structures and measured patterns")
    parser.add_argument("--runs", type=Path, required=True, metavar="DIR", help="training runs; adaptations are kept there")
    figures = ("measured", "held-out", "cubic", "mixtures", "realism")
    parser.add_argument("--only", nargs="+", choices=figures, help="which figures (default: measured, those of the model cards)")
    parser.add_argument("--minutes", type=float, default=5.5, help="adaptation of one fold (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.set_defaults(run=_evaluate)


def _evaluate(args: Any) -> int:
    from ..powder.recipe.evaluate import evaluate_command

    sys.stdout.write(evaluate_command(args))
    return DONE
