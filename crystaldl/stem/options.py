"""Options of disk detection, and the check of what comes in."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Real

SUBPIXEL = ("quadratic", "upsampled", "none")


@dataclass(frozen=True, kw_only=True)
class DiskOptions:
    """How disks are found and measured. Lengths in px of the patterns; None lets the probe decide.

    Attributes
    ----------
    min_spacing : float, optional
        Smallest distance of two disks; by default 1.6 × the probe's radius.
    max_disks : int
        Largest number of disks a pattern.
    edge_boundary : float, optional
        Disks whose centre is closer to the edge of the pattern are left out; by default the probe's radius.
    min_relative_intensity : float
        Correlation peaks below this share of the pattern's highest are left out (correlation only).
    correlation_power : float
        Exponent of the hybrid correlation: 1 cross-correlation, 0 phase correlation.
    trench : (float, float)
        Inner and outer radius, in probe radii, of the sine-squared trench that makes the kernel's mean zero.
    subpixel : {"quadratic", "upsampled", "none"}
        Of the correlation peaks: a parabola, the upsampled Fourier transform, or whole pixels.
    upsample : int
        Factor for ``"upsampled"``.
    refine : bool
        Measure every disk by variable projection (`crystaldl.stem.peaks.refine`).
    degree : 0, 1 or 2
        Of the polynomial that describes a disk's filling.
    fringes : bool
        After a polynomial of degree 2, describe the filling of each disk as closely as its pixels call for
        (`crystaldl.stem.peaks.filling`): for strain of thick crystals; False is faster.
    rings : bool
        Take rings of amorphous material away before looking for disks (`crystaldl.stem.halo`).
    min_significance : float, optional
        Refined disks whose intensity is less than this many standard uncertainties are left out; by default 3 (5 where the
        correlation is below 0.005 of the pattern's highest), and 1 where a network vouches for the disk.
    min_confidence : float, optional
        Disks of lower confidence are left out; by default the operating point of the method or model.
    """

    min_spacing: float | None = None
    max_disks: int = 300
    edge_boundary: float | None = None
    min_relative_intensity: float = 0.001
    correlation_power: float = 1.0
    trench: tuple[float, float] = (0.0, 2.0)
    subpixel: str = "quadratic"
    upsample: int = 16
    refine: bool = True
    degree: int = 2
    fringes: bool = True
    rings: bool = True
    min_significance: float | None = None
    min_confidence: float | None = None

    def __post_init__(self):
        for field in fields(self):
            value, text = getattr(self, field.name), field.name == "subpixel"
            if value is not None and field.name != "trench" and not isinstance(value, str if text else Real):
                raise TypeError(f"{field.name} is a {type(value).__name__}; expected {'text' if text else 'a number'}.")
        for name in ("min_spacing", "edge_boundary"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value!r}; expected a length of at least 0 px, or None.")
        for name in ("max_disks", "upsample"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a positive integer.")
        for name, low, high in (
            ("min_relative_intensity", 0, 1),
            ("correlation_power", 0, 1),
            ("min_confidence", 0, 1),
            ("min_significance", 0, float("inf")),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} is {value!r}; expected a number from {low} to {high}.")
        pair = isinstance(self.trench, (tuple, list)) and all(isinstance(v, Real) for v in self.trench)
        if not pair or len(self.trench) != 2 or not 0 <= self.trench[0] < self.trench[1]:
            raise ValueError(f"trench is {self.trench!r}; expected an inner and a larger outer radius.")
        if self.subpixel not in SUBPIXEL:
            raise ValueError(f"subpixel is {self.subpixel!r}; expected one of {', '.join(SUBPIXEL)}.")
        for name in ("refine", "fringes", "rings"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is {getattr(self, name)!r}; expected True or False.")
        if self.degree not in (0, 1, 2):
            raise ValueError(f"degree is {self.degree!r}; expected 0, 1 or 2.")

    def spacing(self, radius: float) -> float:
        """Smallest distance of two disks of that probe radius, px."""
        return 1.6 * radius if self.min_spacing is None else self.min_spacing

    def boundary(self, radius: float) -> float:
        """Smallest distance of a centre from the edge of the pattern, px."""
        return radius if self.edge_boundary is None else self.edge_boundary
