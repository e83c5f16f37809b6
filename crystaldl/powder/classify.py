"""Crystal system and space group of powder patterns: the task.

`classify_patterns` prepares a batch, runs a shipped network, searches lattices that explain the lines, lets the arbiter
weigh the two, looks whether the crystal is known from training, and turns calibrated probabilities into `Classification`
results. A new method joins by a line in METHODS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import DataError, UnknownModelError
from ..models.registry import ModelCard, available, card, default
from ..physics.symmetry import BRAVAIS_LATTICES, CRYSTAL_SYSTEMS, FAMILIES, SYSTEM_OF_GROUP, bravais_of_group
from .families import Known, by_group, mix, named
from .pattern import PowderPattern
from .result import UNEXPLAINED, Classification


@dataclass(frozen=True)
class Method:
    """What a method uses: a network (None: the default one, or a word in its model's name), and the lattice search."""

    network: str | None = None
    search: bool = False
    blind: bool = False  # the search alone, without the network's opinion


#: patterns of a batch where lattices are searched
SEARCHED = 16
#: architectures that read a pattern and answer with space groups; the others help them
CLASSIFIERS = ("PowderNet", "NPCNN")
#: share of the answer left to a recognised crystal from which the search need not find its lattice
RECOGNISED = 0.9

METHODS = {
    "auto": Method(search=True),
    "network": Method(),
    "npcnn": Method("npcnn"),
    "indexing": Method(search=True, blind=True),
}


def classify_patterns(
    patterns: Sequence[PowderPattern],
    method: str = "auto",
    *,
    model: str | None = None,
    recognise: bool = True,
    device: str = "auto",
    batch_size: int = 128,
    progress: bool = True,
) -> list[Classification]:
    """Classify many powder patterns at once.

    Parameters
    ----------
    patterns : sequence of PowderPattern
        Any range, step and wavelength, raw or background-subtracted; they may differ from one another.
    method : {"auto", "network", "npcnn", "indexing"}
        ``"auto"``: the default network checked against a search for lattices that explain the lines; most accurate,
        one or two seconds of a core a pattern. ``"network"``: the network alone, hundreds a second. ``"npcnn"``: the
        published NPCNN, re-trained. ``"indexing"``: the lattice search and absent lines alone.
    model : str, optional
        Exact name of a shipped model in place of the method's own (see ``crystaldl models``).
    recognise : bool
        Whether ``"auto"`` and ``"network"`` look for crystals known from training; turn it off for crystals that look like
        a common one but may have another symmetry.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"``, ``"mps"``.
    batch_size : int
        Patterns at once; halved when the device runs out of memory.
    progress : bool
        Show a bar that counts patterns.

    Returns
    -------
    list of Classification, in the order of the patterns

    Raises
    ------
    TypeError, ValueError, UnknownModelError, DeviceError
        One sentence each, before any work.
    """
    from ..physics.device import resolve_device

    patterns = _check_patterns(patterns)
    entry = _choose_model(method, model)
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}, expected a positive integer.")
    progress, recognise = _truth(progress, "progress"), _truth(recognise, "recognise")
    target = resolve_device(device)
    if METHODS[method].blind and _arbiter_of(entry, method) is None:
        raise ValueError(f"method is {method!r}, but the model {entry.name!r} has no arbiter for it; leave model out.")
    if not patterns:
        return []
    network = _network(entry.name, str(target))
    if METHODS[method].search:  # the search takes its time: the bar should move
        batch_size = min(batch_size, SEARCHED)
    return [
        result
        for chunk in _batches(patterns, batch_size, progress)
        for result in _run(chunk, entry, network, target, method, recognise)
    ]


def _truth(value, name: str) -> bool:
    try:
        return bool(value)
    except (RuntimeError, ValueError, TypeError):  # tensors and arrays of several values
        raise TypeError(f"{name} is a {type(value).__name__}; expected True or False.") from None


