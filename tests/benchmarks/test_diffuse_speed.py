"""Speed of the separation of diffuse scattering: the default, the plain least squares and the published networks side by side.

``make bench``, or ``pytest tests/benchmarks/test_diffuse_speed.py``; two threads, as promised. The ratios are printed at the end.
"""

from __future__ import annotations

import sys

import pytest
import torch

from crystaldl.diffuse.corruption import Corruption
from crystaldl.diffuse.network import COMPACT_WIDTH, PUBLISHED_WIDTH, SIDE, DSFUNet
from crystaldl.diffuse.recipe.evaluate import NETWORKS, SEED, evaluation_stream, methods_at_hand
from crystaldl.diffuse.recipe.evaluate_scores import plane_volume, simulated_volume
from crystaldl.diffuse.separate import separate
from crystaldl.diffuse.simulate import simulate_planes

PROMISED = {"auto": 3.0, "volume": 120.0}   # seconds on two cores
THREADS = 2
taken: dict[str, float] = {}


@pytest.fixture(scope="module", autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(min(THREADS, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def ratios(request):
    """Prints what was measured, relative to the pair of published networks."""
    yield
    if not taken:
        return
    peer = taken.get(f"networks, width {PUBLISHED_WIDTH}")
    lines = [f"{name}: {t:.2f} s" + (f", {t / peer:.2f} × the published networks" if peer else "") for name, t in taken.items()]
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def plane():
    """A masked plane of 256², Poisson 1000, of a molecule that training does not see."""
    stream = evaluation_stream()
    spec = stream.specs(0, 1)[0]
    batch = simulate_planes([spec], Corruption(counts=1000.0, masks="procedural"), size=SIDE, seed=SEED)
    return plane_volume(spec, batch, 0)


def measure(benchmark, name, function, rounds):
    benchmark.group = "volume of 101³" if name == "volume" else "plane of 256²"
    result = benchmark.pedantic(function, rounds=rounds, iterations=1)
    taken[name] = benchmark.extra_info["seconds"] = benchmark.stats.stats.min
    return result


@pytest.mark.parametrize("width", [PUBLISHED_WIDTH, COMPACT_WIDTH])
def test_networks_alone(benchmark, width):
    net, x = DSFUNet(width).eval(), torch.zeros(1, 1, SIDE, SIDE)
    with torch.no_grad():
        net(x)
        measure(benchmark, f"networks, width {width}", lambda: net(x), 5)


@pytest.mark.parametrize("method", methods_at_hand())
def test_separation_of_a_plane(benchmark, plane, method):
    run = lambda: separate(plane, method=method, device="cpu", progress=False)  # noqa: E731
    if method in NETWORKS:
        run()                                   # weights are read once
    parts = measure(benchmark, method, run, 2)
    assert parts.sro.shape == plane.shape
    assert taken[method] <= PROMISED.get(method, float("inf"))


def test_separation_of_a_volume(benchmark):
    volume, _ = simulated_volume(101)
    parts = measure(benchmark, "volume", lambda: separate(volume, device="cpu", progress=False), 1)
    assert parts.sro.shape == volume.shape
    assert taken["volume"] <= PROMISED["volume"]
