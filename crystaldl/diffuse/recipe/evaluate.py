"""Figures of the separation of diffuse scattering, each reproducible by ``crystaldl evaluate diffuse``.

Planes are simulated from molecules whose composition training never sees; every case spoils the same planes in one way.
"""
from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ...errors import CrystaldlError
from ...models.registry import available
from ..corruption import CLEAN, Corruption
from ..masks import read_masks
from ..network import PUBLISHED_WIDTH, SIDE, DSFUNet
from ..separate import separate
from ..simulate import PlaneSpec, SimulatedPlanes, simulate_planes
from .evaluate_models import crystals, format_rankings, rank_models
from .evaluate_scores import Score, failed, plane_volume, score, simulated_volume, to_torch_threads
from .stream import DiffuseStream

SEED = 20240611
PLANES = 4
CRYSTALS, MODEL_SIZE = 20, 128      # planes on which structural models are told apart, and pixels an edge of them
PARTS = ("cases", "models", "speed")
METHODS = ("physics", "dsfunet", "unrolled", "auto")
NETWORKS = ("dsfunet", "unrolled")
MASK_FILE = Path("diffuse") / "dsfu_net" / "masks_1-4.npz"
COLUMNS = ("s_correlation", "s_error", "d_measured", "d_hidden", "d_all", "alpha_error")
Table = dict[tuple[str, str], list[Score]]
"""Scores of all planes by (case, method)."""
WORST = {"s_correlation": np.nanmin}        # of the others it is the largest


def evaluation_stream(size=SIDE) -> DiffuseStream:
    """Where all planes of the evaluation come from."""
    return DiffuseStream(seed=SEED, size=size, corruption=CLEAN, evaluation=True, monte_carlo=32, orders=64, pairs=512)


def mask_bank(shared: Path | None) -> np.ndarray | str:
    """Masks of real detectors (n, 256, 256) where the folder holds them; otherwise the word for procedural ones."""
    if shared is None:
        return "procedural"
    for path in (shared / MASK_FILE, shared / "data" / MASK_FILE):
        if path.is_file():
            return read_masks(path)
    raise FileNotFoundError(f"shared is {str(shared)!r}, which has no {MASK_FILE}; expected the directory that has it, or none.")


def cases(masks: np.ndarray | str = "procedural") -> dict[str, tuple[Corruption, bool]]:
    """What is done to the planes, and whether the analyst is given standard uncertainties."""
    kind = "procedural" if isinstance(masks, str) else "detector"
    return {
        "clean": (CLEAN, False),
        "Poisson 1000": (Corruption(counts=1000.0), False),
        "Poisson 100": (Corruption(counts=100.0), False),
        "Poisson 100, with sigma": (Corruption(counts=100.0), True),
        f"{kind} masks": (Corruption(masks=masks), False),
        "holes 2.5 px": (Corruption(hole_radius=2.5), False),
        "holes 4 px": (Corruption(hole_radius=4.0), False),
        "background 3 %": (Corruption(background=0.03, background_kind="flat"), False),
        "rings 10 %": (Corruption(background=0.1, background_kind="ring"), False),
        "residual Bragg": (Corruption(bragg=1.0), False),
        "Bragg, Poisson 1000": (Corruption(bragg=1.0, counts=1000.0), False),
        "lattice off by 0.5 %": (Corruption(lattice_error=0.005), False),
    }


def methods_at_hand(wanted: Sequence[str] | None = None) -> tuple[str, ...]:
    """The methods that can run: a network only where a model of its kind ships."""
    unknown = set(wanted or ()) - set(METHODS)
    if unknown:
        raise ValueError(f"methods names {', '.join(sorted(unknown))}; expected some of {', '.join(METHODS)}.")
    there = {m for m in NETWORKS if any(name.startswith(f"diffuse-{m}") for name in available("diffuse"))}
    return tuple(m for m in wanted or METHODS if m not in NETWORKS or m in there)


# ------------------------------------------------------------------------------------------ accuracy


