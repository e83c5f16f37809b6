"""Compiled kernels of `PowderPattern.index`: scoring, refinement and the triclinic search.

A lattice is its reciprocal metric ``g = (A, B, C, D, E, F)`` with ``Q = 1/d² = h²A + k²B + l²C + klD + hlE + hkF`` in
Å⁻², a system (free parameters and signs of indices that differ) and a centring. Kept in one file: numba's cache of a
kernel does not notice changes of kernels in other files.
"""

from __future__ import annotations

import numpy as np
from numba import njit

#: codes of systems: cubic, tetragonal, hexagonal axes, orthorhombic, monoclinic (unique axis b), triclinic
CUBIC, TETRAGONAL, HEXAGONAL, ORTHORHOMBIC, MONOCLINIC, TRICLINIC = range(6)
#: free parameters of the cell
FREE = np.array([1, 2, 2, 3, 4, 6])
#: codes of centrings
CENTRINGS = "PIFCR"
SQRT_TWO_PI = 2.5066282746


@njit(cache=True, nogil=True, inline="always")
def allowed(h, k, l, centring):
    """Whether the centring lets a reflection be seen; obverse and reverse rhombohedral lines coincide in a powder."""
    if centring == 0:
        return True
    if centring == 1:
        return (h + k + l) % 2 == 0
    if centring == 2:
        return (h + k) % 2 == 0 and (k + l) % 2 == 0
    if centring == 3:
        return (h + k) % 2 == 0
    return (-h + k + l) % 3 == 0


@njit(cache=True, nogil=True)
def determinant(g):
    """Squared volume of the reciprocal cell, Å⁻⁶."""
    d, e, f = 0.5 * g[3], 0.5 * g[4], 0.5 * g[5]
    return g[0] * (g[1] * g[2] - d * d) - f * (f * g[2] - d * e) + e * (f * d - g[1] * e)


@njit(cache=True, nogil=True)
def nearest(q, g, centring, reach):
    """Distance in Q from ``q`` to the nearest line of the lattice within ``reach`` (else a larger number), and its indices."""
    c = g[2]
    # Q = c (l + u h + v k)² + b (k + w h)² + a h²
    u, v = 0.5 * g[4] / c, 0.5 * g[3] / c
    b = g[1] - 0.25 * g[3] * g[3] / c
    best = 1e9
    bh, bk, bl = 0, 0, 0
    if b <= 0.0:
        return best, bh, bk, bl
    w = (0.5 * g[5] - 0.25 * g[3] * g[4] / c) / b
    a = g[0] - 0.25 * g[4] * g[4] / c - w * w * b
    if a <= 0.0:
        return best, bh, bk, bl
    top = q + reach
    plain = g[3] == 0.0 and g[5] == 0.0
    wide = 0 if centring == 0 else (2 if centring == 4 else 1)
    h = 0
    while h * h * a <= top:
        rest = top - h * h * a
        half = np.sqrt(rest / b)
        first = int(np.ceil(-w * h - half))
        last = int(np.floor(-w * h + half))
        if h == 0 or plain:
            first = max(first, 0)
        for k in range(first, last + 1):
            left = q - h * h * a - b * (k + w * h) ** 2
            root = np.sqrt(left / c) if left > 0.0 else 0.0
            centre = -u * h - v * k
            for side in range(2):
                if side == 1 and h == 0 and k == 0:
                    break
                low = int(np.floor(centre + root if side == 0 else centre - root))
                for l in range(low - wide, low + 2 + wide):
                    if (h == 0 and k == 0 and l <= 0) or not allowed(h, k, l, centring):
                        continue
                    e = abs(h * h * g[0] + k * k * g[1] + l * l * c + k * l * g[3] + h * l * g[4] + h * k * g[5] - q)
                    if e < best:
                        best, bh, bk, bl = e, h, k, l
        h += 1
    return best, bh, bk, bl