def _check_patterns(patterns) -> list[PowderPattern]:
    if isinstance(patterns, PowderPattern):
        raise TypeError("patterns is one PowderPattern; expected a sequence of them (or call its own classify()).")
    try:
        patterns = list(patterns)
    except TypeError:
        raise TypeError(f"patterns is a {type(patterns).__name__}; expected a sequence of PowderPattern.") from None
    for i, pattern in enumerate(patterns):
        if not isinstance(pattern, PowderPattern):
            raise TypeError(f"patterns[{i}] is a {type(pattern).__name__}; expected a PowderPattern.")
    return patterns


def _choose_model(method: str, model: str | None) -> ModelCard:
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}.")
    if model is not None:
        entry = card(model)
        if entry.task != "powder" or entry.architecture not in CLASSIFIERS:
            networks = [name for name in available("powder") if card(name).architecture in CLASSIFIERS]
            raise UnknownModelError(f"model is {model!r}, which reads no patterns; expected one of {', '.join(networks)}.")
        return entry
    kind = METHODS[method].network
    if kind is None:
        return card(default("powder"))
    return card(sorted(name for name in available("powder") if kind in name)[-1])


def _arbiter_of(entry: ModelCard, method: str) -> ModelCard | None:
    """The arbiter fitted for a network, where the method searches lattices and there is one."""
    name = entry.operating_point.get("arbiter")
    return card(name) if METHODS[method].search and name else None


@lru_cache(maxsize=4)
def _network(name: str, device: str):
    """The network of a model in evaluation mode, kept for the next call."""
    from ..models.registry import load_weights
    from . import network as architectures

    entry = card(name)
    module = getattr(architectures, entry.architecture)(**entry.arguments)
    module.load_state_dict(load_weights(name))
    return module.to(device).eval()


def _batches(patterns, size, progress):
    from tqdm import tqdm

    with tqdm(
        total=len(patterns), desc="classifying", unit="pattern", disable=not progress or len(patterns) < 2
    ) as bar:
        for i in range(0, len(patterns), size):
            yield patterns[i : i + size]
            bar.update(len(patterns[i : i + size]))


def on_common_axis(patterns: Sequence[PowderPattern], device="cpu"):
    """Patterns on the common axis: y, mask (B, n), Kα2 ratio (B,) and ln(λ2/λ1) (B,) as tensors on ``device``.

    A background is removed from those that still have theirs; where the radiation does not say whether Kα2 is present
    (a bare 1.5406), the data decide.
    """
    import torch

    from . import prepare

    pairs = [prepare.to_common_axis(p.two_theta, p.intensity, p.radiation.wavelength) for p in patterns]
    y, mask = (torch.as_tensor(np.array([p[k] for p in pairs])).to(device) for k in (0, 1))
    for pattern, measured in zip(patterns, mask.sum(1).tolist(), strict=True):
        if measured < 500:
            raise DataError(
                f"{pattern.name or 'pattern'} covers only {measured * prepare.AXIS_STEP:.1f}° of the range 4–100° "
                "(2θ for Cu) that classification uses; expected at least 10°."
            )
    raw = torch.tensor([not p.background_subtracted for p in patterns], device=y.device)
    if raw.any():
        y[raw] = prepare.subtract_background(y[raw], mask[raw])
    radiations = [p.radiation.as_doublet() if p.radiation.doublet is None else p.radiation for p in patterns]
    ratio = torch.tensor([r.alpha2_ratio for r in radiations], dtype=torch.float32, device=y.device)
    delta = torch.tensor([np.log(r.alpha2 / r.wavelength) if r.alpha2 else 0.0 for r in radiations])
    unknown = torch.tensor([p.radiation.doublet is None for p in patterns])
    for value in delta[unknown].unique().tolist():
        rows = unknown & (delta == value)
        ratio[rows] *= prepare.has_doublet(y[rows], mask[rows], value)
        for row in torch.nonzero(rows & (ratio.cpu() > 0))[:, 0].tolist():
            if _stripping_makes_lines(y[row : row + 1], mask[row : row + 1], ratio[row : row + 1], value):
                ratio[row] = 0.0
    return y, mask, ratio, delta


#: times as many lines without Kα2 as with it, from which the pattern had none
_GHOSTS = 1.3


