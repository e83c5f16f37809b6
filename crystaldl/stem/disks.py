"""Bragg disks in diffraction patterns: the task.

A method proposes where disks may be (correlation with the probe, or a network); variable projection measures them.
`find_disks` is the one entry, `Disks` the result. Axis 0 is qx (rows), axis 1 is qy (columns), px, as in py4DSTEM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from ..errors import DataError
from .options import DiskOptions
from .probe import Probe

__all__ = ["METHODS", "DiskOptions", "Disks", "Probe", "find_disks"]

METHODS = ("fcunet", "correlation")
# Measured on multislice and Bloch-wave patterns: networks' errors over their sigma, and how far fit and network miss together.
NETWORK_SIGMA_FACTOR, CORRELATION = 1.2, 0.5
# Correlation peaks that pass for disks: least intensity over its uncertainty, and that of those below a share of the highest,
# of which noise makes many.
SIGNIFICANT, FAINT, SIGNIFICANT_IF_FAINT = 4.0, 0.005, 5.0
STRONG = 0.01  # correlation peaks above this share of the highest are disks rather than pieces of rings
PIXELS_AT_ONCE = {"cpu": 32 * 256 * 256, "cuda": 512 * 256 * 256, "mps": 64 * 256 * 256}


@dataclass(frozen=True)
class Disks:
    """Disks of a stack of patterns: flat read-only arrays, sorted by pattern, strongest first within each.

    Attributes
    ----------
    pattern : (N,) int64
        Index of the disk's pattern.
    positions : (N, 2) float64
        Centres (qx, qy), px.
    sigma : (N, 2) float64
        Their standard uncertainties, px.
    intensity : (N,) float64
        Sum of the disk above its background in units of the data; with a network, an estimate of |V_g| relative to
        the strongest reflection's (`crystaldl.stem.reflections`, `crystaldl.stem.detect`).
    confidence : (N,) float64
        Probability-like, 0 to 1, that there is a disk.
    n_patterns : int
    fitted : (N,) float64
        Fitted intensity of the disk above its background, whatever the method (NaN without refinement).
    """

    pattern: np.ndarray
    positions: np.ndarray
    sigma: np.ndarray
    intensity: np.ndarray
    confidence: np.ndarray
    n_patterns: int
    fitted: np.ndarray | None = None

    def __post_init__(self):
        n = len(self.pattern)
        for name, dtype, shape in (
            ("pattern", np.int64, (n,)),
            ("positions", float, (n, 2)),
            ("sigma", float, (n, 2)),
            ("intensity", float, (n,)),
            ("confidence", float, (n,)),
            ("fitted", float, (n,)),
        ):
            value = getattr(self, name)
            value = np.full(n, np.nan) if value is None else np.array(value, dtype=dtype).reshape(shape)
            value.flags.writeable = False
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.pattern)

    def __repr__(self) -> str:
        return f"<Disks: {len(self)} in {self.n_patterns} patterns>"

    def of(self, i: int) -> Disks:
        """The disks of pattern ``i`` alone (as pattern 0 of one)."""
        if not -self.n_patterns <= i < self.n_patterns:
            raise IndexError(f"i is {i}, expected an index into {self.n_patterns} patterns.")
        rows = self.pattern == i % self.n_patterns
        arrays = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "n_patterns"}
        return Disks(**(arrays | {"pattern": np.zeros(int(rows.sum()))}), n_patterns=1)

    @classmethod
    def concatenate(cls, parts: list[Disks]) -> Disks:
        """Disks of stacks one after another; pattern numbers go on counting."""
        count = np.cumsum([0] + [p.n_patterns for p in parts])
        names = [f.name for f in fields(cls) if f.name not in ("n_patterns", "pattern")]
        empty = {"positions": np.zeros((0, 2)), "sigma": np.zeros((0, 2))}
        arrays = {k: np.concatenate([empty.get(k, np.zeros(0)), *(getattr(p, k) for p in parts)]) for k in names}
        pattern = [p.pattern + n for p, n in zip(parts, count[:-1], strict=True)]
        return cls(np.concatenate([np.zeros(0, np.int64), *pattern]), n_patterns=int(count[-1]), **arrays)


def find_disks(
    patterns,
    probe,
    *,
    method: str = "fcunet",
    model: str | None = None,
    options: DiskOptions | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    network=None,
    factors=None,
) -> Disks:
    """Find and measure the Bragg disks of diffraction patterns.

    Parameters
    ----------
    patterns : (B, H, W) or (H, W) array_like
        Real numbers of any type and byte order; NaN where not measured.
    probe : Probe, array_like or py4DSTEM.Probe
        The probe over vacuum.
    method : {"fcunet", "correlation"}
        Who proposes: a network, or correlation with the probe.
    model : str, optional
        Exact name of a shipped model in place of the default (``"fcunet"`` only).
    options : DiskOptions, optional
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
    batch_size : int, optional
        Patterns at once; by default as many as suit the device. Halved where memory runs out.
    network : torch module, optional
        A network in place of a shipped model (`crystaldl.stem.network`), e.g. one just trained.
    factors : FactorNet or False, optional
        What tells |V_g| of the refined disks that a DiskNet proposed; by default the shipped one. False: the DiskNet itself.

    Returns
    -------
    Disks

    Raises
    ------
    DataError, ValueError, TypeError, UnknownModelError, DeviceError
        One sentence each, before any work.
    """
    import torch

    from ..physics.device import resolve_device

    patterns = check_patterns(patterns)
    probe = Probe.coerce(probe)
    options = DiskOptions() if options is None else options
    if not isinstance(options, DiskOptions):
        raise TypeError(f"options is a {type(options).__name__}; expected DiskOptions.")
    check_probe(probe, patterns.shape[1:])
    if batch_size is not None and (not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1):
        raise ValueError(f"batch_size is {batch_size!r}; expected a positive integer, or None.")
    target = resolve_device(device)
    propose, threshold = _proposer(method, model, network, probe, patterns.shape[1:], options, target)
    measure = _Measure(probe, options, threshold, target, _factors(propose, factors, options, target))
    per_pattern = patterns.shape[1] * patterns.shape[2]
    batch_size = batch_size or max(1, PIXELS_AT_ONCE[target.type] // per_pattern)
    parts = []
    with torch.inference_mode():
        for i in range(0, len(patterns), batch_size):
            parts += _run(patterns[i : i + batch_size], propose, measure, target)
    return Disks.concatenate(parts)


def check_patterns(patterns) -> np.ndarray:
    """Patterns as (B, H, W), or a DataError."""
    array = np.asarray(patterns)
    if array.dtype.kind not in "buif":
        raise DataError(f"patterns is of type {array.dtype}; expected real numbers.")
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3:
        raise DataError(f"patterns has the shape {array.shape}; expected (B, H, W).")
    if array.size == 0 or min(array.shape[1:]) < 16:
        raise DataError(f"patterns has the shape {array.shape}; expected at least one pattern of at least 16 × 16 px.")
    return array


def check_probe(probe: Probe, shape: tuple[int, int]) -> None:
    """The probe must fit the patterns: a DataError where it does not."""
    if probe.shape != tuple(shape):
        raise DataError(
            f"probe has {probe.shape[0]} × {probe.shape[1]} px but the patterns have {shape[0]} × {shape[1]}; "
            "expected the same."
        )
    if 4 * probe.radius > min(shape):
        raise DataError(
            f"probe has a radius of {probe.radius:.3g} px, too large for patterns of {shape[0]} × {shape[1]} px; "
            "expected room for several disks."
        )


def _proposer(method, model, network, probe, shape, options, device) -> tuple[Callable, float]:
    """A function patterns → Candidates, and the confidence below which disks are dropped."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}.")
    if method == "correlation":
        if model is not None or network is not None:
            raise ValueError("method is 'correlation', which uses no network; leave model and network out.")
        from .correlate import Correlator

        found, threshold = Correlator(probe, shape, options, device), 0.0
    else:
        from .detect import detector

        found, threshold = detector(model, network, probe, shape, options, device)
    return found, threshold if options.min_confidence is None else options.min_confidence