@njit(cache=True, nogil=True)
def likelihood(lines, g, centring, multiplicity, lost, tail, bar):
    """Log-likelihood ratio of the lines against chance; -1e9 as soon as ``bar`` is out of reach.

    Parameters
    ----------
    lines : (n, 4) float: Q, σ_Q, weight, weighted gain of a perfect hit for one predicted line per unit of V/m
    multiplicity : float, of a general line times the centring factor
    lost : float, share of lines that no cell explains (impurities, noise, blends)
    tail : float, share of lines whose error is three times σ
    """
    det = determinant(g)
    if det <= 0.0:
        return -1e9
    per = 2.0 * np.pi / (np.sqrt(det) * multiplicity)
    shift = np.log(per)
    n = lines.shape[0]
    left = 0.0
    for i in range(n):
        left += max(lines[i, 3] - lines[i, 2] * shift, 0.0)
    if left < bar:
        return -1e9
    total = 0.0
    for i in range(n):
        q, sigma, weight = lines[i, 0], lines[i, 1], lines[i, 2]
        reach = (9.0 if tail > 0.0 else 4.0) * sigma
        x = nearest(q, g, centring, reach)[0] / sigma
        hit = 0.0
        if x * sigma <= reach:
            hit = (1.0 - tail) * np.exp(-0.5 * x * x) + tail / 3.0 * np.exp(-x * x / 18.0)
            hit /= SQRT_TWO_PI * sigma * per * np.sqrt(q)
        total += weight * np.log(lost + (1.0 - lost) * hit)
        left -= max(lines[i, 3] - weight * shift, 0.0)
        if total + left + 0.2 < bar:
            return -1e9
    return total


@njit(cache=True, nogil=True, fastmath=True)
def quick(lines, g, det, lost, bar):
    """`likelihood` of a primitive triclinic cell without tails, for millions of trial cells; ``det`` is its determinant."""
    c, inverse = g[2], 1.0 / g[2]
    u, v = 0.5 * g[4] * inverse, 0.5 * g[3] * inverse
    b = g[1] - v * v * c
    w = (0.5 * g[5] - u * v * c) / b
    a = g[0] - u * u * c - w * w * b
    root_c, root_b = np.sqrt(inverse), 1.0 / np.sqrt(b)
    per = np.pi / np.sqrt(det)
    shift = np.log(per)
    n = lines.shape[0]
    left = 0.0
    for i in range(n):
        left += max(lines[i, 3] - lines[i, 2] * shift, 0.0)
    total, miss = 0.0, np.log(lost)
    for i in range(n):
        q, sigma, weight = lines[i, 0], lines[i, 1], lines[i, 2]
        left -= max(lines[i, 3] - weight * shift, 0.0)
        best = 3.5 * sigma
        top = q + best
        h = 0
        rest = top
        while rest >= 0.0:
            half = np.sqrt(rest) * root_b
            first = int(np.ceil(-w * h - half)) if h > 0 else 0
            last = int(np.floor(-w * h + half))
            for k in range(first, last + 1):
                y = k + w * h
                base = h * h * a + b * y * y
                left_over = q - base
                root = np.sqrt(left_over) * root_c if left_over > 0.0 else 0.0
                centre = u * h + v * k
                x = np.floor(root - centre) + centre
                e = min(abs(x * x * c - left_over), abs((x + 1.0) * (x + 1.0) * c - left_over))
                if h > 0 or k > 0:
                    x = np.floor(-root - centre) + centre
                    e = min(e, min(abs(x * x * c - left_over), abs((x + 1.0) * (x + 1.0) * c - left_over)))
                best = min(best, e)
            h += 1
            rest = top - h * h * a
        if best < 3.4999 * sigma:
            e = best / sigma
            hit = np.exp(-0.5 * e * e) / (SQRT_TWO_PI * sigma * per * np.sqrt(q))
            total += weight * np.log(lost + (1.0 - lost) * hit)
        else:
            total += weight * miss
        if total + left + 0.2 < bar:
            return -1e9
    return total


@njit(cache=True, nogil=True)
def design(h, k, l, system, row):
    """Derivatives of Q with respect to the free parameters."""
    if system == 0:
        row[0] = h * h + k * k + l * l
    elif system == 1:
        row[0], row[1] = h * h + k * k, l * l
    elif system == 2:
        row[0], row[1] = h * h + h * k + k * k, l * l
    else:
        row[0], row[1], row[2] = h * h, k * k, l * l
        if system == 4:
            row[3] = h * l
        elif system == 5:
            row[3], row[4], row[5] = k * l, h * l, h * k


