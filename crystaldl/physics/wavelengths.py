"""X-ray wavelengths of laboratory anodes, and the resolution of what a user writes for a wavelength.

Sources
-------
Cr, Mn, Fe, Co, Ni, Cu: G. Hölzer et al., Phys. Rev. A 56, 4554 (1997), the values that *International Tables for
Crystallography* C (2004), Table 4.2.2.4, recommends.  Mo and Ag: the same table, from R. D. Deslattes et al., Rev.
Mod. Phys. 75, 35 (2003), on the same SI scale.  All in Å.  The ratio of the integrated intensities of Kα2 and Kα1 is
taken as 1/2, the statistical weight of the initial states (measured: 0.51 ± 0.02 for the transition metals).
"""

from __future__ import annotations

import math
import re
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

from ..errors import PlausibilityWarning, WavelengthError

__all__ = ["LINES", "Radiation", "known_names", "resolve_radiation"]

#: Anode -> (Kα1, Kα2, Kβ1,3) in Å.
LINES: dict[str, tuple[float, float, float]] = {
    "Cr": (2.289726, 2.293651, 2.084881),
    "Mn": (2.101854, 2.105822, 1.910216),
    "Fe": (1.936041, 1.939973, 1.756604),
    "Co": (1.788996, 1.792835, 1.620826),
    "Ni": (1.657930, 1.661756, 1.500152),
    "Cu": (1.5405929, 1.5444274, 1.392234),
    "Mo": (0.70931715, 0.713607, 0.632303),
    "Ag": (0.55942178, 0.5638131, 0.4970817),
}

_ANODE_WORDS = {
    "chromium": "cr", "manganese": "mn", "iron": "fe", "cobalt": "co", "nickel": "ni", "copper": "cu",
    "molybdenum": "mo", "silver": "ag",
}  # fmt: skip
# A number this close to a line of an anode is that line, rounded or from an older table (1.5406, 1.54056, 1.5418).
_MATCH = 6e-4
_PLAUSIBLE = (0.3, 3.0)
_UNITS = {"": 1.0, "a": 1.0, "å": 1.0, "ang": 1.0, "angstrom": 1.0, "angstroms": 1.0, "nm": 10.0, "pm": 0.01}


@dataclass(frozen=True)
class Radiation:
    """One spectral line, or a Kα doublet.

    Parameters
    ----------
    name : str
        How it is printed: ``"Cu Kα"``, ``"Cu Kα1"`` or ``"1.5406 Å"``.
    wavelength : float
        The Kα1 wavelength of a doublet, or the single wavelength, in Å.
    alpha2 : float or None
        The Kα2 wavelength in Å; None when there is no second line, or when it is not known whether there is one.
    alpha2_ratio : float
        Integrated intensity of Kα2 over Kα1; set to 0 when ``alpha2`` is None.
    anode : str or None
        Chemical symbol of the anode, when the wavelength is one of its lines.
    doublet : bool or None
        Whether the pattern holds Kα1 and Kα2.  None means unknown: the wavelength came as a bare number that is the
        Kα1 (or mean Kα) wavelength of a laboratory anode, which people write for data with and without Kα2.
        Left out, it follows ``alpha2``.
    """

    name: str
    wavelength: float
    alpha2: float | None = None
    alpha2_ratio: float = 0.5
    anode: str | None = None
    doublet: bool | None = False

    def __post_init__(self):
        _check_length(self.wavelength)
        if self.alpha2 is None:
            object.__setattr__(self, "alpha2_ratio", 0.0)
            return
        _check_length(self.alpha2)
        if not (math.isfinite(self.alpha2_ratio) and 0 < self.alpha2_ratio <= 1):
            raise WavelengthError(f"alpha2_ratio is {self.alpha2_ratio!r}; expected a number above 0 and at most 1.")
        object.__setattr__(self, "doublet", True)

    @property
    def mean(self) -> float:
        """Intensity-weighted mean wavelength, (λ1 + r λ2)/(1 + r), in Å; the wavelength itself for a single line."""
        if self.alpha2 is None:
            return self.wavelength
        return (self.wavelength + self.alpha2_ratio * self.alpha2) / (1.0 + self.alpha2_ratio)

    def as_doublet(self) -> Radiation:
        """The Kα doublet of the same anode, for data that turn out to hold Kα2; itself when the anode is unknown."""
        if self.alpha2 is not None or self.anode is None:
            return self
        first, second, _ = LINES[self.anode]
        # Keep a Kα1 the user wrote (and with it the user's scale); a mean wavelength gives way to the table's Kα1.
        scale = self.wavelength / first if abs(self.wavelength - first) <= _MATCH else 1.0
        return Radiation(f"{self.anode} Kα", first * scale, second * scale, 0.5, self.anode, True)

    def as_single(self) -> Radiation:
        """The same wavelength as a single line: Kα1 of a doublet; an unknown doublet becomes none."""
        if self.alpha2 is None:
            return self if self.doublet is False else replace(self, doublet=False)
        name = f"{self.anode} Kα1" if self.anode else f"{self.wavelength:.6g} Å"
        return Radiation(name, self.wavelength, None, 0.0, self.anode, False)

    def __str__(self) -> str:
        return self.name


def _check_length(value: float) -> None:
    if not (isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) and value > 0):
        raise WavelengthError(
            f"wavelength is {value!r}; expected a finite number above 0, in Å, or a name like 'CuKa'."
        )


