"""Compiled kernels of `sieve`: how well the lines of a trial cell explain a whole profile, from tables made once a pattern.

The least-squares fit of intensities needs only correlations of the pattern with the profile of a line at each place, and of
two such profiles with each other. Both are tabulated, so that a cell costs its lines and a short banded problem, some tens of
microseconds, and its refinement a few times that.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .autoindex_kernels import FREE, allowed, design, expand

#: sweeps of the solution for non-negative intensities
_SWEEPS = 12
#: widths between a line and the nearest reflection that cannot have made it
_APART = 0.7
#: lines closer than this share of their width are one
_TOGETHER = 0.35


@njit(cache=True, nogil=True)
def tabulate(y, weight, first, second, ratio, width, eta, step, reach, span):
    """Tables of a pattern: correlation with the profile of a line at every point, its derivative, and of two profiles.

    Parameters
    ----------
    y, weight : (m,) intensity and 1/σ², 0 where not measured
    first : float, 2θ of the first point; ``second`` (m,) 2θ of Kα2 of a line at each point; ``ratio`` Kα2 over Kα1
    width, eta : (m,) full widths at half maximum in degrees, Lorentz fraction; ``step`` of the axis in degrees
    reach, span : widths that a profile extends, and points that two lines may be apart to touch

    Returns
    -------
    b, slope, curve : (m,) Σ W y P, Σ W y ∂P/∂x, Σ W (∂P/∂x)², x in points
    overlap : (m, span + 1) Σ W P P' with a line so many points farther
    """
    m = y.size
    longest = 0
    low, high = np.zeros(m, np.int64), np.zeros(m, np.int64)
    for c in range(m):
        x = first + step * c
        end = second[c] if ratio > 0 else x
        low[c] = max(int(np.floor((x - reach * width[c] - first) / step)), 0)
        high[c] = min(int(np.ceil((end + reach * width[c] - first) / step)) + 1, m)
        longest = max(longest, high[c] - low[c])
    value = np.zeros((m, longest))
    b, slope, curve = np.zeros(m), np.zeros(m), np.zeros(m)
    overlap = np.zeros((m, span + 1))
    ln16 = 4.0 * np.log(2.0)
    for c in range(m):
        w = width[c]
        for j in range(high[c] - low[c]):
            at = low[c] + j
            x = first + step * at
            total, change = 0.0, 0.0
            for part in range(2 if ratio > 0 else 1):
                centre, share = (first + step * c, 1.0) if part == 0 else (second[c], ratio)
                u = (x - centre) / w
                g, lor = np.exp(-ln16 * u * u), 1.0 / (1.0 + 4.0 * u * u)
                total += share * ((1.0 - eta) * g + eta * lor)
                change += share * ((1.0 - eta) * 2.0 * ln16 * g + eta * 8.0 * lor * lor) * u * step / w
            value[c, j] = total
            b[c] += weight[at] * y[at] * total
            slope[c] += weight[at] * y[at] * change
            curve[c] += weight[at] * change * change
    for c in range(m):
        for d in range(min(span, m - 1 - c) + 1):
            other = c + d
            begin, end = max(low[c], low[other]), min(high[c], high[other])
            total = 0.0
            for at in range(begin, end):
                total += weight[at] * value[c, at - low[c]] * value[other, at - low[other]]
            overlap[c, d] = total
    return b, slope, curve, overlap


@njit(cache=True, nogil=True)
def reflections(g, centring, bottom, top, q, index):
    """Reflections with ``bottom`` < Q < ``top``: fills q (k,) and index (k, 3), returns how many.

    One of each Friedel pair, and where the coefficients show that Q does not change with the order or signs of indices, one of
    those that coincide: cubic, tetragonal and orthorhombic cells, and cells on hexagonal axes.
    """
    c = g[2]
    u, v = 0.5 * g[4] / c, 0.5 * g[3] / c
    b = g[1] - 0.25 * g[3] * g[3] / c
    if b <= 0.0:
        return 0
    w = (0.5 * g[5] - 0.25 * g[3] * g[4] / c) / b
    a = g[0] - 0.25 * g[4] * g[4] / c - w * w * b
    if a <= 0.0:
        return 0
    plain = g[3] == 0.0 and g[5] == 0.0
    upright = plain and g[4] == 0.0
    square = upright and g[0] == g[1]
    cubic = square and g[0] == g[2]
    six = g[3] == 0.0 and g[4] == 0.0 and g[0] == g[1] and g[0] == g[5]
    n = 0
    h = 0
    while h * h * a <= top:
        rest = top - h * h * a
        half = np.sqrt(rest / b)
        first, last = int(np.ceil(-w * h - half)), int(np.floor(-w * h + half))
        if h == 0 or plain or six:
            first = max(first, 0)
        if square or six:
            last = min(last, h)
        for k in range(first, last + 1):
            left = rest - b * (k + w * h) ** 2
            root = np.sqrt(max(left, 0.0) / c)
            centre = -u * h - v * k
            low, high = int(np.ceil(centre - root)), int(np.floor(centre + root))
            if (h == 0 and k == 0) or upright or six or (h == 0 and plain):
                low = max(low, 1 if h == 0 and k == 0 else 0)
            if cubic:
                high = min(high, k)
            for l in range(low, high + 1):
                if not allowed(h, k, l, centring) and not (six and allowed(k, h, l, centring)):
                    continue
                value = h * h * g[0] + k * k * g[1] + l * l * c + k * l * g[3] + h * l * g[4] + h * k * g[5]
                if value <= bottom or value >= top:
                    continue
                if n == q.size:
                    return n + 1
                q[n] = value
                index[n, 0], index[n, 1], index[n, 2] = h, k, l
                n += 1
        h += 1
    return n


@njit(cache=True, nogil=True)
def _place(q, zero, scale, first, step):
    """Index on the axis (a fraction) of a line, and its derivative with respect to Q."""
    s = np.sqrt(q) * scale
    theta = np.arcsin(s)
    x = 2.0 * np.degrees(theta) + zero
    slope = np.degrees(scale * scale) / (s * np.sqrt(1.0 - s * s))
    return (x - first) / step, slope / step


@njit(cache=True, nogil=True)
def _gather(x, step_width, near, work):
    """Lines of sorted places, those together that are hardly apart: fills column 3 of ``work``, returns how many."""
    count, members, origin = 0, 0, -1e9
    for i in range(x.size):
        width = step_width[min(max(int(x[i]), 0), step_width.size - 1)]
        if x[i] - origin > _TOGETHER * width:
            origin = x[i]
            members = 0
            count += 1
            work[count - 1, 3] = 0.0
        near[i] = count - 1
        members += 1
        work[count - 1, 3] += (x[i] - work[count - 1, 3]) / members
    return count


@njit(cache=True, nogil=True)
def _look_up(count, tables, work):
    """Fills columns 0, 1, 2, 4 and 5 of ``work`` for the places in column 3."""
    b, slope, curve, overlap, _ = tables
    for i in range(count):
        p = work[i, 3]
        at = min(max(int(p), 0), b.size - 2)
        t = min(max(p - at, 0.0), 1.0)
        work[i, 5] = (1 - t) * b[at] + t * b[at + 1]
        work[i, 4] = (1 - t) * overlap[at, 0] + t * overlap[at + 1, 0] + 1e-9
        work[i, 1] = (1 - t) * slope[at] + t * slope[at + 1]
        work[i, 2] = (1 - t) * curve[at] + t * curve[at + 1]
        work[i, 0] = 0.0


@njit(cache=True, nogil=True, inline="always")
def _between(overlap, low, distance):
    """``Σ W P P'`` of a line at ``low`` and one so many points above it, and its derivative with respect to the distance."""
    at, e = min(max(int(low + 0.5), 0), overlap.shape[0] - 1), int(distance)
    change = overlap[at, e + 1] - overlap[at, e]
    return overlap[at, e] + (distance - e) * change, change