@njit(cache=True, nogil=True)
def expand(p, system, g):
    """The six coefficients of the free parameters."""
    g[:] = 0.0
    if system == 0:
        g[0], g[1], g[2] = p[0], p[0], p[0]
    elif system < 3:
        g[0], g[1], g[2] = p[0], p[0], p[1]
        if system == 2:
            g[5] = p[0]
    else:
        g[0], g[1], g[2] = p[0], p[1], p[2]
        if system == 4:
            g[4] = p[3]
        elif system == 5:
            g[3], g[4], g[5] = p[3], p[4], p[5]


@njit(cache=True, nogil=True)
def free_parameters(g, system, p):
    """The free parameters of the six coefficients; what `expand` takes."""
    p[0] = g[0]
    if system in (1, 2):
        p[1] = g[2]
    elif system > 2:
        p[1], p[2] = g[1], g[2]
        if system == 4:
            p[3] = g[4]
        elif system == 5:
            p[3], p[4], p[5] = g[3], g[4], g[5]


@njit(cache=True, nogil=True)
def improve(lines, slope, g, zero, system, centring, wide, rounds, prior, hold):
    """Cell and zero shift (degrees) by robust least squares, lines re-indexed each round; zero 9 where it fails.

    ``slope`` is dQ/d2θ of each line in Å⁻² per degree; ``zero`` (observed minus true 2θ) is where to start.
    ``wide`` is the acceptance in units of σ of the first round; it shrinks to 2 in the last. ``prior`` is the standard
    deviation expected of the zero shift in degrees. A parameter that no line tells, such as a short axis where all lines at
    low angles are of one zone, stays as it is with ``hold`` 1, and fails with 0.
    """
    n = lines.shape[0]
    free = FREE[system]
    size = free + 1
    g = g.copy()
    row, held = np.zeros(size), np.zeros(size)
    for turn in range(rounds):
        accept = wide + (2.0 - wide) * turn / max(rounds - 1, 1)
        normal = np.zeros((size, size))
        right = np.zeros(size)
        for i in range(n):
            q = lines[i, 0] - zero * slope[i]
            sigma = lines[i, 1]
            e, h, k, l = nearest(q, g, centring, 2.5 * accept * sigma)
            u = e / sigma / accept
            if u > 2.5:
                continue
            design(h, k, l, system, row)
            row[free] = slope[i]
            w = lines[i, 2] / (sigma * sigma) / (1.0 + u**4) ** 2
            for a in range(size):
                for b in range(size):
                    normal[a, b] += w * row[a] * row[b]
                right[a] += w * row[a] * lines[i, 0]
        normal[free, free] += 1.0 / (prior * prior)
        free_parameters(g, system, held)
        for a in range(size):
            small = 1e-10 * normal[a, a] + 1e-8
            normal[a, a] += small
            right[a] += hold * small * held[a]
        p = np.linalg.solve(normal, right)
        zero = p[free]
        expand(p[:free], system, g)
        if not (g[0] > 1e-5 and g[1] > 1e-5 and g[2] > 1e-5 and determinant(g) > 1e-12):
            return g, 9.0
    return g, zero


@njit(cache=True, nogil=True)
def improve_all(lines, sharp, slope, cells, starts, codes, settings):
    """Improve many cells on ``lines`` and score each, its zero shift taken off, on ``sharp``: (score, cell, zero).

    ``codes`` (n, 3): system, centring and multiplicity of each cell; ``settings``: lost and tail as in `likelihood`, wide,
    rounds, prior and hold as in `improve`.
    """
    lost, tail, wide, rounds, prior, hold = settings
    count = cells.shape[0]
    scores, out, zeros = np.full(count, -1e9), np.zeros((count, 6)), np.zeros(count)
    shifted = sharp.copy()
    for i in range(count):
        g, zero = improve(lines, slope, cells[i], starts[i], codes[i, 0], codes[i, 1], wide, rounds, prior, hold)
        if abs(zero) > 2.5 * prior:
            continue
        for j in range(sharp.shape[0]):
            shifted[j, 0] = sharp[j, 0] - zero * slope[j]
        out[i], zeros[i] = g, zero
        score = likelihood(shifted, g, codes[i, 1], float(codes[i, 2]), lost, tail, -1e8)
        scores[i] = score - 0.5 * (zero / prior) ** 2
    return scores, out, zeros


