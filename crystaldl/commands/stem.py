"""``crystaldl strain``, ``crystaldl train stem`` and ``crystaldl evaluate stem``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..storage import atomic
from .common import DONE, NOT_CONFIDENT, add_training_options, run_training, write_json


def add_strain(commands: Any) -> None:
    """Add ``strain`` to the subcommands."""
    parser = commands.add_parser(
        "strain",
        help="Bragg disks and a strain map of a 4D-STEM scan",
        description="Find the Bragg disks of a 4D-STEM scan and map the strain. Writes bragg.h5 and strain.h5 (EMD, for py4DSTEM), "
        "strain.png, disks.png and summary.json.",
        epilog="Example: crystaldl strain scan.h5 --probe vacuum.h5 --method correlation --out result",
    )
    parser.add_argument("file", type=Path, metavar="SCAN", help="whatever py4DSTEM reads, or npy")
    parser.add_argument("--probe", default="auto", help="file of a vacuum probe or vacuum scan; found in the scan when left out")
    parser.add_argument("--method", default="fcunet", help="fcunet or correlation (default: %(default)s)")
    parser.add_argument("--model", help="exact name of a network (see: crystaldl models)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    parser.add_argument("--memmap", action="store_true", help="leave the scan on disk")
    parser.add_argument("--out", type=Path, default=Path("strain"), help="output directory (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="the summary as JSON on stdout")
    parser.set_defaults(run=_strain)


def _strain(args: Any) -> int:
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np

    from ..stem.bragg import table_of
    from ..stem.datacube import DataCube
    from ..stem.strain.fit import fit_strain

    cube = DataCube.from_file(args.file, mem="MEMMAP" if args.memmap else "RAM")
    args.out.mkdir(parents=True, exist_ok=True)
    bragg = cube.find_bragg_disks(args.method, probe=_probe(args.probe), model=args.model, device=args.device,
                                  progress=sys.stderr.isatty(), out=args.out / "bragg.h5")  # fmt: skip
    disks = table_of(bragg)
    strain = fit_strain(bragg)
    strain.save(args.out / "strain.h5")
    figure, _ = strain.show()
    atomic.write_figure(args.out / "strain.png", figure)
    figure, _ = cube.show_disks(cube.shape[0] // 2, cube.shape[1] // 2, disks=bragg)
    atomic.write_figure(args.out / "disks.png", figure)
    maps = {name: np.asarray(strain.get_slice(name).data) for name in ("e_xx", "e_yy", "e_xy", "theta", "mask")}
    mask = maps.pop("mask") > 0
    rms = {name: float(np.std(values[mask])) if mask.any() else None for name, values in maps.items()}
    summary = {"file": str(args.file), "method": args.method, "scan": list(cube.shape[:2]), "disks": int(len(disks.intensity)),
               "positions_fitted": int(mask.sum()), "standard_deviation": rms}  # fmt: skip
    atomic.write_json(args.out / "summary.json", summary, indent=1)
    if args.json:
        write_json(summary)
    else:
        sys.stdout.write(f"{summary['disks']} disks, lattice fitted at {mask.sum()} of {mask.size} positions\n")
        sys.stdout.write(f"written to {args.out}\n")
    return DONE if mask.any() else NOT_CONFIDENT


def _probe(text: str) -> Any:
    """A probe image from a file, or "auto"."""
    if text == "auto":
        return text
    import numpy as np

    path = Path(text)
    if not path.exists():
        raise FileNotFoundError(f"probe is {text!r}, which does not exist.")
    if path.suffix == ".npy":
        image = np.load(path, allow_pickle=False)
        return image if image.ndim == 2 else image.reshape(-1, *image.shape[-2:]).mean(0)
    from ..stem.datacube import DataCube

    return DataCube.from_file(path).vacuum_probe()


def add_train(wings: Any) -> None:
    """Add ``stem`` to the subparsers of ``train``."""
    parser = wings.add_parser(
        "stem",
        help="the networks behind DataCube.find_bragg_disks(method='fcunet')",
        description="Train a network on simulated patterns: --model disknet (the default) or fcunet, which find disks, or "
        "factornet, which tells |V_g| of the disks found. Under torchrun, one process per device.",
    )
    add_training_options(parser)
    parser.set_defaults(run=_train)


def _train(args: Any) -> int:
    from ..stem.recipe.training import train_command

    return run_training(train_command, args)


def add_evaluate(wings: Any) -> None:
    """Add ``stem`` to the subparsers of ``evaluate``."""
    parser = wings.add_parser(
        "stem",
        help="the methods of DataCube.find_bragg_disks, side by side",
        description="Strain, positions and recall of py4DSTEM's correlation, of correlation and of the networks that ship, on "
        "simulated patterns kept out of training; strain also with an amorphous film, and on patterns by abTEM if installed; then "
        "the figures of the models' cards, measured again.",
        epilog="Example: crystaldl evaluate stem --runs runs --crystals 2 --patterns 24",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR",
                        help="training runs to compare as well; simulated disks are kept there (default: %(default)s)")  # fmt: skip
    parser.add_argument("--crystals", type=int, default=6, help="for strain, 14 patterns each (default: %(default)s)")
    parser.add_argument("--patterns", type=int, default=64, help="for recall (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.set_defaults(run=_evaluate)


def _evaluate(args: Any) -> int:
    from ..stem.recipe.evaluate import evaluate_command

    sys.stdout.write(evaluate_command(args))
    return DONE
