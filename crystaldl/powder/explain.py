"""Why a classification says what it says, in sentences a crystallographer can check against the pattern."""

from __future__ import annotations

import numpy as np

from ..physics.symmetry import (
    BRAVAIS_LATTICES,
    FAMILIES,
    bravais_of_group,
    extinction_of_group,
    extinction_symbols,
    symbols,
)
from .axes import inverse_d_to_two_theta
from .indexing.absences import expected_intensity, forbidden_lines, line_likelihoods


def explanation(result) -> str:
    """Text of `crystaldl.powder.result.Classification.explain`."""
    parts = [_answer(result), _recognition(result)]
    if not result.lattices:
        said = "The network alone was asked" if result.method in ("network", "npcnn") else "No lattice explains the lines"
        parts.append(f"{said}; its probabilities are all there is to go by.")
    else:
        parts += [_lattice(result), _absences(result), _foreign(result)]
    if not result.confident:
        parts.append(_doubt(result))
    return "\n".join(p for p in parts if p)


def _answer(result) -> str:
    system = result.crystal_system
    return (
        f"{system.capitalize()} ({result.crystal_system_probabilities[system]:.0%}), extinction group "
        f"{result.extinction_group}, most probable space group {result.space_group_symbol} "
        f"({result.space_group_probabilities[result.space_group - 1]:.0%})."
    )


def _recognition(result) -> str:
    if not result.recognised >= 0.01:
        return ""
    named = [f"{k.name} ({symbols()[k.space_group - 1]}, {k.probability:.0%})" for k in result.known_crystals if k.name]
    return (
        f"{result.recognised:.0%} of this answer rests on the likeness to a crystal known from training"
        f"{': ' + ', '.join(named) if named else ''}; the rest on network and lines."
    )


def _cell_text(lattice) -> str:
    a, b, c, alpha, beta, gamma = lattice.cell
    edges = {"c": f"a = {a:.4f}", "t": f"a = {a:.4f}, c = {c:.4f}", "h": f"a = {a:.4f}, c = {c:.4f}"}
    text = edges.get(lattice.bravais[0], f"a = {a:.4f}, b = {b:.4f}, c = {c:.4f}") + " Å"
    if lattice.bravais[0] == "a":
        return text + f", α = {alpha:.3f}°, β = {beta:.3f}°, γ = {gamma:.3f}°"
    return text + (f", β = {beta:.3f}°" if lattice.bravais[0] == "m" else "")


def _lattice(result) -> str:
    best, fit = result.lattices[0], result.lattices[0].fit
    text = f"Lattice {best.bravais}, {_cell_text(best)}, log-likelihood ratio {best.score:.1f} against chance"
    if fit is not None:
        text += f"; its {len(fit.intensity)} lines explain {max(fit.explained, 0):.0%} of the weighted pattern"
        text += f" (shift of 2θ {best.zero:+.3f}°)"
    if FAMILIES[result.crystal_system] != best.bravais[0]:
        text += f". It is not {result.crystal_system}: the network's opinion, or what the fit leaves over, weighed more"
    rivals = [f"{c.bravais} ({c.score - best.score:+.1f})" for c in result.lattices[1:4]]
    return text + "." + (f" Next: {', '.join(rivals)}." if rivals else "")


def _absences(result) -> str:
    """The lines that speak loudest for and against the extinction group on the best lattice."""
    fit = result.lattices[0].fit
    group = int(np.argmax(result.extinction_group_probabilities))
    if fit is None or group not in {int(extinction_of_group()[n - 1]) for n in _groups(fit.lattice)}:
        return ""
    forbidden = forbidden_lines(group, fit)
    if not forbidden.any():
        return f"Extinction group {extinction_symbols()[group]} forbids none of the lines of this lattice."
    allowed, absent = line_likelihoods(fit)
    verdict = np.where(forbidden, absent - allowed, 0.0)
    wanted, strength = expected_intensity(fit), np.maximum(fit.intensity, 0.0)
    scale = 100 / max(strength.max(), 1e-12)
    text = f"Of {int(forbidden.sum())} lines it forbids, {int((verdict > 0).sum())} are absent as they should be"
    loud = np.argsort(-verdict)[:4]
    loud = loud[verdict[loud] > 0.5]
    if len(loud):
        text += ": " + ", ".join(
            f"{_indices(fit, i)} at {_two_theta(result, fit, i):.2f}° ({scale * fit.intensity[i]:.1f}({scale * fit.sigma[i]:.1f}) "
            f"where {scale * wanted[i]:.1f} is usual)"
            for i in loud
        )
    against = [i for i in np.argsort(verdict)[:3] if verdict[i] < -1.0]
    if against:
        text += "; against it: " + ", ".join(f"{_indices(fit, i)} at {_two_theta(result, fit, i):.2f}°" for i in against)
    return text + "."


def _groups(lattice: str) -> list[int]:
    return [n + 1 for n, b in enumerate(bravais_of_group()) if BRAVAIS_LATTICES[b] == lattice]


def _indices(fit, line: int) -> str:
    h, k, l = fit.hkl[np.flatnonzero(fit.line == line)[-1]]
    return f"({h} {k} {l})"


def _two_theta(result, fit, line: int) -> float:
    return float(inverse_d_to_two_theta(np.sqrt(fit.q2[line]), result.pattern.radiation.wavelength))


def _foreign(result) -> str:
    if not len(result.unexplained):
        return "No line of the pattern is foreign to this lattice."
    wavelength = result.pattern.radiation.wavelength
    lines = [f"{inverse_d_to_two_theta(q, wavelength):.2f}° ({h:.0%})" for q, h in result.unexplained[:5].tolist()]
    more = f" and {len(result.unexplained) - 5} more" if len(result.unexplained) > 5 else ""
    hint = " result.remainder().classify() looks at what is left." if result.lattices[0].fit is not None else ""
    return f"Lines foreign to this lattice (height of the strongest 100 %): {', '.join(lines)}{more}.{hint}"


def _doubt(result) -> str:
    from .result import UNEXPLAINED

    reasons = []
    if result.unexplained[:, 1].sum() > UNEXPLAINED:
        reasons.append("strong lines stay unexplained: a second phase, or another lattice")
    if result.lattices and FAMILIES[result.crystal_system] != result.lattices[0].bravais[0]:
        reasons.append("the best lattice is of another crystal system than the answer")
    if result.second_phase_probability > 0.5:
        reasons.append("the network suspects a second phase")
    if 0 <= result.lines < 4:
        reasons.append(f"only {result.lines} lines were found")
    return "Not confident: " + ("; ".join(reasons) or "the probability of the crystal system is too low") + "."