def accuracy(specs: Sequence[PlaneSpec], corruptions: dict, methods: Sequence[str], size=SIDE) -> Table:
    """Scores of every plane by (case, method), as many planes at a time as there are threads.

    Noise and corruption of a case are the same for every method.
    """
    out: Table = {}
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for case, (corruption, with_sigma) in corruptions.items():
                planes = simulate_planes(specs, corruption, size=size, seed=SEED)
                jobs = {method: [pool.submit(_one, spec, planes, index, method, with_sigma) for index, spec in enumerate(specs)]
                        for method in methods}
                for method, own in jobs.items():
                    out[case, method] = [job.result() for job in own]
    finally:
        torch.set_num_threads(threads)
    return out


def _one(spec: PlaneSpec, planes: SimulatedPlanes, index: int, method: str, with_sigma: bool) -> Score:
    volume = plane_volume(spec, planes, index, sigma=with_sigma)
    start = time.perf_counter()
    try:
        parts = separate(volume, method=method, device="cpu", progress=False)
    except CrystaldlError as error:
        return failed(str(error), time.perf_counter() - start)
    return score(parts, spec, planes, index, time.perf_counter() - start)


def _column(scores: Sequence[Score], name: str) -> np.ndarray:
    return np.array([getattr(s, name) for s in scores], dtype=float)


def _cell(name: str, values: np.ndarray) -> str:
    if not np.isfinite(values).any():
        return f"{'-':>15}"
    mean, worst = np.nanmean(values), WORST.get(name, np.nanmax)(values)
    digits = {"s_correlation": 5, "alpha_error": 4}.get(name, 3)
    return f"{mean:7.{digits}f} {worst:7.{digits}f}"


def _coverage(scores: Sequence[Score], name: str) -> str:
    inside = [dict(s.coverage).get(f"{name} {level}", np.nan) for level in ("68", "95") for s in scores]
    low, high = np.reshape(inside, (2, -1))
    return f"{'-':>7}" if not np.isfinite(low).any() else f"{100 * np.nanmean(low):3.0f} {100 * np.nanmean(high):3.0f}"


def format_accuracy(scores: Table) -> str:
    """The table: mean and worst over the planes, coverage of the 68 and 95 % intervals in percent, seconds a plane."""
    heads = ("S correlation", "S rel. RMS", "D measured", "D hidden", "D all", "alpha RMS")
    wide = [f"{h:>15}" for h in heads] + [f"{n:>7}" for n in ("alpha", "S", "D", "s")]
    below = [f"{'mean   worst':>15}"] * len(heads) + [f"{'68  95':>7}"] * 3
    lines = [f"{'case':24}{'method':9}" + "  ".join(wide), f"{'':33}" + "  ".join(below)]
    for (case, method), found in scores.items():
        parts = [_cell(name, _column(found, name)) for name in COLUMNS] + [f"{_coverage(found, n):>7}" for n in ("alpha", "S", "D")]
        failures = sum(bool(s.failure) for s in found)
        note = f"  {failures} of {len(found)} failed: {next(s.failure for s in found if s.failure)}" if failures else ""
        lines.append(f"{case:24}{method:9}" + "  ".join(parts) + f"  {np.mean(_column(found, 'seconds')):7.1f}{note}")
    return "\n".join(lines)


def describe(specs: Sequence[PlaneSpec]) -> str:
    """What the planes are, a line each."""
    lines = []
    for k, s in enumerate(specs):
        direct = 2 * np.pi * np.linalg.inv(s.reciprocal).T
        a, b = np.linalg.norm(direct, axis=1)
        period = np.linalg.norm(s.period, axis=1).min()
        far = np.linalg.norm(s.vectors[np.abs(s.alpha) > 0.05], axis=1).max(initial=0.0)
        lines.append(
            f"  {k:2d}  {s.family:34.34s}  {s.radiation:8}  cell {a:5.2f} × {b:5.2f} Å  molecule {s.support:4.1f} Å  "
            f"shortest period {period:5.1f} px  largest alpha {np.abs(s.alpha).max(initial=0):.2f}, above 0.05 to {far:.1f} cells"
        )
    return "\n".join(lines)


def hardest(scores: Table, method: str = "auto") -> str:
    """For each case the planes on which a method is furthest off."""
    lines = []
    for (case, own), found in scores.items():
        if own != method:
            continue
        s, d = _column(found, "s_correlation"), _column(found, "d_all")
        if np.isfinite(s).any() and np.isfinite(d).any():
            i, j = int(np.nanargmin(s)), int(np.nanargmax(d))
            lines.append(f"  {case:24} S worst on plane {i} ({s[i]:.5f}), D on plane {j} ({d[j]:.3f})")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------ models and speed


