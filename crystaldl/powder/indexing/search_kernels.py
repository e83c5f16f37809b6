"""Compiled kernels of the lattice search: scoring, trial cells, refinement.

Kept in one file: numba's cache of a kernel does not notice changes of kernels in other files.
"""

from __future__ import annotations

import numpy as np
from numba import njit

#: Bravais lattices searched, in the order of the scores
LATTICES = ("cP", "cI", "cF", "tP", "tI", "hP", "hR", "oP", "oC", "oI", "oF", "mP", "mC")
# system of each: cubic, tetragonal, hexagonal axes, orthorhombic, monoclinic
_SYSTEM = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4])
_CENTRING = np.array([0, 1, 2, 0, 1, 0, 4, 0, 3, 1, 2, 0, 3])  # P, I, F, C, R
_DIVISOR = np.array([48, 96, 192, 16, 32, 24, 36, 8, 16, 16, 32, 4, 8], float)  # multiplicity of the holohedry × centring factor
EPSILON = 0.06
MARGIN = 10.0  # lattices this far below the best need no exact score
CANDIDATES = 6  # cells of each lattice that are refined
LOWEST = 1 / 30.0**2  # no axis beyond 30 Å
#: largest conventional cells in Å³, by system, as those of zeolites and frameworks; `pools.LARGEST` are primitive ones
_LARGEST = np.array([27000.0, 12000.0, 12000.0, 6000.0, 6000.0])
SHORTEST = 2.2  # Å: no crystal repeats over less (beryllium 2.29, graphite 2.46, diamond 2.52)
SQRT_TWO_PI = 2.5066282746
LN_EPSILON = np.log(EPSILON)


@njit(cache=True, nogil=True)
def _allowed(h, k, l, centring):
    if centring == 0:
        return True
    if centring == 1:
        return (h + k + l) % 2 == 0
    if centring == 2:
        return (h + k) % 2 == 0 and (k + l) % 2 == 0
    if centring == 3:
        return (h + k) % 2 == 0
    # obverse and reverse: their lines coincide in a powder
    return (-h + k + l) % 3 == 0 or (h - k + l) % 3 == 0


@njit(cache=True, nogil=True)
def _nearest(q, cell, system, centring):
    """Distance in Q from the line q to the nearest line the lattice allows, and its indices; cell is (A, B, C, D)."""
    a, b, c, d = cell[0], cell[1], cell[2], cell[3]
    best = 1e9
    bh, bk, bl = 0, 0, 0
    reach = 1.06 * q
    h = 0
    while True:
        # smallest Q with this h (minimised over l for monoclinic cells)
        if h * h * (a - 0.25 * d * d / c) > reach:
            break
        k = 0
        while True:
            if system <= 2 and k > h:
                break
            if system == 2:
                base = (h * h + h * k + k * k) * a
            else:
                base = h * h * a + k * k * b
            if (base - 0.25 * h * h * d * d / c) > reach:
                break
            # base + l² c + h l d = q
            half = 0.5 * h * d / c
            root = np.sqrt(max((q - base) / c + half * half, 0.0))
            for side in range(2):
                if side == 1 and (d == 0.0 or h == 0):
                    break
                centre = root - half if side == 0 else -root - half
                low = int(np.floor(centre))
                # the nearest l may be extinct in a centred cell: look one further on both sides
                reach_l = 1 if centring > 0 else 0
                for l in range(low - reach_l, low + 2 + reach_l):
                    if (system < 4 and l < 0) or (system == 0 and l > k) or (h == 0 and k == 0 and l == 0):
                        continue
                    if not _allowed(h, k, l, centring):
                        continue
                    e = abs(base + l * l * c + h * l * d - q)
                    if e < best:
                        best, bh, bk, bl = e, h, k, l
            k += 1
        h += 1
    return best, bh, bk, bl


@njit(cache=True, nogil=True)
def _falling(cell):
    """A, B and C, the largest first."""
    a, b, c = cell[0], cell[1], cell[2]
    return max(a, b, c), max(min(a, b), min(max(a, b), c)), min(a, b, c)


