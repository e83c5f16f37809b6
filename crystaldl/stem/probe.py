"""The vacuum probe: its image, centre, radius and edge width, however it was obtained.

Axis 0 of every image is qx (rows) and axis 1 is qy (columns), in pixels, as in py4DSTEM.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..errors import DataError

MIN_RADIUS = 1.5  # px: below this a disk is a spot and has no edge to find


@dataclass(frozen=True)
class Probe:
    """An image of the probe over vacuum and what was measured from it.

    Attributes
    ----------
    image : (H, W) float64, read-only
        Background removed, plateau near 1, centred on ``centre`` (never wrapped around the corners).
    centre : (float, float)
        Centre of the disk in the image, (qx, qy), px.
    radius : float
        Radius of the disk at half height, px (that of the circle of equal area).
    edge : float
        Width of the edge, px: the standard deviation of the radial derivative (0.3 for an ideal aperture).
    source : str
        Where it came from, in words.
    """

    image: np.ndarray
    centre: tuple[float, float]
    radius: float
    edge: float
    source: str = "array"

    @property
    def shape(self) -> tuple[int, int]:
        return self.image.shape

    @classmethod
    def from_array(cls, image, source: str = "array") -> Probe:
        """Measure a probe image (H, W); the disk may lie anywhere, also around the corners (array origin).

        NaN marks pixels that were not measured; they are filled from their neighbours.

        Raises
        ------
        DataError
            The image is not two-dimensional and real, is empty, or shows no compact disk.
        """
        image = _checked(image)
        image, shift = _unwrapped(image)
        image = _background_removed(image)
        for _ in range(2):  # the plateau is known once the disk is
            centre, radius, _ = _measured(image)
            image = image / _plateau(image, centre, radius)
        centre, radius, edge = _measured(image)
        if radius < MIN_RADIUS:
            raise DataError(
                f"probe has a disk of {radius:.2g} px radius; expected at least {MIN_RADIUS} px (a converged beam)."
            )
        margin = min(centre[0], centre[1], image.shape[0] - 1 - centre[0], image.shape[1] - 1 - centre[1])
        if margin < radius:
            raise DataError(
                f"probe has a disk of {radius:.3g} px radius at {centre[0]:.1f}, {centre[1]:.1f}, cut by the edge of "
                f"its {image.shape[0]} × {image.shape[1]} px image; expected a whole disk."
            )
        image = _trimmed(image, centre, radius, edge)
        image.flags.writeable = False
        return cls(image, centre, radius, edge, source if not any(shift) else f"{source}, unwrapped from the corners")

    @classmethod
    def from_py4dstem(cls, probe) -> Probe:
        """Of a ``py4DSTEM.Probe`` (or anything with its 2-D image in ``.probe``)."""
        return cls.from_array(probe.probe, "py4DSTEM Probe")

    @classmethod
    def from_patterns(cls, patterns) -> Probe:
        """Find the probe in scan patterns (B, H, W): a vacuum pattern where there is one, else the central disk.

        A pattern counts as vacuum when one compact disk holds more than 95 % of what rises above its background. The
        central disk of a specimen is uneven, so the disk is then rebuilt as an even one with the measured outline.
        ``source`` says which of the two it was.
        """
        stack = np.asarray(patterns)
        if stack.ndim != 3 or stack.size == 0:
            raise DataError(f"patterns has the shape {stack.shape}; expected (B, H, W) with at least one pattern.")
        share = np.array([_disk_share(p) for p in stack])
        vacuum = share > 0.95
        if vacuum.any():
            brightest = np.flatnonzero(vacuum)[np.argmax([np.nansum(stack[i]) for i in np.flatnonzero(vacuum)])]
            return cls.from_array(_mean_aligned(stack[vacuum], stack[brightest]), f"{int(vacuum.sum())} vacuum patterns")
        mean = _mean_aligned(stack, None)
        return cls._from_central_disk(mean)

    @classmethod
    def _from_central_disk(cls, mean: np.ndarray) -> Probe:
        mean = np.maximum(mean - np.percentile(mean, 25), 0)
        smooth = ndimage.gaussian_filter(mean, 1.0)
        start = np.unravel_index(np.argmax(smooth), mean.shape)
        level = 0.5 * np.percentile(smooth[smooth > 0.3 * smooth.max()], 60)
        labels, _ = ndimage.label(smooth > level)
        region = ndimage.binary_fill_holes(labels == labels[start])
        area = float(region.sum())
        centre = ndimage.center_of_mass(region)
        radius = np.sqrt(area / np.pi)
        y, x = np.indices(mean.shape)
        reach = np.hypot(y - centre[0], x - centre[1])[region].max()
        if radius < MIN_RADIUS or reach > 1.6 * radius + 1.5:
            raise DataError(
                "probe cannot be found in the patterns: the brightest spot is no round disk; expected probe as an array."
            )
        return cls.synthetic(radius, mean.shape, centre=centre, source="central disk of the mean pattern")

    @classmethod
    def synthetic(cls, radius: float, shape, *, edge: float = 0.5, centre=None, source: str = "synthetic") -> Probe:
        """An evenly filled disk with an edge of the given standard deviation (px), by default in the middle."""
        shape = (int(shape[0]), int(shape[1]))
        centre = (shape[0] // 2, shape[1] // 2) if centre is None else (float(centre[0]), float(centre[1]))
        y, x = np.indices(shape)
        r = np.hypot(y - centre[0], x - centre[1])
        from scipy.special import ndtr

        return cls.from_array(ndtr((radius - r) / max(edge, 1e-3)), source)

    @classmethod
    def coerce(cls, probe) -> Probe:
        """A `Probe` from a `Probe`, an array or a ``py4DSTEM.Probe``."""
        if isinstance(probe, cls):
            return probe
        if hasattr(probe, "probe"):
            return cls.from_py4dstem(probe)
        return cls.from_array(probe)

    def patch(self, half: int) -> np.ndarray:
        """The probe centred on the middle pixel of a (2 half + 1)² array: cubic B-spline interpolation, 0 outside."""
        offset = np.arange(-half, half + 1)
        grid = np.meshgrid(self.centre[0] + offset, self.centre[1] + offset, indexing="ij")
        return ndimage.map_coordinates(self.image, grid, order=3, mode="constant", cval=0.0)

    def fine_patch(self, half: int, fine: int) -> np.ndarray:
        """The same at steps of 1/``fine`` px, (2 · fine · half + 1)², sharp edges as they run between the pixels."""
        from .peaks.between import fine_patch

        return fine_patch(self.image, self.centre, self.radius, self.edge, half, fine)


def _checked(image) -> np.ndarray:
    try:
        array = np.array(image, dtype=float)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise DataError(f"probe is a {type(image).__name__}; expected a 2-D array of real numbers.") from None
    if array.ndim != 2 or min(array.shape) < 8:
        raise DataError(f"probe has the shape {array.shape}; expected (H, W), at least 8 px each way.")
    bad = ~np.isfinite(array)
    if bad.all():
        raise DataError("probe holds no finite value; expected an image of the probe.")
    if bad.any():
        nearest = ndimage.distance_transform_edt(bad, return_distances=False, return_indices=True)
        array = array[tuple(nearest)]
    if not array.max() > array.min():
        raise DataError(f"probe is constant ({array.max():.4g} everywhere); expected an image of the probe.")
    return array


def _unwrapped(image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Roll the image so that the disk does not cross its edges; rolls only where it must."""
    weight = np.maximum(image - np.percentile(image, 90 if image.size > 4096 else 50), 0.0)
    weight[weight < 0.3 * np.percentile(weight, 99.9)] = 0.0
    if not weight.sum() > 0:
        return image, (0, 0)
    shift = []
    for axis in (0, 1):
        n = image.shape[axis]
        line = weight.sum(1 - axis)
        # circular mean: where the disk is, wherever the array was cut
        position = np.angle((line * np.exp(2j * np.pi * np.arange(n) / n)).sum()) * n / (2 * np.pi) % n
        crosses = line[0] > 0.2 * line.max() and line[-1] > 0.2 * line.max()
        shift.append(int(round(n // 2 - position)) if crosses else 0)
    return np.roll(image, shift, (0, 1)), (shift[0], shift[1])


def _background_removed(image: np.ndarray) -> np.ndarray:
    """Background taken off and the plateau scaled to 1."""
    base = np.median(image[image < 0.5 * (np.median(image) + image.max())])
    image = image - base
    smooth = ndimage.median_filter(image, 3)
    bright = smooth[smooth > 0.5 * smooth.max()]
    return image / np.median(bright)


def _measured(image: np.ndarray) -> tuple[tuple[float, float], float, float]:
    """Centre, radius and edge width of a disk with plateau 1."""
    labels, count = ndimage.label(ndimage.median_filter(image, 3) > 0.4)
    if count == 0:
        raise DataError("probe shows no disk; expected an image of the probe over vacuum.")
    sizes = ndimage.sum_labels(np.ones_like(image), labels, np.arange(1, count + 1))
    region = ndimage.binary_fill_holes(labels == 1 + int(np.argmax(sizes)))
    around = ndimage.binary_dilation(region, iterations=3)
    filled = np.where(ndimage.binary_erosion(region, iterations=2), 1.0, np.clip(image, 0, 1)) * around
    y, x = np.indices(image.shape)
    total = filled.sum()
    centre = (float((filled * y).sum() / total), float((filled * x).sum() / total))
    radius = float(np.sqrt(total / np.pi))
    r = np.hypot(y - centre[0], x - centre[1])
    ring = np.abs(r - radius) < max(2.5, 0.4 * radius)
    edge = _edge_width(r[ring], np.clip(image[ring], -0.2, 1.3), radius)
    # the area under a soft edge of standard deviation e is π (r² + e²)
    return centre, float(np.sqrt(max(radius**2 - edge**2, 0.25 * radius**2))), edge


def _edge_width(r: np.ndarray, height: np.ndarray, radius: float) -> float:
    """Standard deviation of an error-function edge fitted to heights at distances r, px."""
    from scipy.optimize import least_squares
    from scipy.special import ndtr

    def miss(p):
        return p[2] * ndtr((p[0] - r) / np.exp(p[1])) - height

    bounds = ([0.5 * radius, np.log(0.2), 0.5], [1.5 * radius, np.log(max(3.0, 0.5 * radius)), 1.5])
    return float(np.exp(least_squares(miss, [radius, np.log(0.7), 1.0], bounds=bounds, loss="soft_l1", f_scale=0.1).x[1]))


def _plateau(image: np.ndarray, centre, radius: float) -> float:
    """Mean height of the inner part of a disk."""
    y, x = np.indices(image.shape)
    inside = np.hypot(y - centre[0], x - centre[1]) <= max(0.5 * radius, 1.0)
    return float(max(image[inside].mean(), 0.3))


def _trimmed(image: np.ndarray, centre, radius: float, edge: float) -> np.ndarray:
    """Set to zero what lies beyond the disk's own edge; a soft end keeps the edge as it was measured."""
    y, x = np.indices(image.shape)
    r = np.hypot(y - centre[0], x - centre[1])
    reach = radius + 3 * edge + 1.0
    return image * np.clip(reach + 1.0 - r, 0, 1)


def _disk_share(pattern: np.ndarray) -> float:
    """Share of the counts above the background that lies in one round region around the brightest spot."""
    p = np.nan_to_num(np.asarray(pattern, dtype=float), nan=0.0)
    p = np.maximum(p - np.median(p), 0)
    total = p.sum()
    smooth = ndimage.uniform_filter(p, 3)
    if not total > 0:
        return 0.0
    region, _ = ndimage.label(smooth > 0.2 * smooth.max())
    core = region == region[np.unravel_index(np.argmax(smooth), p.shape)]
    return float(p[ndimage.binary_dilation(core, iterations=2)].sum() / total)


def _mean_aligned(stack: np.ndarray, first: np.ndarray | None) -> np.ndarray:
    """Mean of patterns shifted by whole pixels onto one another (the middle of the direct beam, `_beam_centre`)."""
    total = np.zeros(stack.shape[1:])
    reference = None
    for pattern in stack if first is None else [first, *stack]:
        p = np.nan_to_num(np.asarray(pattern, dtype=float), nan=0.0)
        q = ndimage.gaussian_filter(np.maximum(p - np.median(p), 0), 1.0)
        if not q.max() > 0:
            continue
        centre = _beam_centre(q, reference)
        reference = centre if reference is None else reference
        total += np.roll(p, np.round(reference - centre).astype(int), (0, 1))
    if not total.any():
        raise DataError("patterns are all zero; expected measured patterns to find the probe in.")
    return total


def _beam_centre(image: np.ndarray, near: np.ndarray | None) -> np.ndarray:
    """Centroid of the bright region nearest to ``near``, or else to the centroid of all that is bright.

    On a saturated detector many disks are as bright as the direct beam: their common centroid wanders with each of them.
    """
    labels, count = ndimage.label(image > 0.5 * image.max())
    number = np.arange(1, count + 1)
    sums = ndimage.sum_labels(image, labels, number)
    centres = np.array(ndimage.center_of_mass(image, labels, number))
    large = sums > 0.3 * sums.max()
    near = (sums[:, None] * centres).sum(0) / sums.sum() if near is None else near
    return centres[large][np.linalg.norm(centres[large] - near, axis=1).argmin()]
