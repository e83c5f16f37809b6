"""``crystaldl separate``, ``crystaldl train diffuse`` and ``crystaldl evaluate diffuse``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..storage import atomic
from .common import DONE, NOT_CONFIDENT, add_training_options, run_training, write_json


def add_separate(commands: Any) -> None:
    """Add ``separate`` to the subcommands."""
    parser = commands.add_parser(
        "separate",
        help="form factor and short-range order of diffuse scattering",
        description="Separate a plane or volume of diffuse scattering into molecular form factor and short-range order, and "
        "refine Warren-Cowley parameters. Writes separation.h5, alpha.csv, separation.png and summary.json.",
        epilog="Example: crystaldl separate volume.h5 --plane hk0 --laue 4/mmm --out result",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="Yell, Meerkat, NeXus, MDHisto, EMD, DISCUS or npy file")
    parser.add_argument("--plane", help="hk0, h0l, hk0.5, hhl, …; the whole volume when left out")
    parser.add_argument("--lattice", type=float, nargs=6, metavar=("A", "B", "C", "AL", "BE", "GA"), help="cell in Å and °")
    parser.add_argument("--radiation", choices=("xray", "neutron", "electron"), help="where the file does not say it")
    parser.add_argument("--missing", type=float, help="value that means not measured")
    parser.add_argument("--laue", help="Laue class: symmetrise first and constrain the order parameters")
    parser.add_argument("--centring", default="auto", help="of the lattice of the order, P to R, or auto (default: %(default)s)")
    parser.add_argument("--support", type=float, help="longest interatomic vector of the disordered unit, Å")
    parser.add_argument("--shells", type=int, default=6, help="shells of order parameters (default: %(default)s)")
    parser.add_argument("--method", default="auto", help="auto, physics, dsfunet or unrolled (default: %(default)s)")
    parser.add_argument("--model", help="exact name of a network (see: crystaldl models)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("separation"), help="output directory (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="the summary as JSON on stdout")
    parser.set_defaults(run=_separate)


def _separate(args: Any) -> int:
    import matplotlib

    matplotlib.use("Agg")
    from ..diffuse.volume import DiffuseVolume

    extra = {} if args.missing is None else {"missing": args.missing}
    volume = DiffuseVolume.from_file(args.file, lattice=args.lattice, radiation=args.radiation, **extra)
    if args.laue and volume.lattice is not None:
        from ..diffuse.symmetry import laue_operations

        laue_operations(args.laue, volume.lattice)      # says what is wrong before minutes of work
    if args.laue and volume.ndim == 3:
        volume = volume.symmetrize(args.laue)
    if args.plane:
        volume = volume.plane(args.plane)
    options = {"centring": args.centring} | ({} if args.support is None else {"support": args.support})
    parts = volume.separate(method=args.method, model=args.model, device=args.device, progress=sys.stderr.isatty(), **options)
    args.out.mkdir(parents=True, exist_ok=True)
    parts.save(args.out / "separation.h5")
    figure, _ = parts.show()
    atomic.write_figure(args.out / "separation.png", figure)
    summary = {"file": str(args.file), "plane": args.plane} | parts.to_dict()
    summary.pop("alpha", None)
    if volume.lattice is not None:
        fit = parts.refine_sro(shells=args.shells, laue=args.laue)
        fit.to_csv(args.out / "alpha.csv")
        figure, _ = fit.show()
        atomic.write_figure(args.out / "alpha.png", figure)
        summary["alpha"] = fit.to_dataframe().to_dict(orient="records")
    atomic.write_json(args.out / "summary.json", summary, indent=1)
    if args.json:
        write_json(summary)
    else:
        _print(parts, summary, args.out)
    return DONE if parts.applies else NOT_CONFIDENT


def _print(parts: Any, summary: dict[str, Any], out: Path) -> None:
    sys.stdout.write(f"{parts.verdict}\nR {100 * parts.r_factor:.2f} %, R free {100 * parts.r_free:.2f} %\n")
    for row in summary.get("alpha", [])[:12]:
        values = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
        sys.stdout.write("  " + "  ".join(f"{k} {v}" for k, v in zip(row, values, strict=True)) + "\n")
    sys.stdout.write(f"written to {out}\n")


def add_train(wings: Any) -> None:
    """Add ``diffuse`` to the subparsers of ``train``."""
    parser = wings.add_parser(
        "diffuse",
        help="the networks behind DiffuseVolume.separate(method='dsfunet') and 'unrolled'",
        description="Train DSFU-Net or the unrolled network (--model unrolled) on simulated planes. Under torchrun, one process "
                    "per device.",
    )
    add_training_options(parser)
    parser.set_defaults(run=_train)


def _train(args: Any) -> int:
    from ..diffuse.recipe.training import train_command

    return run_training(train_command, args)


def add_evaluate(wings: Any) -> None:
    """Add ``diffuse`` to the subparsers of ``evaluate``."""
    parser = wings.add_parser(
        "diffuse",
        help="the methods of DiffuseVolume.separate, side by side",
        epilog="Example: crystaldl evaluate diffuse --planes 2 --only cases",
    )
    parser.add_argument("--planes", type=int, default=2, help="simulated planes a case (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=("cases", "models", "speed"), help="some of the figures")
    parser.add_argument("--methods", nargs="+", help="some of the methods")
    parser.add_argument("--shared", type=Path, metavar="DIR", help="directory with diffuse/dsfu_net/masks_1-4.npz")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.set_defaults(run=_evaluate)


def _evaluate(args: Any) -> int:
    from ..diffuse.recipe.evaluate import evaluate_command

    sys.stdout.write(evaluate_command(args))
    return DONE