def model_table(masks: np.ndarray | str, count: int = CRYSTALS) -> str:
    """How often the right of three similar models ranks first, at Poisson 1000 with masks."""
    coarse = SIDE // MODEL_SIZE
    corruption = Corruption(counts=1000.0, masks=masks if isinstance(masks, str) else masks[:, ::coarse, ::coarse])
    rankings = []
    for k, (spec, models) in enumerate(crystals(evaluation_stream(), count, SEED)):
        plane = replace(spec, steps=spec.steps * coarse, centre=None)       # the same region of Q on fewer pixels
        rankings.append(rank_models(plane, models, corruption, size=MODEL_SIZE, seed=SEED + k))
    return format_rankings(rankings)


def speed_table(methods: Sequence[str], planes: int = 4, points: int = 101) -> str:
    """Wall-clock seconds: masked planes at Poisson 1000 by every method, the published networks alone, a whole volume."""
    specs = evaluation_stream().specs(0, planes)
    batch = simulate_planes(specs, Corruption(counts=1000.0, masks="procedural"), size=SIDE, seed=SEED)
    volumes = [plane_volume(spec, batch, k) for k, spec in enumerate(specs)]
    rows = []
    for method in methods:
        times = [_seconds(lambda v=v, m=method: separate(v, method=m, device="cpu", progress=False)) for v in volumes]
        rows.append(f"  {method:24} {np.mean(times):7.2f} s a plane of {SIDE}², at most {max(times):.2f}")
    pair, plane = DSFUNet(PUBLISHED_WIDTH).eval(), torch.zeros(1, 1, SIDE, SIDE)
    with torch.no_grad():
        pair(plane)
        alone = min(_seconds(lambda: pair(plane)) for _ in range(3))
    rows.append(f"  {'DSFU-Net, width 64':24} {alone:7.2f} s a plane, the networks alone")
    volume, truth = simulated_volume(points)
    found = []
    taken = _seconds(lambda: found.append(separate(volume, device="cpu", progress=False)))
    close = np.corrcoef(found[0].sro.data.ravel(), truth["sro"].ravel())[0, 1]
    rows.append(f"  {f'auto, volume {points}³':24} {taken:7.2f} s, S correlation {close:.5f}")
    return "\n".join(rows)


def _seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


# ------------------------------------------------------------------------------------------ the command


def evaluate_command(args) -> str:
    """``crystaldl evaluate diffuse``: every figure as text.

    Attributes of ``args``, all of them optional: planes, only (of `PARTS`), shared, threads, methods (of `METHODS`).
    """
    only, planes = getattr(args, "only", None) or PARTS, getattr(args, "planes", None) or PLANES
    if set(only) - set(PARTS):
        raise ValueError(f"only is {list(only)}; expected some of {', '.join(PARTS)}.")
    if planes < 1:
        raise ValueError(f"planes is {planes}; expected at least 1.")
    methods = methods_at_hand(getattr(args, "methods", None))
    shared = getattr(args, "shared", None)
    masks = mask_bank(None if shared is None else Path(shared))
    to_torch_threads(getattr(args, "threads", None))
    missing = [m for m in NETWORKS if m not in methods_at_hand(NETWORKS)]
    parts = [f"No network of its kind ships with this version: method {m} is left out." for m in missing]
    if "cases" in only:
        specs = evaluation_stream().specs(0, planes)
        found = accuracy(specs, cases(masks), methods)
        parts.append(f"Simulated planes of molecules kept out of training\n{describe(specs)}")
        parts.append(f"Separation, {planes} planes\n{format_accuracy(found)}")
        parts.append(f"Hardest planes of the default\n{hardest(found)}")
    if "models" in only:
        parts.append(f"Three similar structural models, Poisson 1000 with masks; place (BIC margin)\n{model_table(masks)}")
    if "speed" in only:
        parts.append(f"Time on {torch.get_num_threads()} threads\n{speed_table(methods)}")
    return "\n\n".join(parts) + "\n"