def known_names() -> list[str]:
    """The names of radiations, as they may be written: ``["CrKa", "CrKa1", "CrKb", …]``."""
    return [f"{anode}{line}" for anode in LINES for line in ("Ka", "Ka1", "Kb")]


def resolve_radiation(value) -> Radiation:
    """Make a `Radiation` of what a user writes for a wavelength.

    Parameters
    ----------
    value : str, float, pair of floats or Radiation
        * a name in any common spelling: ``"CuKa"``, ``"Cu Kα"``, ``"cu-ka1"``, ``"CuKα1"``, ``"MoKb"``, ``"copper"``;
          ``Ka`` is the doublet, ``Ka1`` its first line alone;
        * a number in Å: exactly that wavelength.  If it lies within 0.0006 Å of the Kα1 or the mean Kα wavelength
          of a laboratory anode, ``doublet`` is None (unknown), because ``1.5406`` is written for both kinds of data;
        * text with a number and a unit: ``"1.5406"``, ``"1.5406 Å"``, ``"0.15406 nm"``;
        * a pair (Kα1, Kα2) in Å: a doublet with the intensity ratio 1/2;
        * a `Radiation`: itself, unchecked for plausibility.

    Raises
    ------
    WavelengthError
        For None, an unknown name, or a number that is not finite and positive.

    Warns
    -----
    PlausibilityWarning
        Outside 0.3 … 3 Å: most often a wavelength in nm (0.15406) or pm (154.06).
    """
    if isinstance(value, Radiation):
        return value
    if value is None:
        raise WavelengthError("wavelength is required: give a number in Å (1.5406) or a name such as 'CuKa' or 'MoKa'.")
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            return _from_number(float(value))
        except OverflowError:
            raise WavelengthError("wavelength is a number of hundreds of digits; expected a length in Å.") from None
    if isinstance(value, Sequence) and len(value) == 2:
        return _from_pair(*value)
    if getattr(value, "ndim", None) == 0:  # a zero-dimensional array
        return resolve_radiation(value.item())
    raise WavelengthError(
        f"wavelength is of type {type(value).__name__}; expected a number in Å, a name such as 'CuKa', or a Radiation."
    )


def _from_number(value: float) -> Radiation:
    _check_length(value)
    _warn_if_implausible(value)
    anode = _match_anode(value)
    return Radiation(f"{value:.6g} Å", value, None, 0.0, anode, None if anode else False)


def _from_pair(first, second) -> Radiation:
    for value in (first, second):
        _check_length(value)
    first, second = sorted((float(first), float(second)))
    if not 1.0 < second / first < 1.02:
        raise WavelengthError(
            f"wavelength is the pair ({first:.6g}, {second:.6g}) Å; the two lines of a Kα doublet differ by less than 2 %."
        )
    _warn_if_implausible(first)
    anode = _match_anode(first)
    return Radiation(f"{anode} Kα" if anode else f"{first:.6g} + {second:.6g} Å", first, second, 0.5, anode, True)


def _from_text(text: str) -> Radiation:
    # NFKC turns subscript digits and the ångström sign into plain characters.
    plain = unicodedata.normalize("NFKC", text).strip().lower().replace(",", ".")
    number = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-zå]*)", plain)
    if number and number.group(2) in _UNITS:
        return _from_number(float(number.group(1)) * _UNITS[number.group(2)])
    key = plain.replace("α", "a").replace("β", "b")
    key = re.sub(r"[^a-z0-9]", "", key).replace("alpha", "a").replace("beta", "b")
    key = re.sub(r"radiation$", "", key)
    for word, symbol in _ANODE_WORDS.items():
        key = re.sub(f"^{word}", symbol, key)
    match = re.fullmatch(r"([a-z]{2})(?:k?(a|a1|b|b1|a12|a1a2|a1ka2|a1ka2kb|avg|amean)?)?", key)
    anode = match and match.group(1).capitalize()
    if not match or anode not in LINES:
        raise WavelengthError(f"wavelength {text!r} is not a known radiation; known are {', '.join(known_names())}.")
    first, second, beta = LINES[anode]
    line = match.group(2) or "a"
    if line == "a1":
        return Radiation(f"{anode} Kα1", first, None, 0.0, anode, False)
    if line in ("b", "b1"):
        return Radiation(f"{anode} Kβ", beta, None, 0.0, anode, False)
    return Radiation(f"{anode} Kα", first, second, 0.5, anode, True)


def _match_anode(value: float) -> str | None:
    """The anode whose Kα1 or mean Kα wavelength lies within 0.0006 Å of ``value``, else None."""
    for anode, (first, second, _) in LINES.items():
        if min(abs(value - first), abs(value - (2 * first + second) / 3)) <= _MATCH:
            return anode
    return None


def _warn_if_implausible(value: float) -> None:
    low, high = _PLAUSIBLE
    if low <= value <= high:
        return
    unit, factor = ("nm", 10.0) if value < low else ("pm", 0.01)
    meant = value * factor
    hint = "expected a value in Å"
    if low <= meant <= high:
        anode = _match_anode(meant)
        hint = f"is it in {unit}, did you mean {meant:.6g} Å{f' ({anode} Kα)' if anode else ''}?"
    warnings.warn(
        f"wavelength {value:.6g} Å is outside the usual {low:g} to {high:g} Å; {hint}",
        PlausibilityWarning,
        stacklevel=4,
    )