def _stripping_makes_lines(y, mask, ratio, delta: float) -> bool:
    """Whether a pattern has far more lines once Kα2 is taken off: then it had none, and what is left are ghosts."""
    from . import prepare
    from .line_scales import search_lines

    plain = prepare.normalise(y, mask)
    stripped = prepare.strip_doublet(plain, ratio, delta) * mask
    before, after = (len(search_lines(z[0].cpu().numpy(), mask[0].cpu().numpy())) for z in (plain, stripped))
    return after > _GHOSTS * before + 2


def prepared_inputs(architecture: str, y, mask, ratio, delta):
    """What a network of that architecture reads, as keyword arguments."""
    import torch

    from .prepare import npcnn_input, prepare

    if architecture == "NPCNN":
        return {"pattern": npcnn_input(y, mask)}
    names = ("spectrum", "peaks", "peak_mask", "limits")
    out = dict.fromkeys(names)
    for value in delta.unique().tolist():  # one doublet separation at a time
        rows = delta == value
        part = prepare(y[rows], mask[rows], ratio[rows], value)
        for name in names:
            tensor = getattr(part, name)
            if out[name] is None:
                out[name] = torch.empty((len(y), *tensor.shape[1:]), dtype=tensor.dtype, device=y.device)
            out[name][rows] = tensor
    return out


def calibrate(logits: np.ndarray, operating_point: dict) -> np.ndarray:
    """Probabilities (B, 230) from logits by the card's temperature and prior correction.

    ``p ∝ exp(logits / T + κ ln prior)``: a flat or other prior than the training stream's enters through κ.
    """
    z = logits / float(operating_point.get("temperature", 1.0))
    prior = operating_point.get("log_prior")
    if prior is not None:
        z = z + np.asarray(prior)
    z = z - z.max(1, keepdims=True)
    p = np.exp(z)
    return p / p.sum(1, keepdims=True)


def _forward(network, inputs) -> dict[str, np.ndarray]:
    import torch

    with torch.inference_mode():
        out = network(**inputs)
    out = out if isinstance(out, dict) else {"logits": out}
    return {k: v.float().cpu().numpy() for k, v in out.items()}


@dataclass(frozen=True)
class _Batch:
    """Patterns on the common axis and what the network read: tensors."""

    y: object
    mask: object
    ratio: object
    delta: object
    inputs: dict


def _infer(patterns, entry: ModelCard, network, device):
    """Network outputs and the prepared batch; half the batch at a time where the device's memory is short."""
    import torch

    try:
        y, mask, ratio, delta = on_common_axis(patterns, device)
        inputs = prepared_inputs(entry.architecture, y, mask, ratio, delta)
        return [(patterns, _forward(network, inputs), _Batch(y, mask, ratio, delta, inputs))]
    except torch.cuda.OutOfMemoryError:
        if len(patterns) == 1:
            raise
        torch.cuda.empty_cache()
        half = len(patterns) // 2
        return _infer(patterns[:half], entry, network, device) + _infer(patterns[half:], entry, network, device)


def _arbitrate(logits, evidence, arbiter: ModelCard, blind: bool) -> np.ndarray:
    """The arbiter's logits (B, 230)."""
    import torch

    from .indexing.evidence import ARRAYS

    stack = [np.stack([getattr(e, name) for e in evidence]).astype(np.float32) for name in ARRAYS]
    with torch.inference_mode():
        out = _network(arbiter.name, "cpu")(
            torch.as_tensor(logits), *map(torch.as_tensor, stack), torch.full((len(logits),), blind)
        )
    return out.numpy()


def _run(patterns, entry: ModelCard, network, device, method, recognise) -> list[Classification]:
    parts = _infer(patterns, entry, network, device)
    return [result for part in parts for result in _results(*part, entry, method, recognise)]


def _look(inputs, entry: ModelCard, method: str) -> Known | None:
    """The crystals known from training that a batch looks like; None where the method does not look."""
    import torch

    name = entry.operating_point.get("families")
    point = card(name).operating_point if name else {}
    if method not in point or "spectrum" not in inputs:
        return None
    with torch.inference_mode():
        network = _network(name, str(inputs["spectrum"].device))
        p = network(inputs["spectrum"]).double().cpu().numpy()
    return Known(p, network, point[method], point.get("confident", {}).get(method))


