"""`SROFit`: what `refine_sro` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from ... import __version__
from ...storage.atomic import replacing, write_json
from ...storage.records import ENDINGS
from ..volume import DiffuseVolume
from .kernels import Geometry, order_wave
from .vectors import VectorOrbits

__all__ = ["SROFit"]


@dataclass(frozen=True, eq=False)
class SROFit:
    """Warren-Cowley parameters with standard uncertainties.

    Attributes
    ----------
    data : DiffuseVolume, the measured intensity
    vectors : (n, 3) lattice vectors, one for each parameter, shortest first
    alpha : (n,) Warren-Cowley α; positive where like neighbours are preferred
    sigma : (n,) standard uncertainties
    covariance : (n, n)
    multiplicity : (n,) number of vectors that share the parameter, R and -R both counted
    distance : (n,) Å; on a plane the length of R projected along the zone axis
    orbits : tuple of (m, 3) arrays, the vectors that share each parameter
    projected : bool
        A plane shows ``Σ_m α(R + m n) / Σ_m α(m n)``, n being its zone axis: α is this projected parameter.
    zone_axis : (3,) or None
    method : str
        ``"intensity"`` (fitted to intensity), ``"separation"`` (generalised least squares on the parameters and covariance
        of a separation) or ``"sites"``.
    pairs : (n, 2) int or None
        With several sites: which two sites a parameter correlates.
    r_factor : float, Σ|I - I_calc| / Σ|I|
    wr_factor : float, sqrt(Σ w (I - I_calc)² / Σ w I²)
    chi2 : float, reduced
    n_observations : int, pixels used (with method "separation": parameters of the separation used)
    n_independent : float, as n_observations, equivalent pixels of symmetrised data counted once
    n_outliers : int, measured pixels left out by the robust fit
    scale, scale_sigma : float
        K of ``I = K D S + background``; the mean of S over a zone is 1.
    background : (k,) coefficients of the powers `background_powers` of (|Q| / |Q|max)²
    gamma, gamma_sigma : (n, 3) or None
        Size effect: mean displacement parameters in fractions of the cell edges, see `refine_sro`.
    serial : float, by how much resemblance of neighbouring residuals widened the covariance
    calculated : (*shape) K D S + background on all pixels where D is known
    form_factor : (*shape) D
    weights : (*shape) weight of each pixel in the fit, 0 where not used
    laue, centring : str
    concentration : float or None
    """

    data: DiffuseVolume
    vectors: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    covariance: np.ndarray
    multiplicity: np.ndarray
    distance: np.ndarray
    orbits: tuple[np.ndarray, ...]
    r_factor: float
    wr_factor: float
    chi2: float
    n_observations: int
    scale: float
    scale_sigma: float
    calculated: np.ndarray = field(repr=False)
    form_factor: np.ndarray = field(repr=False)
    weights: np.ndarray = field(repr=False)
    fixed_background: np.ndarray = field(repr=False)
    groups: VectorOrbits = field(repr=False)
    method: str = "intensity"
    laue: str = "-1"
    centring: str = "P"
    projected: bool = False
    zone_axis: np.ndarray | None = None
    background: np.ndarray = field(default_factory=lambda: np.zeros(0))
    background_powers: tuple[int, ...] = ()
    gamma: np.ndarray | None = None
    gamma_sigma: np.ndarray | None = None
    pairs: np.ndarray | None = None
    n_independent: float = float("nan")
    n_outliers: int = 0
    serial: float = 1.0
    concentration: float | None = None
    version: str = __version__

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray) and value.flags.writeable:
                value = np.array(value)
                value.setflags(write=False)
                object.__setattr__(self, name, value)

    # ------------------------------------------------------------------------------------------ answers

    @property
    def correlation(self) -> np.ndarray:
        """(n, n) correlation matrix of the parameters."""
        return self.covariance / np.maximum(np.outer(self.sigma, self.sigma), 1e-300)

    def simulate(self) -> DiffuseVolume:
        """The calculated intensity on the same pixels, also the unmeasured ones where the form factor is known."""
        name = f"{self.data.name} calculated".strip()
        return self.data.replace(data=self.calculated, mask=None, sigma=None, name=name, history="calculated by refine_sro")

    def residual(self) -> DiffuseVolume:
        """Measured minus calculated intensity."""
        name = f"{self.data.name} residual".strip()
        return self.data.replace(data=self.data.data - self.calculated, name=name, history="residual of refine_sro")

    def structure_factor(self) -> DiffuseVolume:
        """The periodic modulation ``S = 1 + Σ α_R cos(2π hkl·R)`` on all pixels."""
        if self.pairs is not None:
            raise ValueError("with several sites there is no common S; see simulate().")
        s = 1.0 + order_wave(self.groups, Geometry.of(self.data), self.alpha)()
        return self.data.replace(data=s, mask=None, sigma=None, name=f"{self.data.name} SRO".strip(), history="S of refine_sro")

    # ------------------------------------------------------------------------------------------ out

    def to_dataframe(self):
        """One row a parameter: u, v, w, [site_1, site_2,] distance, multiplicity, alpha, sigma, alpha/sigma."""
        import pandas as pd

        table = {"u": self.vectors[:, 0], "v": self.vectors[:, 1], "w": self.vectors[:, 2]}
        if self.pairs is not None:
            table |= {"site_1": self.pairs[:, 0], "site_2": self.pairs[:, 1]}
        table |= {"distance": self.distance, "multiplicity": self.multiplicity, "alpha": self.alpha, "sigma": self.sigma}
        with np.errstate(divide="ignore", invalid="ignore"):
            table["significance"] = np.abs(self.alpha) / self.sigma
        if self.gamma is not None:
            for j, axis in enumerate("xyz"):
                table |= {f"gamma_{axis}": self.gamma[:, j], f"sigma_gamma_{axis}": self.gamma_sigma[:, j]}
        return pd.DataFrame(table)

    def to_csv(self, path) -> Path:
        """Write the table; an interrupted write leaves an old file whole."""
        with replacing(path) as beside:
            self.to_dataframe().to_csv(beside, index=False)
        return Path(path)

    def to_dict(self) -> dict:
        """Everything but the pixels, ready for JSON."""
        data = self.data
        return {
            "name": data.name, "vectors": self.vectors, "alpha": self.alpha, "sigma": self.sigma, "covariance": self.covariance,
            "multiplicity": self.multiplicity, "distance": self.distance, "orbits": list(self.orbits), "pairs": self.pairs,
            "projected": self.projected, "zone_axis": self.zone_axis, "laue": self.laue, "centring": self.centring,
            "method": self.method, "r_factor": self.r_factor, "wr_factor": self.wr_factor, "chi2": self.chi2,
            "n_observations": self.n_observations, "n_independent": self.n_independent,
            "n_outliers": self.n_outliers, "serial": self.serial,
            "scale": self.scale, "scale_sigma": self.scale_sigma, "background": self.background,
            "background_powers": list(self.background_powers), "gamma": self.gamma, "gamma_sigma": self.gamma_sigma,
            "concentration": self.concentration, "lattice": data.lattice, "shape": data.shape, "radiation": data.radiation,
            "history": list(data.history), "crystaldl": self.version,
        }  # fmt: skip

    def save(self, path) -> Path:
        """Write everything (``.h5``, EMD 1.0: `crystaldl.read` reads it back), else the figures as JSON.

        An interrupted write leaves an old file whole.
        """
        if str(path).lower().endswith(ENDINGS):
            from ..files import RECORDS

            return RECORDS.save(path, self)
        return write_json(path, self.to_dict())

    def show(self):
        """Measured, calculated and residual intensity, and α against distance with error bars: (figure, axes)."""
        from .plot import plot_sro_fit

        return plot_sro_fit(self)

    # ------------------------------------------------------------------------------------------ printing

    def _label(self, i: int) -> str:
        vector = " ".join(f"{v:g}" for v in np.round(self.vectors[i], 3))
        return vector if self.pairs is None else f"{vector} ({self.pairs[i, 0]}-{self.pairs[i, 1]})"

    def __repr__(self) -> str:
        first = ", ".join(f"α({self._label(i)}) {number(self.alpha[i], self.sigma[i])}" for i in range(min(3, len(self.alpha))))
        more = f", … {len(self.alpha)} in all" if len(self.alpha) > 3 else ""
        kind = " projected" if self.projected else ""
        return f"<SROFit{kind} {self.laue}: {first}{more}; R {self.r_factor:.2%}, wR {self.wr_factor:.2%}, χ² {self.chi2:.3g}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(self._label(i))}</td><td>{d:.3f}</td><td>{m}</td><td>{number(a, s)}</td></tr>"
            for i, (d, m, a, s) in enumerate(zip(self.distance, self.multiplicity, self.alpha, self.sigma, strict=True))
        )
        kind = f"projected along [{' '.join(f'{v:g}' for v in self.zone_axis)}]" if self.projected else "three-dimensional"
        return (
            f"<div><b>{escape(self.data.name or 'short-range order')}</b>, Laue class {escape(self.laue)}, {kind}<br>"
            f"R {self.r_factor:.2%}, wR {self.wr_factor:.2%}, χ² {self.chi2:.3g}, {self.n_observations} observations"
            f"<table><tr><th>R</th><th>Å</th><th>multiplicity</th><th>α</th></tr>{rows}</table></div>"
        )


def number(value: float, sigma: float) -> str:
    """``0.1234(12)``: two digits of the standard uncertainty."""
    if not (np.isfinite(value) and np.isfinite(sigma)) or sigma <= 0:
        return f"{value:.4g}"
    digits = max(0, 1 - int(np.floor(np.log10(sigma))))
    if digits > 12:
        return f"{value:.4g}"
    shown = round(sigma * 10**digits)
    return f"{value:.{digits}f}({shown})" if digits else f"{value:.0f}({sigma:.0f})"