@njit(cache=True, nogil=True)
def _others(i, count, overlap, work):
    """What the other lines take from the correlation of line ``i``, and from its gradient with respect to the place."""
    span = overlap.shape[1] - 1
    taken, pull = 0.0, 0.0
    for way in (1, -1):
        j = i + way
        while 0 <= j < count:
            distance = way * (work[j, 3] - work[i, 3])
            if distance >= span:
                break
            if work[j, 0] > 0.0:
                value, change = _between(overlap, work[i if way > 0 else j, 3], distance)
                taken += work[j, 0] * value
                pull -= way * work[j, 0] * change
            j += way
    return taken, pull


@njit(cache=True, nogil=True)
def _solve(x, tables, near, work):
    """Non-negative intensities of lines at sorted places, by coordinate descent: gain, number of lines.

    ``work`` columns on return: 0 intensity, 1 gradient of the gain with respect to the place, 2 its curvature, 3 place, 4
    ``Σ W P²``, 5 correlation. ``near`` (n,): line that each reflection belongs to.
    """
    overlap, step_width = tables[3], tables[4]
    count = _gather(x, step_width, near, work)
    _look_up(count, tables, work)
    for sweep in range(_SWEEPS):
        change, size = 0.0, 0.0
        for turn in range(count):
            i = turn if sweep % 2 == 0 else count - 1 - turn
            new = max((work[i, 5] - _others(i, count, overlap, work)[0]) / work[i, 4], 0.0)
            change += abs(new - work[i, 0])
            size += new
            work[i, 0] = new
        if change < 0.01 * size:
            break
    gain = 0.0
    for i in range(count):
        gain += 0.5 * work[i, 5] * work[i, 0]
        work[i, 1] = work[i, 1] - _others(i, count, overlap, work)[1] if work[i, 0] > 0.0 else 0.0
    return gain, count