@njit(cache=True, nogil=True)
def _distance(q, axes):
    """Distance in Q from the line q to the nearest line of a primitive rectangular cell; ``axes`` as `_falling` gives them."""
    a, b, c = axes
    best, outer, h = q, 0.0, 0
    while outer < q + best:
        base, k = outer, 0
        while base < q:
            squared = (q - base) / c
            l = np.floor(np.sqrt(squared))
            best = min(best, c * min(squared - l * l, (l + 1.0) * (l + 1.0) - squared))
            k += 1
            base = outer + k * k * b
        best = min(best, base - q)
        h += 1
        outer = h * h * a
    return best


@njit(cache=True, nogil=True)
def _volume(cell, system):
    if system == 2:
        return (4.0 / (3.0 * cell[0])) * np.sqrt(0.75) / np.sqrt(cell[2])
    return 1.0 / np.sqrt(max(cell[1] * (cell[0] * cell[2] - 0.25 * cell[3] ** 2), 1e-12))


@njit(cache=True, nogil=True)
def _shortest(cell, row):
    """Squared length of the shortest lattice vector, Å²: of the vectors (x a + y b + z c) / 2, or / 3, near the origin."""
    system, centring = _SYSTEM[row], _CENTRING[row]
    bb = 1.0 / cell[1]
    if system == 2:
        aa, cc = 4.0 / (3.0 * cell[0]), 1.0 / cell[2]
        return min(aa, cc, aa / 3.0 + cc / 9.0) if centring == 4 else min(aa, cc)
    det = cell[0] * cell[2] - 0.25 * cell[3] * cell[3]
    aa, cc, ac = cell[2] / det, cell[0] / det, -0.5 * cell[3] / det
    best = bb
    for x in range(-4, 5):
        for z in range(0, 5):
            for y in range(2):
                if x % 2 == 0 and y == 0 and z % 2 == 0:
                    whole = True
                elif centring == 1:
                    whole = x % 2 == 1 and y == 1 and z % 2 == 1
                elif centring == 2:
                    whole = (x + y + z) % 2 == 0
                else:
                    whole = centring == 3 and x % 2 == 1 and y == 1 and z % 2 == 0
                if whole and (x != 0 or y != 0 or z != 0):
                    best = min(best, 0.25 * (x * x * aa + y * y * bb + z * z * cc + 2.0 * x * z * ac))
    return best


@njit(cache=True, nogil=True)
def _score(lines, cell, row, bar):
    """Summed log-likelihood ratio of the lines for lattice ``row``; -1e9 as soon as ``bar`` is out of reach.

    ``lines`` (n, 4): Q, σ_Q, weight, and the weighted gain of a perfect hit for unit density, in falling weight.
    """
    system, centring = _SYSTEM[row], _CENTRING[row]
    per = _volume(cell, system) / _DIVISOR[row]
    shift = np.log(2.0 * np.pi * per)
    left = 0.0
    n = lines.shape[0]
    for i in range(n):
        left += lines[i, 3] - lines[i, 2] * shift
    if left < bar:
        return -1e9
    total = 0.0
    for i in range(n):
        q, sigma, weight = lines[i, 0], lines[i, 1], lines[i, 2]
        x = _nearest(q, cell, system, centring)[0] / sigma
        hit = 0.0
        if x < 6.0:
            hit = np.exp(-0.5 * x * x) / (SQRT_TWO_PI * sigma * 2.0 * np.pi * per * np.sqrt(q))
        total += weight * np.log(EPSILON + (1.0 - EPSILON) * hit)
        left -= lines[i, 3] - weight * shift
        if total + left + 0.2 < bar:
            return -1e9
    return total


