"""How strain is fitted, and what stands behind a strain map besides its slices."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np

from ...errors import DataError
from ..factors import structure_factors

ORIGINS = ("lattice", "direct", "plane", "parabola", "calibrated")
MEASURES = ("polar", "infinitesimal")


@dataclass(frozen=True, kw_only=True)
class StrainOptions:
    """How strain is fitted.

    Attributes
    ----------
    origin : {"lattice", "direct", "plane", "parabola", "calibrated"}
        Where each pattern's lattice has its origin: free in its fit; on the direct beam as found; on a plane or parabola
        fitted to the direct beam along the scan (descan), to within the scatter about it; or as calibrated in the Bragg
        vectors.
    measure : {"polar", "infinitesimal"}
        ``"polar"``: e = U - 1 and the angle of R in the polar decomposition F = R U, exact for any strain and rotation.
        ``"infinitesimal"``: 1 - sym(F⁻ᵀ), py4DSTEM's formula; both agree to first order.
    coordinate_rotation : float
        Direction of the strain's x axis, degrees from qx towards qy.
    min_disks : int
        Positions with fewer disks on the lattice are masked.
    min_share : float
        Positions of whose disks a smaller share lies on the lattice are masked.
    min_confidence : float
        Disks of lower confidence are left out.
    tolerance : float
        Largest distance of a disk from its lattice node, as a fraction of the shortest lattice vector.
    max_change : float
        Positions where g1 or g2 differs from the basis by more than this fraction are masked.
    max_order : int, optional
        Disks of larger |h| or |k| are left out.
    """

    origin: str = "lattice"
    measure: str = "polar"
    coordinate_rotation: float = 0.0
    min_disks: int = 5
    min_share: float = 0.4
    min_confidence: float = 0.0
    tolerance: float = 0.25
    max_change: float = 0.2
    max_order: int | None = None

    def __post_init__(self):
        for name, allowed in (("origin", ORIGINS), ("measure", MEASURES)):
            if not isinstance(getattr(self, name), str) or getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}.")
        for name, low, high in (
            ("coordinate_rotation", -360, 360), ("min_confidence", 0, 1), ("min_share", 0, 1), ("tolerance", 0.01, 0.5),
            ("max_change", 0, 1),
        ):  # fmt: skip
            if not isinstance(getattr(self, name), Real) or not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a number from {low} to {high}.")
        for name, least, value in (("min_disks", 4, self.min_disks), ("max_order", 1, self.max_order)):
            if value is not None and (not isinstance(value, int) or not least <= value < 2**31):
                raise ValueError(f"{name} is {str(value)[:40]}; expected an integer of at least {least}.")


@dataclass(frozen=True, eq=False, repr=False)
class StrainDetails:
    """What stands behind a strain map; read-only arrays, NaN where there is no fit.

    Attributes
    ----------
    sigma : (4, Rx, Ry), standard uncertainties of e_xx, e_yy, e_xy and theta by the scatter of the disks about their
        lattice, and by what multiple scattering does to all disks of a pattern alike as far as the scan shows it
        (`crystaldl.stem.strain.lattice.fit_lattices`): with a reference from the scan itself, half of what is common
        to all positions does not count; the reference's own is not in it
    covariance : (Rx, Ry, 4, 4), of (g1x, g1y, g2x, g2y), px²
    g1, g2 : (Rx, Ry, 2), lattice vectors in calibrated axes, px
    origin : (Rx, Ry, 2), origins of the lattices on the detector, px
    basis : (2, 2), rows g1 and g2 from which the fits started, px
    reference : (2, 2), rows g1 and g2 of zero strain, px
    n_disks : (Rx, Ry) int, disks that count at each position
    residual : (Rx, Ry), root mean square distance of those disks from the lattice, px
    excess : float, scatter of the disks beyond their own uncertainties, px
    hk : (M, 2) int, reflections that were seen, by length
    intensity : (M, Rx, Ry) float32, intensity of each (a network's is its |V_g|); NaN where there is no such disk
    fitted : (M, Rx, Ry) float32, fitted intensity of each above its background, whatever the method; NaN: not known
    options : StrainOptions
    provenance : dict, how the disks were found
    """

    sigma: np.ndarray
    covariance: np.ndarray
    g1: np.ndarray
    g2: np.ndarray
    origin: np.ndarray
    basis: np.ndarray
    reference: np.ndarray
    n_disks: np.ndarray
    residual: np.ndarray
    excess: float
    hk: np.ndarray
    intensity: np.ndarray
    fitted: np.ndarray
    options: StrainOptions
    provenance: dict

    def __post_init__(self) -> None:
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False

    def intensity_of(self, h: int, k: int) -> np.ndarray:
        """(Rx, Ry) intensity of one reflection.

        Raises
        ------
        DataError
            The reflection was not seen.
        """
        row = np.flatnonzero((self.hk == (h, k)).all(1))
        if row.size == 0:
            seen = ", ".join(f"({a}, {b})" for a, b in self.hk[:8])
            raise DataError(f"reflection ({h}, {k}) was not seen; expected one of {seen}, …")
        return self.intensity[row[0]]

    def structure_factors(self) -> np.ndarray:
        """(M, Rx, Ry) |V_g| of the reflections relative to the strongest of each position, to rank them.

        Means of Friedel pairs (`crystaldl.stem.factors.structure_factors`): of the network's estimate from all disks of the
        pattern where there is one, else of the fitted intensities and the estimate that came with the disks
        (docs/accuracy.md). NaN for the direct beam and where there is no such disk.
        """
        if self.provenance.get("factors"):
            return structure_factors(self.hk, np.full_like(self.fitted, np.nan), self.intensity)
        if self.provenance.get("method") == "fcunet":
            return structure_factors(self.hk, self.fitted, self.intensity)
        return structure_factors(self.hk, self.intensity)

    def __repr__(self) -> str:
        fitted = np.isfinite(self.residual)
        sigma = np.nanmedian(self.sigma[0]) if fitted.any() else np.nan
        return (
            f"<StrainDetails {int(fitted.sum())} of {fitted.size} positions, {len(self.hk)} reflections, "
            f"median σ(e_xx) {100 * sigma:.3g} %>"
        )