@njit(cache=True, nogil=True)
def explain(tables, axis, g, zero, centring, bounds, room):
    """Gain of a cell, number of its lines and of its reflections (0 where it has none or too many).

    ``axis``: λ/2, first 2θ, step; ``bounds``: Q of the lines looked at; ``room``: arrays to work in, see `sieve`.
    """
    q, index, x, order, near, work, rate = room
    n = reflections(g, centring, bounds[0], bounds[1], q, index)
    if n == 0 or n > q.size:
        return 0.0, 0, 0
    for i in range(n):
        x[i], rate[i] = _place(q[i], zero, axis[0], axis[1], axis[2])
    order[:n] = np.argsort(x[:n])
    gain, count = _solve(x[:n][order[:n]], tables, near, work)
    return gain, count, n


@njit(cache=True, nogil=True)
def _step(found, system, pull, axis, step_width, room, rows, members):
    """Gauss-Newton step of the free parameters and the zero shift, no line moved by more than 0.4 of its width.

    ``found``: numbers of reflections and lines; ``pull``: precision of the zero shift's prior, and its value.
    """
    n, count = found
    _, index, _, order, near, work, rate = room
    free = FREE[system]
    size = free + 1
    row = np.zeros(size)
    rows[:count] = 0.0
    members[:count] = 0.0
    for i in range(n):
        r = order[i]
        line = near[i]
        design(index[r, 0], index[r, 1], index[r, 2], system, row)
        for a in range(free):
            rows[line, a] += row[a] * rate[r]
        rows[line, free] += 1.0 / axis[2]
        members[line] += 1.0
    normal, right = np.zeros((size, size)), np.zeros(size)
    for i in range(count):
        strength = work[i, 0]
        if strength <= 0.0:
            continue
        weight = strength * strength * work[i, 2]
        for a in range(size):
            rows[i, a] /= members[i]
        for a in range(size):
            right[a] += strength * work[i, 1] * rows[i, a]
            for c in range(size):
                normal[a, c] += weight * rows[i, a] * rows[i, c]
    normal[free, free] += pull[0]
    right[free] -= pull[0] * pull[1]
    for a in range(size):
        normal[a, a] = normal[a, a] * (1.0 + 1e-6) + 1e-9
    move = np.linalg.solve(normal, right)
    far = 0.0
    for i in range(count):
        if work[i, 0] <= 0.0:
            continue
        shift = 0.0
        for a in range(size):
            shift += rows[i, a] * move[a]
        reach = step_width[min(max(int(work[i, 3]), 0), step_width.size - 1)]
        far = max(far, abs(shift) / reach)
    if far > 0.4:
        move *= 0.4 / far
    return move, far


@njit(cache=True, nogil=True)
def refine(tables, axis, g, zero, code, bounds, settings, room):
    """Cell and zero shift by Gauss-Newton steps on the tables: score, gain, metric, zero of the best round.

    The score is the gain over ``temper`` less what each line costs, ½ ln(1 + price Σ W P² / temper): the evidence of a
    linear model whose intensities are of the order √price. A step that lowers the score is tried again at 0.35 of its
    length. ``code``: system and centring; ``settings``: rounds, ``prior`` (standard deviation of the zero shift in degrees),
    price, temper and how many reflections a cell may have.
    """
    (rounds, prior, price, temper, _), system, centring = settings, code[0], code[1]
    work, step_width = room[5], tables[4]
    free = FREE[system]
    p, move = np.zeros(free), np.zeros(free + 1)
    rows, members = np.zeros((work.shape[0], free + 1)), np.zeros(work.shape[0])
    g = exact(g, system)
    best, best_gain, best_g, best_zero = -1e9, 0.0, g.copy(), zero
    for turn in range(rounds + 1):
        gain, count, n = explain(tables, axis, g, zero, centring, bounds, room)
        score = -1e9
        if n > 0:
            cost = 0.0
            for i in range(count):
                cost += 0.5 * np.log(1.0 + price * work[i, 4] / temper)
            score = gain / temper - cost - 0.5 * (zero / prior) ** 2
        elif turn == 0:
            break
        if score > best:
            small = turn > 0 and score < best + 0.05
            best, best_gain, best_zero = score, gain, zero
            best_g[:] = g
            if turn == rounds or small:
                break
            pull = (temper / (prior * prior), zero)
            move, far = _step((n, count), system, pull, axis, step_width, room, rows, members)
            if far < 0.003:
                break
        else:
            move *= 0.35
        _free_parameters(best_g, system, p)
        expand(p + move[:free], system, g)
        zero = best_zero + move[free]
        if abs(zero) > 2.5 * prior or not (g[0] > 1e-5 and g[1] > 1e-5 and g[2] > 1e-5):
            break
    return best, best_gain, best_g, best_zero