@njit(cache=True, nogil=True)
def _refine(lines, slope, cell, system, centring, rounds):
    """Cell and zero shift (degrees) by robust least squares on the lines as indexed; free parameters of the system."""
    n = lines.shape[0]
    free = 2 if system == 0 else (3 if system < 3 else (4 if system == 3 else 5))
    zero = 0.0
    cell = cell.copy()
    for turn in range(rounds):
        x = np.zeros((n + 1, free))
        y = np.zeros(n + 1)
        for i in range(n):
            q = lines[i, 0] - zero * slope[i]
            e, h, k, l = _nearest(q, cell, system, centring)
            u = e / lines[i, 1]
            w = np.sqrt(lines[i, 2]) / lines[i, 1] / (1.0 + (u / (2.0 - 0.4 * turn)) ** 4)
            if system == 0:
                x[i, 0] = h * h + k * k + l * l
            elif system == 1:
                x[i, 0], x[i, 1] = h * h + k * k, l * l
            elif system == 2:
                x[i, 0], x[i, 1] = h * h + h * k + k * k, l * l
            else:
                x[i, 0], x[i, 1], x[i, 2] = h * h, k * k, l * l
                if system == 4:
                    x[i, 3] = h * l
            x[i, free - 1] = slope[i]
            x[i] *= w
            y[i] = lines[i, 0] * w
        # the zero shift is known to be small: 0 ± 0.06°
        x[n, free - 1] = 1.0 / 0.06
        normal = x.T @ x
        for a in range(free):
            normal[a, a] *= 1.0 + 1e-9
            normal[a, a] += 1e-12
        p = np.linalg.solve(normal, x.T @ y)
        zero = p[free - 1]
        if system == 0:
            cell[0], cell[1], cell[2] = p[0], p[0], p[0]
        elif system < 3:
            cell[0], cell[1], cell[2] = p[0], p[0], p[1]
        else:
            cell[0], cell[1], cell[2] = p[0], p[1], p[2]
            if system == 4:
                cell[3] = p[3]
        if cell[0] <= 1e-4 or cell[1] <= 1e-4 or cell[2] <= 1e-4 or cell[0] * cell[2] <= 0.26 * cell[3] ** 2:
            return cell, 9.0
    return cell, zero


@njit(cache=True, nogil=True)
def polish(lines, slope, best, cells, sharp):
    """Refine the candidates of every lattice with a zero shift and score them with ``sharp`` times finer σ.

    Returns scores (rows, k), cells (rows, k, 4) and zero shifts (rows, k); unused places score -1000.
    """
    rows, count = best.shape
    out, zeros, refined = np.full((rows, count), -1e3), np.zeros((rows, count)), np.zeros((rows, count, 4))
    for row in range(rows):
        for k in range(count):
            if best[row, k] < -500.0:
                continue
            cell, zero = _refine(lines, slope, cells[row, k], _SYSTEM[row], _CENTRING[row], 4)
            fine = lines.copy()
            if abs(zero) < 0.2:
                fine[:, 0] -= zero * slope
            else:
                cell, zero = cells[row, k], 0.0
            fine[:, 1] *= sharp
            fine[:, 3] -= fine[:, 2] * np.log(sharp)
            out[row, k] = _score(fine, cell, row, -1e6)
            zeros[row, k] = zero
            refined[row, k] = cell
    return out, refined, zeros


@njit(cache=True, nogil=True)
def _hopeful(lines, rising, cell, first, last, best, top):
    """Which of the lattices ``first`` to ``last - 1`` may come up to their bar, as bits: no centring brings a line nearer."""
    system, bottom = _SYSTEM[first], best.shape[1] - 1
    volume, perfect, weight = _volume(cell, system), lines[:, 3].sum(), lines[:, 2].sum()
    # per lattice: ln of the density of its lines, and how much more may be lost
    shift, spare, hopeful = np.empty(last - first), np.empty(last - first), 0
    for r in range(last - first):
        shift[r] = np.log(2.0 * np.pi * volume / _DIVISOR[first + r])
        spare[r] = perfect - weight * shift[r] + 0.2 - max(best[first + r, bottom], top - MARGIN)
        if spare[r] >= 0.0:
            hopeful |= 1 << r
    axes = _falling(cell)
    for i in rising:  # few indices reach low lines
        if hopeful == 0:
            break
        x = (_distance(lines[i, 0], axes) if system == 3 else _nearest(lines[i, 0], cell, system, 0)[0]) / lines[i, 1]
        near = np.exp(-0.5 * x * x) / (SQRT_TWO_PI * lines[i, 1] * np.sqrt(lines[i, 0])) if x < 6.0 else 0.0
        for r in range(last - first):
            if hopeful >> r & 1:
                found = np.log(EPSILON + (1.0 - EPSILON) * near * np.exp(-shift[r])) if x < 6.0 else LN_EPSILON
                spare[r] -= lines[i, 3] - lines[i, 2] * (shift[r] + found)
                if spare[r] < 0.0:
                    hopeful ^= 1 << r
    return hopeful


