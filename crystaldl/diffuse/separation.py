"""`Separation`: what `DiffuseVolume.separate` returns."""
from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from .volume import DiffuseVolume


@dataclass(frozen=True, eq=False)
class Separation:
    """Diffuse scattering as form factor × short-range order + background.

    Attributes
    ----------
    measured : DiffuseVolume
        The input.
    form_factor : DiffuseVolume
        D = m_A m_B |F_A − F_B|² on every pixel, in units of the data; ``sigma`` beside ``data``. Only the product with
        the concentrations m_A m_B can be known.
    sro : DiffuseVolume
        S, mean 1 over a zone (of the plane: for a plane through a three-dimensionally ordered crystal its order
        parameters are those projected along the normal); ``sigma`` beside ``data``.
    background : DiffuseVolume
        What is neither: smooth background, and Bragg peaks where they were fitted.
    method, link : str
        How it was done; the form of S that was chosen ("reciprocal": 1/S is the short cosine series).
    model, model_sha256 : str
        The network that took part; empty where none did.
    r_factor : float
        ``Σ |I − D S − B| / Σ |I|`` over the pixels that were used.
    r_free : float
        The same over blocks of pixels that the fit had not seen; NaN where none were held out.
    lattice : (6,) tuple or None
        Cell with the refined repeats.
    period : (ndim, ndim) ndarray
        Rows: primitive reciprocal-lattice vectors in axis coordinates of the measured data, as refined.
    support : float
        Radius of the Patterson function that the data ask for, Å (in 1/pixel where the scale is not known).
    alpha_vectors, alpha, alpha_covariance : (n, 3), (n,), (n, n) ndarray or None
        Order parameters of one of each ±R with their joint covariance; None where S is not even or not from a fit.
    bragg_radius : float
        Pixels around the nodes in which Bragg scattering was found, or that were left out as told.
    used : bool ndarray
        Pixels that took part, without those in which fitted Bragg peaks matter.
    verdict : str
        Whether the model applies, in a sentence.
    """

    measured: DiffuseVolume
    form_factor: DiffuseVolume
    sro: DiffuseVolume
    background: DiffuseVolume
    method: str
    link: str
    r_factor: float
    r_free: float
    lattice: tuple | None
    period: np.ndarray
    support: float
    centring: str
    bragg_radius: float
    used: np.ndarray
    verdict: str
    applies: bool
    alpha_vectors: np.ndarray | None = None
    alpha: np.ndarray | None = None
    alpha_covariance: np.ndarray | None = None
    model: str = ""
    model_sha256: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    scale: float = 1.0
    version: str = __version__

    def __post_init__(self) -> None:
        for name in ("period", "used", "alpha_vectors", "alpha", "alpha_covariance"):
            value = getattr(self, name)
            if value is not None:
                value = np.array(value)
                value.setflags(write=False)
                object.__setattr__(self, name, value)
        object.__setattr__(self, "parameters", dict(self.parameters))

    # -- derived -------------------------------------------------------------------------------------------------

    def product(self) -> DiffuseVolume:
        """Calculated intensity ``D S + B`` on all pixels."""
        return self.measured.replace(
            data=self.form_factor.data * self.sro.data + self.background.data, mask=None, sigma=None, history="calculated")

    def residual(self) -> DiffuseVolume:
        """Measured minus calculated intensity."""
        model = self.form_factor.data * self.sro.data + self.background.data
        return self.measured.replace(data=self.measured.data - model, history="measured - calculated")

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pixels, as plain Python."""
        out = {name: getattr(self, name) for name in ("method", "link", "r_factor", "r_free", "support", "centring",
                                                      "bragg_radius", "verdict", "applies", "model", "model_sha256", "version")}
        out["lattice"] = None if self.lattice is None else [float(v) for v in self.lattice]
        out["period"] = self.period.tolist()
        out["parameters"] = dict(self.parameters)
        if self.alpha is not None:
            out["alpha"] = [{"vector": v.tolist(), "alpha": float(a), "sigma": float(s)} for v, a, s in
                            zip(self.alpha_vectors, self.alpha, np.sqrt(np.diag(self.alpha_covariance)), strict=True)]
        return out

    # -- answers -------------------------------------------------------------------------------------------------

    def refine_sro(self, shells=6, laue=None, **options):
        """Warren-Cowley parameters with standard uncertainties; see `crystaldl.diffuse.sro.refine.refine_sro`."""
        from .sro.refine import refine_sro

        return refine_sro(self, shells=shells, laue=laue, **options)

    def refine_interactions(self, **options):
        """Mean-field pair energies; see `crystaldl.diffuse.sro.models.refine_interactions`."""
        from .sro.models import refine_interactions

        return refine_interactions(self, **options)

    def compare_form_factors(self, models, **options):
        """Which structural models fit; see `crystaldl.diffuse.compare.compare_form_factors`."""
        from .compare import compare_form_factors

        return compare_form_factors(self, models, **options)

    def show(self, **options):
        """Measured, calculated, form factor and order side by side; returns (figure, axes)."""
        from .plot_separation import plot_separation

        return plot_separation(self, **options)

    def save(self, path) -> Path:
        """Write everything as EMD 1.0 (plain emdfile and h5py open it); `Separation.from_file` reads it back."""
        from .separation_files import write_separation

        return write_separation(self, path)

    @classmethod
    def from_file(cls, path) -> Separation:
        """Read what `save` wrote."""
        from .separation_files import read_separation

        return read_separation(path)

    # -- printing ------------------------------------------------------------------------------------------------

    def _facts(self) -> list[tuple[str, str]]:
        cell = "unknown" if self.lattice is None else " ".join(f"{v:.5g}" for v in self.lattice)
        unit = "Å" if self.lattice is not None else "/pixel"
        return [
            ("method", self.method + (f" ({self.model})" if self.model else "")), ("R", f"{100 * self.r_factor:.2f} %"),
            ("R free", f"{100 * self.r_free:.2f} %"), ("lattice", cell), ("support", f"{self.support:.3g} {unit}"),
            ("form of S", self.link), ("Bragg radius", f"{self.bragg_radius:.3g} pixels"), ("verdict", self.verdict),
        ]

    def __repr__(self) -> str:
        return "Separation(" + ", ".join(f"{k}: {v}" for k, v in self._facts()) + ")"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in self._facts())
        return f"<table><caption>Separation</caption>{rows}</table>"
