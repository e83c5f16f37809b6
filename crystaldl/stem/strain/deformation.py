"""From lattice vectors to strain: pure functions of arrays.

Rows are vectors (x, y). Reciprocal vectors of a deformed crystal are g' = β g with β = F⁻ᵀ, where F = R U is the
deformation of real space against the reference.
"""

from __future__ import annotations

import numpy as np


def calibration_map(calibration, state, scan_shape) -> np.ndarray:
    """(P, 2, 2) matrices L that carry detector vectors to calibrated ones, q' = L q, as py4DSTEM calibrates them.

    Parameters
    ----------
    calibration : py4DSTEM Calibration
    state : dict
        Which calibrations apply; ``"ellipse"`` and ``"rotate"`` are read (the result stays in px).
    scan_shape : (Rx, Ry)
    """
    n = scan_shape[0] * scan_shape[1]
    out = np.broadcast_to(np.eye(2), (n, 2, 2)).copy()
    if state.get("ellipse") and calibration.get_ellipse() is not None:
        a, b, theta = (np.broadcast_to(v, scan_shape).ravel().astype(float) for v in calibration.get_ellipse())
        squeeze = b / a
        sine, cosine = np.sin(theta - np.pi / 2), np.cos(theta - np.pi / 2)
        out[:, 0, 0] = squeeze * sine**2 + cosine**2
        out[:, 1, 1] = sine**2 + squeeze * cosine**2
        out[:, 0, 1] = out[:, 1, 0] = sine * cosine * (1 - squeeze)
    if state.get("rotate") and calibration.get_QR_rotation() is not None:
        angle = float(calibration.get_QR_rotation())
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        if calibration.get_QR_flip():
            turn = turn @ np.array([[0.0, 1.0], [1.0, 0.0]])
        out = turn @ out
    return out


def reference_change(vectors, reference) -> np.ndarray:
    """(P, 2, 2) β with g' = β g: lattice ``vectors`` (P, 2, 2) against the ``reference`` (2, 2), rows g1 and g2."""
    return (np.linalg.inv(reference) @ vectors).transpose(0, 2, 1)


def strain_from_change(change, measure: str = "polar") -> np.ndarray:
    """e_xx, e_yy, e_xy and theta, (4, P), from β (P, 2, 2).

    Parameters
    ----------
    measure : {"polar", "infinitesimal"}
        ``"polar"``: U - 1 of the real-space deformation F = β⁻ᵀ = R U, and minus the angle of R.
        ``"infinitesimal"``: 1 - (β + βᵀ)/2 and (β_xy - β_yx)/2, as py4DSTEM's ``get_strain_from_reference_g1g2``.
    """
    if measure == "infinitesimal":
        return np.stack([
            1 - change[:, 0, 0],
            1 - change[:, 1, 1],
            -(change[:, 0, 1] + change[:, 1, 0]) / 2,
            (change[:, 0, 1] - change[:, 1, 0]) / 2,
        ])  # fmt: skip
    a, b, c, d = change[:, 0, 0], change[:, 0, 1], change[:, 1, 0], change[:, 1, 1]
    det = a * d - b * c
    f_xx, f_xy, f_yx, f_yy = d / det, -c / det, -b / det, a / det
    # square root of C = FᵀF in closed form (Cayley-Hamilton): U = (C + √det C) / √(tr C + 2 √det C)
    c_xx, c_yy, c_xy = f_xx**2 + f_yx**2, f_xy**2 + f_yy**2, f_xx * f_xy + f_yx * f_yy
    root = np.abs(1 / det)
    size = np.sqrt(c_xx + c_yy + 2 * root)
    angle = np.arctan2(f_yx - f_xy, f_xx + f_yy)
    return np.stack([(c_xx + root) / size - 1, (c_yy + root) / size - 1, c_xy / size, -angle])


def rotated(strain, angle: float) -> np.ndarray:
    """Strain (4, P) with its x axis turned by ``angle`` (rad, from x towards y); theta stays."""
    cosine, sine = np.cos(angle), np.sin(angle)
    xx, yy, xy, theta = strain
    return np.stack([
        cosine**2 * xx + 2 * cosine * sine * xy + sine**2 * yy,
        sine**2 * xx - 2 * cosine * sine * xy + cosine**2 * yy,
        cosine * sine * (yy - xx) + (cosine**2 - sine**2) * xy,
        theta,
    ])  # fmt: skip


def strain_jacobian(reference, angle: float = 0.0) -> np.ndarray:
    """(4, 4) first derivatives of (e_xx, e_yy, e_xy, theta) with respect to (g1x, g1y, g2x, g2y), per px."""
    inverse = np.linalg.inv(reference)
    step = np.eye(4).reshape(4, 2, 2)
    change = (inverse @ step).transpose(0, 2, 1) + np.eye(2)
    return rotated(strain_from_change(change, "infinitesimal"), angle)