@njit(cache=True, nogil=True)
def _keep(lines, rising, cell, first, last, best, cells, top):
    """Score one cell as lattices ``first`` to ``last - 1``, remember the best few of each; returns the best score of all."""
    if cell[0] <= 0 or cell[1] <= 0 or cell[2] <= 0 or cell[0] * cell[2] <= 0.26 * cell[3] ** 2:
        return top
    if _volume(cell, _SYSTEM[first]) > _LARGEST[_SYSTEM[first]]:
        return top
    hopeful = _hopeful(lines, rising, cell, first, last, best, top)
    count = best.shape[1]
    for row in range(first, last):
        if not hopeful >> (row - first) & 1:
            continue
        v = _score(lines, cell, row, max(best[row, count - 1], top - MARGIN))
        if v <= best[row, count - 1] or _shortest(cell, row) < SHORTEST * SHORTEST:
            continue
        r = count - 1
        for k in range(count):  # a near copy only replaces what it resembles
            if np.abs(cells[row, k] - cell).max() < 0.003 * cell.max():
                r = k
                break
        if v <= best[row, r]:
            continue
        while r > 0 and best[row, r - 1] < v:
            best[row, r], cells[row, r] = best[row, r - 1], cells[row, r - 1]
            r -= 1
        best[row, r], cells[row, r] = v, cell
        top = max(top, v)
    return top


@njit(cache=True, nogil=True)
def search_cubic(lines, base, best, cells, top):
    rising = np.argsort(lines[:, 0])
    for i in range(base.size):
        for number in range(1, 41):
            a = base[i] / number
            if a < LOWEST:
                break
            top = _keep(lines, rising, np.array([a, a, a, 0.0]), 0, 3, best, cells, top)
    return top


@njit(cache=True, nogil=True)
def search_uniaxial(lines, base, pairs, first, last, best, cells, top):
    """Tetragonal or hexagonal cells from two lines."""
    rising = np.argsort(lines[:, 0])
    for i in range(base.size):
        for j in range(i):
            for t in range(pairs.shape[0]):
                p1, l1, p2, l2 = pairs[t, 0], pairs[t, 1], pairs[t, 2], pairs[t, 3]
                det = p1 * l2 - p2 * l1
                a = (base[i] * l2 - base[j] * l1) / det
                c = (p1 * base[j] - p2 * base[i]) / det
                if LOWEST < a < 0.35 and LOWEST < c < 0.35:
                    top = _keep(lines, rising, np.array([a, a, c, 0.0]), first, last, best, cells, top)
    return top


@njit(cache=True, nogil=True)
def search_orthorhombic(lines, base, codes, first, last, best, cells, top):
    """Cells from three lines."""
    rising = np.argsort(lines[:, 0])
    cell = np.zeros(4)
    for t in range(codes.shape[0]):
        m = codes[t]
        for i in range(base.size):
            for j in range(i):
                for k in range(j):
                    cell[0] = m[0] * base[i] + m[1] * base[j] + m[2] * base[k]
                    cell[1] = m[3] * base[i] + m[4] * base[j] + m[5] * base[k]
                    cell[2] = m[6] * base[i] + m[7] * base[j] + m[8] * base[k]
                    if min(cell[0], cell[1], cell[2]) > LOWEST and max(cell[0], cell[1], cell[2]) < 0.3:
                        top = _keep(lines, rising, cell, first, last, best, cells, top)
    return top


@njit(cache=True, nogil=True)
def _settings(a, c, d, row):
    """Cells (A, C, D) whose h0l lines fill a zone: glides and C centring leave out half of them, or three quarters."""
    third, e = (a + c + d) / 4, d / 2 + c  # the zone's third direction, a* + c*
    if row == 11:
        return np.array([[a, c, d], [a / 4, c, d / 2], [a, c / 4, d / 2], [third, c, e]])
    whole = [[a / 4, c, d / 2], [c / 4, a, d / 2], [third, c, e]]
    return np.array(whole + [[a / 4, c / 4, d / 4], [c / 4, a / 4, d / 4], [third, c / 4, e / 2]])