def _factors(propose, factors, options: DiskOptions, device):
    """The network that tells |V_g| of measured disks; None where the method's own estimate stays."""
    from .detect import DiskNetDetector, factor_model, load_network

    if factors is False or not isinstance(propose, DiskNetDetector):
        return None
    if factors is not None:
        return factors.to(device).eval() if options.refine else None
    name = factor_model("DiskNet", options)
    return None if name is None else load_network(name, str(device))[0]


class _Measure:
    """Candidates in, `Disks` out."""

    def __init__(self, probe: Probe, options: DiskOptions, threshold: float, device, factors=None):
        from .peaks.refine import DiskFitter, FitSettings

        self.factors, self.probe = factors, probe
        self.options, self.threshold, self.radius = options, threshold, probe.radius
        self.reach = probe.radius + 2 * probe.edge + 1.5  # px, of a disk and the smoothing of the rings
        settings = FitSettings(degree=options.degree, fringes=options.fringes)
        self.fitter = DiskFitter(probe, settings, device) if options.refine else None

    def __call__(self, patterns, found, rings=None) -> Disks:
        import torch

        if found.confidence is not None:
            found = found.select(found.confidence >= self.threshold)
        n = len(found.pattern)
        positions, sigma = found.positions, found.sigma
        intensity, confidence = found.strength, found.confidence
        keep = torch.ones(n, dtype=torch.bool, device=patterns.device)
        fitted = torch.full((n,), float("nan"), device=patterns.device)
        if self.fitter is not None and n:
            fit = self.fitter.fit(patterns, found.pattern, found.positions, self._known(found, rings, len(patterns)))
            fitted = fit.intensity
            least = self.options.min_significance
            if confidence is None:
                keep = fit.ok & (fit.significance >= (self._significant(found, len(patterns)) if least is None else least))
                positions, sigma, intensity = fit.positions, fit.sigma, fitted
                confidence = 1 / (1 + (4.0 / fit.significance.clamp_min(1e-3)) ** 4)
            else:
                keep = fit.significance >= (1.0 if least is None else least)
                positions, sigma = combined(fit, found)
        if confidence is None:
            confidence = relative(found.pattern, intensity, len(patterns)).clamp(0, 1)
        if sigma is None:
            sigma = torch.full_like(positions, 0.1 * self.radius)
        keep &= confidence >= self.threshold
        keep &= self._apart(found.pattern, positions, confidence, keep, len(patterns))
        if self.factors is not None and keep.any():
            measured = (found.pattern[keep], positions[keep], fitted[keep], fit.significance[keep])
            intensity = intensity.masked_scatter(keep, self._structure_factors(patterns, measured, intensity[keep]))
        arrays = [t[keep].double().cpu().numpy() for t in (positions, sigma, intensity, confidence, fitted)]
        pattern = found.pattern[keep].cpu().numpy()
        order = np.lexsort((-arrays[2], pattern))
        p, s, i, c, f = (a[order] for a in arrays)
        return Disks(pattern[order], p, s, i, c, len(patterns), f)

    def _structure_factors(self, patterns, measured, own):
        """|V_g| by the network for it; ``own`` where a pattern has too few disks."""
        import torch

        from .reflections import estimated_factors

        value = estimated_factors(self.factors, patterns, *measured, own, self.probe)
        return torch.where(torch.isfinite(value), value, own).to(own.dtype)

    def _known(self, found, rings, count: int):
        """Rings as they are beside the disks, but for faint candidates of the correlation, of which rings have many."""
        if rings is None:
            return None
        if found.confidence is not None:
            return rings.beside(found.pattern, found.positions, self.reach)
        strong = relative(found.pattern, found.strength, count) > STRONG
        return rings.beside(found.pattern[strong], found.positions[strong], self.reach, sure=False)

    def _significant(self, found, count: int):
        """Least significance of each candidate of the correlation."""
        import torch

        faint = relative(found.pattern, found.strength, count) < FAINT
        return torch.where(faint, SIGNIFICANT_IF_FAINT, SIGNIFICANT)

    def _apart(self, pattern, positions, confidence, keep, count):
        """Whether a disk is not another one's double: refinement may lead two candidates to one place."""
        import torch

        from .peaks.refine import neighbours

        spacing = 0.5 * self.options.spacing(self.radius)
        rows = torch.nonzero(keep)[:, 0]
        out = keep.clone()
        if len(rows) < 2 or spacing <= 0:
            return out
        near = neighbours(pattern[rows], positions[rows], spacing, count, 1)[:, 0]
        for row in rows[torch.isfinite(near[:, 0])].tolist():
            if out[row]:
                mates = (pattern == pattern[row]) & out & ((positions - positions[row]).norm(dim=1) < spacing)
                best = torch.nonzero(mates)[:, 0][confidence[mates].argmax()]
                out[mates] = False
                out[best] = True
        return out


