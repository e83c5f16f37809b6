"""From a training run to a shipped network: weights and card.

``python -m crystaldl.diffuse.recipe.release --run DIR`` takes the averaged weights of ``crystaldl train diffuse --out DIR``,
measures them on simulated planes of molecules kept out of training, and writes both into the package. ``--measure NAME``
measures a model that is there already and writes one line a figure: the command in the card.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import ModelIntegrityError
from ...models.registry import PACKAGE_FOLDER, ModelCard, card, write_model
from ...training.records import learning_curve, logged, noted
from ..corruption import CLEAN, Corruption
from ..dsfunet import load_dsfunet
from ..network import PUBLISHED_WIDTH, SIDE, DSFUNet, UnrolledNet
from ..network_planes import BRIGHT, SPIKE
from ..unrolled import load_unrolled
from .stream import TRAINING, DiffuseStream
from .training import HELD_OUT_BANKS, MODELS, accuracy, held_out_planes
from .training_unrolled import separate_unrolled

CASES = {
    "clean": CLEAN,
    "Poisson 1000, masks": Corruption(counts=1000.0, masks="procedural", missing=(0.07, 0.55)),
    "all corruptions of training": TRAINING,
}
METRICS = {
    "sro_correlation_median": "correlation of SRO folded into a zone, median",
    "sro_correlation_mean": "correlation of SRO folded into a zone, mean",
    "sro_relative_rms": "relative rms error of folded SRO, median",
    "form_factor_measured": "relative rms error of the form factor, measured pixels, median",
    "form_factor_all": "relative rms error of the form factor, all pixels, median",
}
PLANES = 64             # of every case
SEED = 101              # of the evaluation stream


def measure(net: nn.Module, planes: int = PLANES, side: int = SIDE, banks: Mapping[str, int] = HELD_OUT_BANKS,
            device="cpu") -> dict[str, dict[str, float]]:
    """Figures of `recipe.accuracy` for each of `CASES` on ``planes`` planes of held-out molecules."""
    out = {}
    for name, corruption in CASES.items():
        stream = DiffuseStream(SEED, side, corruption, evaluation=True, **banks)
        out[name] = accuracy(net, held_out_planes(stream, planes), device, KINDS[type(net).__name__].separate)
    return out


def _card_figures(found: Mapping[str, Mapping[str, float]], name: str, planes: int) -> list[dict]:
    command = f"python -m crystaldl.diffuse.recipe.release --measure {name}"
    return [
        {"data": f"{planes} simulated planes, molecules kept out of training: {case}", "metric": text,
         "value": round(values[key], 4), "command": command}
        for case, values in found.items() for key, text in METRICS.items()
    ]  # fmt: skip


def _trained(run: Path, width: int, kind: Kind) -> nn.Module:
    """The network of a run with its averaged weights; what was there for training alone stays behind."""
    weights = {k.removeprefix(kind.prefix): v for k, v in _averaged(run).items() if k.startswith(kind.prefix)}
    return _filled(kind.network(width), run, weights, f"{kind.network.__name__}(width={width})")


def _averaged(run: Path) -> dict[str, Tensor]:
    from ...training.checkpoint import load_checkpoint_weights

    return load_checkpoint_weights(run)


def _filled(net, run: Path, weights: Mapping[str, Tensor], name: str):
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelIntegrityError(f"the weights in {run} do not fit {name}: {reason}") from error
    return net.eval().requires_grad_(False)


def _training_facts(run: Path, state: Mapping, model: str) -> dict:
    """Counts and times of the run, its learning curve, and what the caller noted there (hardware, commit)."""
    return noted(run) | {
        "learning_curve": learning_curve(logged(run), "planes", METRICS),
        "steps": state["step"], "planes": state["samples"], "seconds": round(state["elapsed"]), "seed": state["seed"],
        "recipe": f"crystaldl train diffuse --model {model}", "versions": state["versions"],
    }  # fmt: skip


def release(run: Path, folder: Path = PACKAGE_FOLDER, version: int = 1, overwrite: bool = False, **size) -> ModelCard:
    """Write the model of a run.

    Parameters
    ----------
    run : Path
        Output directory of ``crystaldl train diffuse`` of a compact width (the published one exceeds what may ship).
    folder : Path
        Where ``cards/`` and ``weights/`` are; the package's own by default.
    version : int
        Of the name ``diffuse-<model>-v<version>``.
    overwrite : bool
        Allow other weights under a name that ships already.
    **size
        Of the measurement, as in `measure`.
    """
    from ...training.checkpoint import read_state

    run, state = Path(run), read_state(run)
    model = state["task"].removeprefix("diffuse-")
    if model not in MODELS:
        known = ", ".join(f"'diffuse-{name}'" for name in MODELS)
        raise ModelIntegrityError(f"the checkpoint in {run} is of the task {state['task']!r}, expected one of {known}.")
    width, kind = MODELS[model][0], KINDS["UnrolledNet" if model == "unrolled" else "DSFUNet"]
    net, name = _trained(run, width, kind), f"diffuse-{model}-v{version}"
    for value in net.parameters():      # what ships is what is measured
        value.copy_(value.half().float() if value.ndim > 1 else value)
    found = measure(net, **size)
    return write_model(net.state_dict(), {
        "name": name, "task": "diffuse", "architecture": kind.network.__name__,
        "parameters": sum(p.numel() for p in net.parameters()), "default": False,
        "training": _training_facts(run, state, model), "figures": _card_figures(found, name, size.get("planes", PLANES)),
    } | kind.words(net, width), folder, overwrite=overwrite)  # fmt: skip


def _pair_words(net: nn.Module, width: int) -> dict:
    form = "as published" if width == PUBLISHED_WIDTH else f"at a quarter of the published width ({width})"
    return {
        "title": f"DSFU-Net {form}, re-trained", "arguments": {"width": width},
        "input": f"plane of {SIDE} × {SIDE} pixels, 2 √(I/I_max) - 1, -1 where not measured; {_TOP}",
        "reference": "Fuller & Rudden, IUCrJ 11, 34-44 (2024)",
        "notes": "Deterministic (no dropout at inference) and on the absolute scale: S has mean 1 over a zone, the product fits "
                 "the measured intensity. Trained on a small fraction of the planes of the publication, on planes with noise, "
                 "gaps, background and Bragg residues; its figures do not stand for the published weights.",
    }  # fmt: skip


def _unrolled_words(net: nn.Module, width: int) -> dict:
    return {
        "title": "Alternating least squares with learned denoisers, unrolled",
        "arguments": {"width": width, "stages": net.stages},
        "input": f"plane in units of I_max; which pixels were measured; the reciprocal lattice in the plane; {_TOP}",
        "reference": "Monga, Li & Eldar, IEEE Signal Process. Mag. 38(2), 18-44 (2021), for unrolled algorithms",
        "notes": "Deterministic and on the absolute scale: S has mean 1 over its cell. Knows the lattice, which "
                 "DSFU-Net does not. No uncertainties. Fails where holes of 4 px hide the "
                 "nodes. The training stream is that of diffuse-dsfunet-w16-v1.",
    }  # fmt: skip


_TOP = f"I_max the brightest pixel or, if less, {SPIKE:g} times the {100 * (1 - BRIGHT):g} % quantile"


@dataclass(frozen=True)
class Kind:
    """A kind of network: its class, what the names of its weights in a run begin with, how a model of the package is loaded,
    how it separates planes in `recipe.training.accuracy` where not as DSFU-Net does, and what a card says of it."""

    network: type
    prefix: str
    load: Callable
    separate: Callable | None
    words: Callable[[nn.Module, int], dict]


KINDS = {
    "DSFUNet": Kind(DSFUNet, "pair.", load_dsfunet, None, _pair_words),
    "UnrolledNet": Kind(UnrolledNet, "", load_unrolled, separate_unrolled, _unrolled_words),
}


def main(arguments=None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, help="output directory of crystaldl train diffuse")
    what.add_argument("--measure", metavar="NAME", help="measure a model of the package again")
    parser.add_argument("--folder", type=Path, default=PACKAGE_FOLDER, help="where cards/ and weights/ are")
    parser.add_argument("--version", type=int, default=1)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--planes", type=int, default=PLANES)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.run is not None:
        figures = release(args.run, args.folder, args.version, args.overwrite, planes=args.planes).figures
    else:
        kind = KINDS.get(card(args.measure, args.folder).architecture, KINDS["DSFUNet"])  # which says what it expected
        net, _ = kind.load(args.measure, "cpu", args.folder)
        figures = _card_figures(measure(net, args.planes), args.measure, args.planes)
    sys.stdout.write("".join(f"{f['value']:8.4f}  {f['metric']} ({f['data']})\n" for f in figures))


if __name__ == "__main__":
    main()