@njit(cache=True, nogil=True)
def search_monoclinic(lines, base, zones, thirds, row, best, cells, top):
    """B from a further line, for every setting of every zone."""
    rising = np.argsort(lines[:, 0])
    cell = np.zeros(4)
    for z in range(zones.shape[0]):
        if zones[z, 0] <= 0.0:
            break
        for setting in _settings(zones[z, 0], zones[z, 1], zones[z, 2], row):
            a, c, d = setting
            if a < LOWEST or c < LOWEST:
                continue
            for f in range(base.size):
                for u in range(thirds.shape[0]):
                    h, k, l = thirds[u, 0], thirds[u, 1], thirds[u, 2]
                    b = (base[f] - h * h * a - l * l * c - h * l * d) / (k * k)
                    if LOWEST < b < 0.3:
                        cell[0], cell[1], cell[2], cell[3] = a, b, c, d
                        top = _keep(lines, rising, cell, row, row + 1, best, cells, top)
    return top


@njit(cache=True, nogil=True)
def search_boxes(lines, strong, codes, needed, first, last, best, cells, top):
    """Orthorhombic cells from three of some strong lines, where they explain ``needed`` of the others, too.

    ``strong`` (n, 2): Q and σ_Q.
    """
    rising = np.argsort(lines[:, 0])
    cell = np.zeros(4)
    n = strong.shape[0]
    for t in range(codes.shape[0]):
        m = codes[t]
        for i in range(n):
            for j in range(i):
                for k in range(j):
                    inside = True
                    for p in range(3):
                        x = m[3 * p] * strong[i, 0] + m[3 * p + 1] * strong[j, 0] + m[3 * p + 2] * strong[k, 0]
                        cell[p] = x
                        if not LOWEST < x < 0.3:
                            inside = False
                            break
                    if not inside or cell[0] * cell[1] * cell[2] * _LARGEST[3] ** 2 < 1.0:
                        continue
                    missed, axes = 0, _falling(cell)
                    for l in range(n):
                        if l in (i, j, k) or missed > n - 3 - needed:
                            continue
                        missed += _distance(strong[l, 0], axes) > 3.0 * strong[l, 1]
                    if missed <= n - 3 - needed:
                        top = _keep(lines, rising, cell, first, last, best, cells, top)
    return top


@njit(cache=True, nogil=True)
def search_stacks(lines, base, zones, forms, row, best, cells, top):
    """Monoclinic cells from a zone hk0 and two lines of the layer hk1.

    ``forms`` (n, 2): h and k that the two may have, h of either sign.
    """
    rising = np.argsort(lines[:, 0])
    cell = np.zeros(4)
    n = base.size
    for z in range(zones.shape[0]):
        if zones[z, 0] <= 0.0:
            break
        for turned in range(2):
            a, b = (zones[z, 0], zones[z, 1]) if turned == 0 else (zones[z, 1], zones[z, 0])
            # another choice of c, or the cell reversed, has 0 ≤ D ≤ A; in a C cell c may move by 2 a* only
            limit = (2.02 if _CENTRING[row] == 3 else 1.01) * a
            for f in range(n):
                for u in range(forms.shape[0]):
                    h1 = forms[u, 0]
                    y = base[f] - h1 * h1 * a - forms[u, 1] ** 2 * b  # C + h1 D
                    for g in range(n):
                        for v in range(forms.shape[0]):
                            h2 = forms[v, 0]
                            if g == f or h2 <= h1:
                                continue
                            d = (base[g] - h2 * h2 * a - forms[v, 1] ** 2 * b - y) / (h2 - h1)
                            c = y - h1 * d
                            if d < 0.0 or d > limit or c < LOWEST or c > 0.3 or d * d > 1.6 * a * c:
                                continue
                            cell[0], cell[1], cell[2], cell[3] = a, b, c, d
                            top = _keep(lines, rising, cell, row, row + 1, best, cells, top)
    return top
