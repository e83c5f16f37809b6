"""How many patterns a second `classify_patterns` does, preparation included; the peers side by side.

Run with ``make bench``.
"""

from __future__ import annotations

import numpy as np
import pytest

import crystaldl as cdl
from crystaldl.examples import examples, load_example
from crystaldl.models.registry import available

COUNT = 1000
PROMISED = {"network": 200, "auto": 4}  # patterns a second on two cores
METHODS = ["network", "npcnn", "auto"] if available("powder") else []


@pytest.fixture(scope="module")
def patterns():
    """Samples with fresh counting noise, so that no two are alike."""
    rng = np.random.default_rng(0)
    samples = [load_example(name) for name in examples("powder")]
    chosen = (samples[i % len(samples)] for i in range(COUNT))
    return [cdl.PowderPattern(p.two_theta, rng.poisson(p.intensity), p.radiation) for p in chosen]


@pytest.mark.skipif(not METHODS, reason="the shipped models are not part of this installation")
@pytest.mark.parametrize("method", METHODS)
def test_patterns_a_second(benchmark, patterns, method):
    torch = pytest.importorskip("torch")
    patterns = patterns if method != "auto" else patterns[:100]  # the search takes its time
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    try:
        cdl.classify_patterns(patterns[:64], method=method, device="cpu", progress=False)  # load and warm up
        classify = lambda: cdl.classify_patterns(patterns, method=method, device="cpu", progress=False)  # noqa: E731
        found = benchmark.pedantic(classify, rounds=1 if method == "auto" else 3, iterations=1)
    finally:
        torch.set_num_threads(before)
    rate = len(patterns) / benchmark.stats.stats.min
    benchmark.extra_info["patterns_per_second"] = rate
    assert len(found) == len(patterns)
    assert rate >= PROMISED.get(method, 0)
