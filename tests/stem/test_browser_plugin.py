"""The py4D-browser plugin: found the way the browser looks for plugins, and run on a window that only pretends."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from crystaldl.stem import browser, browser_plugin
from crystaldl.stem.browser_plugin import ACTIONS, RING, BraggDiskPlugin, shown_pattern


class Signal:
    def __init__(self):
        self.slots = []

    def connect(self, slot):
        self.slots.append(slot)

    def emit(self, *arguments):
        for slot in self.slots:
            slot(*arguments)


class Menu:
    def __init__(self):
        self.actions = {}

    def addAction(self, text):  # noqa: N802 (Qt's name)
        self.actions[text] = SimpleNamespace(triggered=Signal())
        return self.actions[text]


class Window:
    """What the plugin may use of the browser's main window."""

    def __init__(self, data=None, **detector):
        self.datacube = None if data is None else SimpleNamespace(data=data)
        self.detector, self.messages, self.shown = detector, [], []

    def get_virtual_image_detector(self):
        return self.detector

    def set_result_image(self, image, reset=False, pixel_size=1.0, pixel_units="", title=""):
        self.shown.append((image, title))

    def statusBar(self):  # noqa: N802 (Qt's name)
        return SimpleNamespace(showMessage=lambda text, time: self.messages.append(text))


@pytest.fixture(scope="module")
def scan(draw):
    """2 × 2 patterns; the first is vacuum."""
    patterns, pattern, centres = draw(4, shape=(96, 96), counts=5000, background=0.0, seed=3)
    y, x = np.indices((96, 96))
    patterns[0] = np.random.default_rng(0).poisson(2e3 * (np.hypot(y - 48, x - 48) < 6))
    return patterns.reshape(2, 2, 96, 96), centres[pattern == 3]


def click(window, text):
    menu = Menu()
    plugin = BraggDiskPlugin(parent=window, plugin_menu=menu, plugin_action=None)
    menu.actions[text].triggered.emit(False)
    return plugin


@pytest.mark.parametrize("method", list(ACTIONS))
def test_disks_of_the_shown_pattern(scan, method):
    data, centres = scan
    window = Window(data, point=[1, 1])
    click(window, ACTIONS[method])
    (image, title), (message,) = window.shown[0], window.messages
    assert title.startswith(f"{len(centres)} disks, {method}, pattern (1, 1)") and "vacuum" in message
    assert image.shape == (96, 96) and np.isfinite(image).all() and image.min() >= 0 and image.max() <= RING
    # circles of the probe's radius about the true centres, and nowhere else
    ring = np.argwhere(image > 1.0)
    distance = np.linalg.norm(ring[:, None] - centres, axis=2).min(1)
    assert len(ring) > 20 * len(centres) and np.abs(distance - 6).max() < 1.2


def test_a_rectangle_is_summed_and_the_probe_is_measured_once(scan, monkeypatch):
    data, _ = scan
    pattern, where = shown_pattern(Window(data, slice=[slice(0, 2), slice(1, 2)]))
    assert np.array_equal(pattern, data[:, 1].sum(0)) and where == "(0:2, 1:2)"
    from crystaldl.stem import vacuum

    calls = []
    real = vacuum.probe_from_scan
    monkeypatch.setattr(vacuum, "probe_from_scan", lambda patterns: calls.append(1) or real(patterns))
    window = Window(data, slice=[slice(0, 2), slice(1, 2)])
    plugin = click(window, ACTIONS["correlation"])
    plugin.run("correlation")
    assert len(calls) == 1 and len(window.shown) == 2
    window.datacube = SimpleNamespace(data=data)  # another scan
    plugin.run("correlation")
    assert len(calls) == 2
    plugin.close()
    assert plugin.parent is None


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (Window(), "no scan is loaded"),
        (Window(np.zeros((2, 2, 64, 64)), point=[0, 0]), "probe='auto' found none"),
        (Window(np.zeros((2, 2, 64, 64)), slice=[slice(1, 1), slice(0, 2)]), "selection in the browser is empty"),
    ],
)
def test_trouble_is_told_in_the_status_bar(window, message):
    click(window, ACTIONS["correlation"])
    assert not window.shown and len(window.messages) == 1 and message in window.messages[0]


def test_the_browser_finds_it(tmp_path, monkeypatch):
    """As py4D-browser does: modules of the namespace package, classes with a plugin_id."""
    folder = tmp_path / "py4d_browser_plugin" / "crystaldl"
    shutil.copytree(Path(browser.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.partition(".")[0] == "py4d_browser_plugin"]:
        monkeypatch.delitem(sys.modules, name)
    package = importlib.import_module("py4d_browser_plugin")
    names = [m.name for m in pkgutil.iter_modules(package.__path__)]
    assert "crystaldl" in names
    module = importlib.import_module("py4d_browser_plugin.crystaldl")
    found = [c for _, c in inspect.getmembers(module, inspect.isclass) if getattr(c, "plugin_id", None)]
    assert found == [browser_plugin.BraggDiskPlugin]
    assert found[0].uses_plugin_menu and "Bragg" in found[0].display_name
    sys.modules.pop("py4d_browser_plugin.crystaldl"), sys.modules.pop("py4d_browser_plugin")
