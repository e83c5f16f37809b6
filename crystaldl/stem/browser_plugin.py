"""Plugin of py4D-browser: the Bragg disks of the pattern that is shown, for tuning by eye.

The browser (1.3 or later) makes one object of the class with its main window and a menu of its own. The plugin reads the scan
and the selection through the window's ``datacube`` and ``get_virtual_image_detector`` and shows what it finds in the result
view: the pattern, square-root scaled, with a circle of the probe's radius around each disk.
"""

from __future__ import annotations

import logging

import numpy as np

from ..errors import CrystaldlError, DataError

log = logging.getLogger(__name__)

ACTIONS = {"fcunet": "Disks of this pattern (network)", "correlation": "Disks of this pattern (correlation)"}
MESSAGE_TIME = 10_000  # ms
RING = 1.2  # value of the circles; the pattern ends at 1
PALE = 0.6  # of those around disks of no confidence


class BraggDiskPlugin:
    """The menu entries and what they do.

    Parameters
    ----------
    parent : the browser's main window
    plugin_menu : QMenu, Plugins > Bragg disks
    """

    plugin_id = "crystaldl.bragg_disks"
    display_name = "Bragg disks (crystaldl)"
    uses_plugin_menu = True

    def __init__(self, parent, plugin_menu=None, **_):
        self.parent = parent
        self._known: tuple = (None, None)
        self.actions = []  # Qt lets go of what nobody holds
        for method, text in ACTIONS.items():
            action = plugin_menu.addAction(text)
            action.triggered.connect(lambda *_, method=method: self.run(method))
            self.actions.append(action)

    def close(self) -> None:
        """Let go of the window and its scan."""
        self.parent, self._known = None, (None, None)

    def run(self, method: str) -> None:
        """Find the disks of the shown pattern and show them; what goes wrong is said in the status bar."""
        try:
            pattern, where = shown_pattern(self.parent)
            probe = self._probe()
            disks = _find(pattern, probe, method)
        except (CrystaldlError, ValueError, TypeError) as error:
            log.warning("%s", error)
            self._say(str(error))
            return
        title = f"{len(disks)} disks, {method}, pattern {where}"
        self.parent.set_result_image(encircled(pattern, disks, probe.radius), reset=True, title=title)
        self._say(f"{title}; probe: {probe.source}, radius {probe.radius:.2f} px")

    def _probe(self):
        """The probe of the scan, measured once a scan."""
        cube, probe = self._known
        if cube is not self.parent.datacube:
            from .scan import sample_patterns
            from .vacuum import probe_from_scan

            cube = self.parent.datacube
            probe = probe_from_scan(sample_patterns(cube.data))
            self._known = (cube, probe)
        return probe

    def _say(self, text: str) -> None:
        self.parent.statusBar().showMessage(text, MESSAGE_TIME)


def shown_pattern(window) -> tuple[np.ndarray, str]:
    """The pattern (Qx, Qy) of the selected position, or the sum over the selected rectangle, and where that is.

    Raises
    ------
    DataError
        No scan is loaded, or nothing is selected.
    """
    cube = getattr(window, "datacube", None)
    if cube is None:
        raise DataError("no scan is loaded in the browser; expected one before disks are looked for.")
    detector = window.get_virtual_image_detector()
    if "point" in detector:
        rx, ry = (int(i) for i in detector["point"])
        return np.asarray(cube.data[rx, ry], dtype=float), f"({rx}, {ry})"
    rows, columns = detector["slice"]
    block = np.asarray(cube.data[rows, columns], dtype=float)
    if block.size == 0:
        raise DataError("the selection in the browser is empty; expected a position or a rectangle on the scan.")
    return block.sum((0, 1)), f"({rows.start}:{rows.stop}, {columns.start}:{columns.stop})"


def _find(pattern: np.ndarray, probe, method: str):
    from .disks import find_disks

    return find_disks(pattern, probe, method=method)


def encircled(pattern: np.ndarray, disks, radius: float) -> np.ndarray:
    """Image (Qx, Qy): the pattern from 0 to 1, square-root scaled, with circles of value up to `RING` around the disks."""
    low, high = np.nanpercentile(pattern, [1, 99.8])
    image = np.sqrt(np.clip((np.nan_to_num(pattern, nan=low) - low) / max(high - low, 1e-12), 0, 1))
    angle = np.linspace(0, 2 * np.pi, max(16, int(np.ceil(8 * radius))), endpoint=False)
    circle = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    at = np.rint(disks.positions[:, None] + circle).astype(int)
    inside = ((at >= 0) & (at < image.shape)).all(2)
    value = np.broadcast_to((RING * (PALE + (1 - PALE) * disks.confidence))[:, None], inside.shape)
    image[tuple(at[inside].T)] = value[inside]
    return image