def relative(pattern, values, count: int):
    """Values over the highest positive one of their pattern."""
    import torch

    top = torch.zeros(count, device=values.device, dtype=values.dtype)
    top = top.scatter_reduce(0, pattern, values, "amax", include_self=True)
    return values / top[pattern].clamp_min(1e-30)


def combined(fit, found):
    """The best mean of fitted and proposed positions by their uncertainties, and its own; the proposal's where the fit failed.

    Networks that know their uncertainty add a little where counts are few or the filling is wild. Both see the same
    electrons, so their errors are correlated (`CORRELATION`): where a network is less certain than the fit by more than
    that, its position only repeats the fit's errors and adds its own, which several disks of a pattern share.
    """
    import torch

    if found.sigma is None:
        return fit.positions, fit.sigma
    a, b = fit.sigma, NETWORK_SIGMA_FACTOR * found.sigma
    both = CORRELATION * a * b
    share = ((a**2 - both) / (a**2 + b**2 - 2 * both)).clamp(0, 1)  # of the network
    share = torch.where(fit.ok[:, None], share, torch.ones_like(share))
    positions = (1 - share) * fit.positions + share * found.positions
    x, y = (1 - share) * a, share * b
    return positions, torch.sqrt(x**2 + y**2 + 2 * CORRELATION * x * y)


def _run(batch: np.ndarray, propose, measure, device) -> list[Disks]:
    """One batch; half at a time where the device's memory is short."""
    import torch

    from .halo import Rings

    try:
        native = np.ascontiguousarray(batch, dtype=np.float32)
        tensor = torch.from_numpy(native).to(device)
        tensor = torch.where(torch.isfinite(tensor), tensor, torch.nan)
        if not measure.options.rings:
            return [measure(tensor, propose(tensor))]
        rings = Rings(tensor, measure.radius)
        return [measure(tensor, propose(tensor - rings.excess()), rings)]
    except torch.cuda.OutOfMemoryError:
        if len(batch) == 1:
            raise
        torch.cuda.empty_cache()
        half = len(batch) // 2
        return _run(batch[:half], propose, measure, device) + _run(batch[half:], propose, measure, device)