@njit(cache=True, nogil=True)
def offer(score, g, scores, cells):
    """Put a cell into a min-heap of the best ones (root: the worst)."""
    n = scores.size
    i = 0
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and scores[child + 1] < scores[child]:
            child += 1
        if scores[child] >= score:
            break
        scores[i] = scores[child]
        cells[i] = cells[child]
        i = child
    scores[i] = score
    cells[i] = g


@njit(cache=True, nogil=True)
def search_triclinic(lines, base, top, many, smallest, largest, lost, scores, cells):
    """Primitive cells from six lines: three give the axes of the reciprocal cell, three more the angles between them.

    Any three observed lines that span the lattice will do; of each pair of axes the sum or the difference has to be
    observed. ``base`` (Q, ascending): the first ``top`` may be axes, the first ``many`` may give angles. Cells with a
    volume in Å³ from ``smallest`` to ``largest`` are scored; the best are kept in the heap (scores, cells).
    """
    g = np.zeros(6)
    low, high = 1.0 / largest**2, 1.0 / smallest**2
    tried = 0
    for i in range(top):
        c = base[i]
        for j in range(i):
            b = base[j]
            for k in range(j):
                a = base[k]
                # h of the largest, so that the innermost index, solved for, is the one with most values
                g[0], g[1], g[2] = c, b, a
                for m in range(many):
                    if m in (j, k) or base[m] > (a + b) * 1.02:
                        continue
                    d = a + b - base[m]
                    if d * d > 3.9 * a * b:
                        continue
                    g[3] = d
                    for n in range(many):
                        if n in (i, k) or base[n] > (a + c) * 1.02:
                            continue
                        e = a + c - base[n]
                        if e * e > 3.9 * a * c:
                            continue
                        g[4] = e
                        for o in range(many):
                            if o in (i, j) or base[o] > (b + c) * 1.02:
                                continue
                            f = b + c - base[o]
                            if f * f > 3.9 * b * c:
                                continue
                            for sign in range(2):
                                g[5] = f if sign == 0 else -f
                                det = determinant(g)
                                if det < low or det > high:
                                    continue
                                tried += 1
                                score = quick(lines, g, det, lost, scores[0])
                                if score > scores[0]:
                                    offer(score, g, scores, cells)
    return tried


@njit(cache=True, nogil=True)
def search_layers(lines, base, zones, smallest, largest, lost, scores, cells):
    """Primitive cells from a plane of the reciprocal lattice and three lines of the next layer.

    ``zones`` (n, 3): reduced planes (A, C, E) with ``Q = h²A + l²C + hlE``, best first; a row of zeros ends the list. One
    line of the layer is its origin, two more are one step of the plane away from it, in three choices of the steps.
    """
    g = np.zeros(6)
    low, high = 1.0 / largest**2, 1.0 / smallest**2
    n = base.size
    tried = 0
    for z in range(zones.shape[0]):
        if zones[z, 0] <= 0.0:
            break
        for basis in range(3):
            a, b, f = zones[z, 0], zones[z, 1], zones[z, 2]
            if basis == 1:
                a, b, f = a, a + b + f, f + 2.0 * a
            elif basis == 2:
                a, b, f = a, a + b - f, 2.0 * a - f
            g[0], g[1], g[5] = a, b, f
            for i in range(n):
                c = base[i]
                g[2] = c
                for j in range(n):
                    e = base[j] - a - c
                    if j == i or e * e > 3.9 * a * c:
                        continue
                    g[4] = e
                    for k in range(n):
                        d = base[k] - b - c
                        if k == i or d * d > 3.9 * b * c:
                            continue
                        for sign in range(2):
                            g[3] = d if sign == 0 else -d
                            det = determinant(g)
                            if det < low or det > high:
                                continue
                            tried += 1
                            score = quick(lines, g, det, lost, scores[0])
                            if score > scores[0]:
                                offer(score, g, scores, cells)
    return tried