@njit(cache=True, nogil=True)
def _free_parameters(g, system, p):
    """The free parameters of six coefficients; `expand` reversed."""
    if system == 0:
        p[0] = g[0]
    elif system < 3:
        p[0], p[1] = g[0], g[2]
    else:
        p[0], p[1], p[2] = g[0], g[1], g[2]
        if system == 4:
            p[3] = g[4]
        elif system == 5:
            p[3], p[4], p[5] = g[3], g[4], g[5]


@njit(cache=True, nogil=True)
def exact(g, system):
    """The coefficients of a cell, those that its system makes equal or zero exactly so."""
    p, out = np.zeros(FREE[system]), np.zeros(6)
    _free_parameters(g, system, p)
    expand(p, system, out)
    return out


@njit(cache=True, nogil=True)
def refine_all(tables, axis, cells, zeros, codes, bounds, settings):
    """`refine` of many cells: scores, gains, cells, zeros; score -1e9 for those that cannot be judged.

    ``codes`` (n, ≥2): system and centring; ``bounds``: Q of the lines looked at; ``settings`` as in
    `refine`.
    """
    n, most = zeros.size, settings[4]
    room = (np.zeros(most), np.zeros((most, 3), np.int64), np.zeros(most), np.zeros(most, np.int64), np.zeros(most, np.int64),
            np.zeros((most, 6)), np.zeros(most))  # fmt: skip
    scores, gains, out, shifts = np.zeros(n), np.zeros(n), np.zeros((n, 6)), np.zeros(n)
    for i in range(n):
        scores[i], gains[i], out[i], shifts[i] = refine(
            tables, axis, cells[i], zeros[i], codes[i], bounds, settings, room
        )
    return scores, gains, out, shifts


@njit(cache=True, nogil=True)
def _with_foreign(n, places, worth, tables, settings, room, foreign):
    """Gain and score of ``n`` reflections at ``room``'s places together with lines that belong to no cell.

    ``places``: where such lines were seen, in points, sorted. Those apart from all reflections join the solution, and stay
    where their part of the gain exceeds ``worth``, the price of a line that nothing predicts. ``foreign`` (m,) returns which.
    """
    (_, x, order, near, work, _), (_, _, price, temper, _) = room[1:], settings
    step_width = tables[4]
    own = x[:n][order[:n]]
    for j in range(places.size):
        width = step_width[min(max(int(places[j]), 0), step_width.size - 1)]
        at = np.searchsorted(own, places[j])
        apart = (at == n or own[at] - places[j] > _APART * width) and (at == 0 or places[j] - own[at - 1] > _APART * width)
        foreign[j] = apart
    gain, cost = 0.0, 0.0
    for _ in range(3):
        both = np.sort(np.concatenate((own, places[foreign])))
        gain, count = _solve(both, tables, near, work)
        cost, dropped = 0.0, False
        for i in range(count):
            cost += 0.5 * np.log(1.0 + price * work[i, 4] / temper)
        for j in range(places.size):
            if not foreign[j]:
                continue
            i = near[np.searchsorted(both, places[j])]
            if 0.5 * work[i, 0] * work[i, 0] * work[i, 4] < temper * (worth + 0.5 * np.log(1.0 + price * work[i, 4] / temper)):
                foreign[j], dropped = False, True
        if not dropped:
            break
    return gain, gain / temper - cost - worth * foreign.sum()


@njit(cache=True, nogil=True)
def judge_all(tables, axis, cells, zeros, codes, bounds, settings, places, worth):
    """Cells as they are, foreign lines allowed at ``places`` (points, sorted): scores, gains.

    Arguments as in `refine_all`; score -1e9 for cells that cannot be judged.
    """
    n, most = zeros.size, settings[4]
    size = most + places.size
    room = (np.zeros(most), np.zeros((most, 3), np.int64), np.zeros(most), np.zeros(most, np.int64), np.zeros(size, np.int64),
            np.zeros((size, 6)), np.zeros(most))  # fmt: skip
    scores, gains = np.full(n, -1e9), np.zeros(n)
    foreign = np.zeros(places.size, np.bool_)
    for i in range(n):
        _, _, found = explain(tables, axis, exact(cells[i], codes[i][0]), zeros[i], codes[i][1], bounds, room)
        if found > 0:
            gains[i], scores[i] = _with_foreign(found, places, worth, tables, settings, room, foreign)
            scores[i] -= 0.5 * (zeros[i] / settings[1]) ** 2
    return scores, gains