def _recognise(known: Known | None, p: np.ndarray):
    """Probabilities with the crystals known from training, their share (NaN where nobody looked), which they are."""
    if known is None:
        return p, np.full(len(p), np.nan), [()] * len(p)
    groups, names = known.groups, known.network.names
    return *mix(by_group(known.p, groups), p, known.weights), [named(row, names, groups) for row in known.p]


def _search_agrees(lattices, unexplained, system: str, recognised: float) -> bool:
    """Whether the most probable lattice is one of that crystal system, or the crystal is known, and no strong lines are foreign."""
    if not lattices or unexplained[:, 1].sum() > UNEXPLAINED:
        return False
    return lattices[0].bravais[0] == FAMILIES[system] or recognised >= RECOGNISED


def _decisions(evidence, p) -> list[tuple]:
    """Lattices and foreign lines of each pattern, all evidence weighed."""
    from .indexing.evidence import decided

    bravais = np.stack([np.bincount(bravais_of_group(), weights=row, minlength=len(BRAVAIS_LATTICES)) for row in p])
    return [decided(e, b) for e, b in zip(evidence, bravais, strict=True)]


def _line_counts(evidence, inputs, count: int) -> np.ndarray:
    """How many lines the search saw, else the network; -1 where lines play no part."""
    if evidence:
        return np.array([len(e.peaks) for e in evidence])
    return inputs["peak_mask"].sum(1).cpu().numpy() if "peak_mask" in inputs else np.full(count, -1)


def _results(patterns, out, batch: _Batch, entry: ModelCard, method: str, recognise: bool) -> list[Classification]:
    inputs = batch.inputs
    arbiter = _arbiter_of(entry, method) if "peaks" in inputs else None
    logits, judge, evidence = out["logits"], entry, None
    looked = _look(inputs, entry, method) if recognise else None
    if arbiter is not None:
        from .indexing.evidence import gather_evidence
        from .prepare import normalise

        hints = looked.cells() if looked else None
        evidence = gather_evidence(normalise(batch.y, batch.mask), batch.mask, batch.ratio, batch.delta, known=hints)
        logits, judge = _arbitrate(logits, evidence, arbiter, METHODS[method].blind), arbiter
    point = judge.operating_point
    if METHODS[method].blind:
        point = point.get("blind", point)
    p = calibrate(logits, point)
    p, recognised, known = _recognise(looked.checked(evidence) if looked and evidence else looked, p)
    decisions = _decisions(evidence, p) if evidence else [((), np.zeros((0, 2)))] * len(p)
    impurity = 1 / (1 + np.exp(-out["impurity"])) if "impurity" in out else np.full(len(p), np.nan)
    volume = np.exp(out["ln_volume"]) if "ln_volume" in out else np.full(len(p), np.nan)
    lines = _line_counts(evidence, inputs, len(p))
    threshold = float((looked and looked.threshold) or point.get("confident_system_probability", 0.9))
    results = []
    for i, pattern in enumerate(patterns):
        system = np.bincount(SYSTEM_OF_GROUP, weights=p[i], minlength=len(CRYSTAL_SYSTEMS))
        lattices, odd = decisions[i]
        confident = bool(
            system.max() >= threshold
            and not impurity[i] > 0.5
            and not 0 <= lines[i] < 4
            and (not evidence or _search_agrees(lattices, odd, CRYSTAL_SYSTEMS[int(system.argmax())], recognised[i]))
        )
        results.append(
            Classification(
                pattern,
                p[i],
                method,
                entry.name,
                entry.sha256,
                confident,
                second_phase_probability=float(impurity[i]),
                primitive_volume=float(volume[i]),
                lines=int(lines[i]),
                lattices=lattices,
                unexplained=odd,
                recognised=float(recognised[i]),
                known_crystals=known[i],
                arbiter=arbiter.name if arbiter else "",
                arbiter_sha256=arbiter.sha256 if arbiter else "",
            )
        )
    return results
