"""Fourier sums between pixels and direct space against the sums written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from crystaldl.diffuse.factorise.columns import SparseColumns
from crystaldl.diffuse.factorise.folding import Fold, Unfolded, fold_of
from crystaldl.diffuse.factorise.fourier import FourierGrid, gram, project
from crystaldl.diffuse.factorise.shear import _gathered, _spread, make_shear
from crystaldl.diffuse.factorise.spectrum import read_half_spectrum, read_spectrum

ALIGNED = {2: np.diag([1.0, 0.5]), 3: np.diag([1.0, 0.5, 2.0])}
OBLIQUE = {2: np.array([[0.9, 0.31], [-0.22, 0.6]]), 3: np.array([[0.9, 0.31, 0.1], [-0.22, 0.6, -0.15], [0.05, 0.3, 1.1]])}


def grid_of(to_lattice):
    """Uneven lengths, axes that are not centred, divisions that differ."""
    ndim = len(to_lattice)
    sizes, starts, steps = (37, 30, 12)[:ndim], (-2.3, -1.9, -0.7)[:ndim], (0.113, 0.157, 0.21)[:ndim]
    axes = tuple(s + d * torch.arange(n, dtype=torch.float64) for n, s, d in zip(sizes, starts, steps, strict=True))
    return FourierGrid(axes, torch.as_tensor(to_lattice), (9, 6, 4)[:ndim])


def phases(grid, index):
    """2π r·u of every pixel and vector, (pixels, n), from nothing but the definition."""
    x = np.stack(np.meshgrid(*(np.array(a) for a in grid.axes), indexing="ij"), -1).reshape(-1, grid.ndim)
    return 2 * math.pi * (x @ np.array(grid.to_lattice)) @ (np.asarray(index) / np.array(grid.divisions)).T


def random_vectors(grid, n, seed, most=4):
    rng = np.random.default_rng(seed)
    index = torch.as_tensor(rng.integers(-most, most + 1, (n, grid.ndim)))
    return index, torch.as_tensor(rng.random(n) < 0.5)


@pytest.fixture(params=[(kind, ndim) for kind in ("aligned", "oblique") for ndim in (2, 3)], ids=lambda p: f"{p[0]}-{p[1]}d")
def grid(request):
    kind, ndim = request.param
    made = grid_of((ALIGNED if kind == "aligned" else OBLIQUE)[ndim])
    assert made.aligned == (kind == "aligned")
    return made


@pytest.mark.parametrize("stride", [1, 2])
def test_moments_are_the_sums(grid, stride):
    reach, step = (4, 3, 2)[: grid.ndim], (stride,) * grid.ndim
    weight = torch.as_tensor(np.random.default_rng(1).normal(size=(2, *grid.shape)))
    found = grid.moments(weight, reach, step).numpy()
    assert found.shape == (2, *(2 * r + 1 for r in reach))
    index = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), -1).reshape(-1, grid.ndim) * stride
    expected = weight.numpy().reshape(2, -1) @ np.exp(1j * phases(grid, index))
    assert np.abs(found.reshape(2, -1) - expected).max() < 1e-7 * np.abs(weight.numpy()).sum()
    middle = tuple(reach)
    assert found[(0, *middle)] == pytest.approx(weight[0].sum().item(), abs=1e-7 * weight[0].abs().sum().item())


def test_high_frequencies_beyond_a_cycle_a_pixel():
    """The Kaiser-Bessel transform folds frequencies; the sums do not care."""
    grid = grid_of(OBLIQUE[2])
    weight = torch.as_tensor(np.random.default_rng(2).random(grid.shape))
    reach = (40, 30)
    found = grid.moments(weight, reach).numpy().reshape(-1)
    index = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), -1).reshape(-1, 2)
    assert np.abs(found - weight.numpy().reshape(-1) @ np.exp(1j * phases(grid, index))).max() < 1e-7 * weight.sum().item()


@pytest.mark.parametrize("shape", [(37, 30), (30, 41), (24, 24)])
def test_sums_at_any_frequency(shape):
    """One FFT read at the vectors against the definition; odd and even numbers of pixels."""
    rng = np.random.default_rng(7)
    weight = rng.normal(size=shape)
    cycles, origin = np.array([[0.0174, 0.0062], [-0.0125, 0.0107]]), np.array([0.013, -0.021])
    index = rng.integers(-90, 91, (60, 2))
    x, y = np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij")
    turns = np.multiply.outer(x, index @ cycles[0]) + np.multiply.outer(y, index @ cycles[1]) + index @ origin
    expected = weight.ravel() @ np.exp(2j * np.pi * turns.reshape(-1, 60))
    read = read_spectrum(torch.as_tensor(weight), index, cycles, origin)
    assert np.abs(read - expected).max() < 1e-10 * np.abs(weight).sum()


def test_only_what_is_wanted_is_read():
    grid = grid_of(OBLIQUE[2])
    weight, reach = torch.as_tensor(np.random.default_rng(8).random(grid.shape)), (70, 60)
    wanted = torch.as_tensor(np.random.default_rng(9).random((141, 121)) < 0.3)
    wanted |= wanted.flip(0, 1)
    some, every = grid.moments(weight, reach, wanted=wanted.flatten()), grid.moments(weight, reach)
    assert torch.equal(some, torch.where(wanted, every, torch.zeros_like(every)))


def test_projection_of_products(grid):
    """Weights times a common factor, the vectors in units of a stride."""
    functions, stride = random_vectors(grid, 40, 10, most=3), (2,) * grid.ndim
    reach = tuple(int(v) for v in functions[0].abs().amax(0))
    rng = np.random.default_rng(11)
    weight, by = torch.as_tensor(rng.normal(size=(2, *grid.shape))), torch.as_tensor(rng.normal(size=grid.shape))
    weight[1, ::2] = 0.0
    angle = phases(grid, functions[0] * 2)
    expected = (weight * by).numpy().reshape(2, -1) @ np.where(functions[1].numpy(), np.sin(angle), np.cos(angle))
    found = grid.project(weight, functions, reach, stride, by=by).numpy()
    assert np.abs(found - expected).max() < 1e-7 * weight.abs().sum().item()
    found = grid.project(weight * by, functions, reach, stride).numpy()
    assert np.abs(found - expected).max() < 1e-7 * weight.abs().sum().item()


@pytest.mark.parametrize("to_lattice", [OBLIQUE[2], OBLIQUE[2].T * 3.0, np.array([[0.2, 2.9], [3.1, 0.1]])])
def test_shear_on_the_processor_and_elsewhere(to_lattice):
    """The compiled loops do what the tensor operations of other devices do."""
    grid = grid_of(to_lattice)
    shear = make_shear(grid.axes, grid.to_lattice, grid.divisions, (0, -3), (1, 1), (4, 7))
    weight = torch.as_tensor(np.random.default_rng(12).normal(size=grid.shape))
    weight = weight.T.contiguous() if shear.swap_pixels else weight
    weight[:2] = weight[-3:] = weight[:, :4] = 0.0
    spread, tables = np.full((len(weight), shear.points), np.nan), (shear.taps.numpy(), shear._start(), shear.fine)
    top, end, first, last = _spread(weight.numpy(), np.full(weight.shape, 2.0), *tables, spread)
    expected = 2.0 * shear._sheared(weight).numpy()
    assert (top, end) == (2, len(weight) - 3)
    assert np.abs(spread[top:end] - expected[top:end]).max() < 1e-13 * np.abs(expected).max()
    assert not expected[:, :first].any() and not expected[:, last:].any()
    assert _spread(0 * weight.numpy(), np.ones(weight.shape), *tables, spread) == (0, 0, 0, 0)
    rows = torch.as_tensor(np.random.default_rng(13).normal(size=(len(weight), shear.points)))
    columns = weight.shape[1]
    read = _gathered(rows.numpy(), shear.taps.numpy(), shear._start(), shear.fine, columns)
    assert np.abs(read - shear._read(rows[None], columns)[0].numpy()).max() < 1e-13 * np.abs(read).max()


def test_gram_of_cosines_and_sines(grid):
    """The look-up equals the matrix of products, in all four combinations of cosine and sine."""
    rows, columns = random_vectors(grid, 12, 3), random_vectors(grid, 9, 4, most=3)
    weight = torch.as_tensor(np.random.default_rng(5).random(grid.shape))
    reach = tuple(int(v) for v in (rows[0].abs().amax(0) + columns[0].abs().amax(0)))
    found = gram(grid.moments(weight, reach), reach, rows, columns).numpy()

    def values(functions):
        angle = phases(grid, functions[0])
        return np.where(functions[1].numpy(), np.sin(angle), np.cos(angle))

    expected = values(rows).T @ (weight.numpy().reshape(-1, 1) * values(columns))
    assert np.abs(found - expected).max() < 1e-7 * weight.sum().item()
    cosines = (rows[0], torch.zeros(len(rows[0]), dtype=torch.bool))
    both = tuple(2 * int(v) for v in rows[0].abs().amax(0))
    plain = gram(grid.moments(weight, both), both, cosines, cosines).numpy()
    angle = np.cos(phases(grid, rows[0]))
    assert np.abs(plain - angle.T @ (weight.numpy().reshape(-1, 1) * angle)).max() < 1e-7 * weight.sum().item()


def test_projection_is_the_sum_over_pixels(grid):
    functions = random_vectors(grid, 15, 6)
    reach = tuple(int(v) for v in functions[0].abs().amax(0))
    weight = torch.as_tensor(np.random.default_rng(7).normal(size=(3, *grid.shape)))
    found = project(grid.moments(weight, reach), reach, functions).numpy()
    angle = phases(grid, functions[0])
    expected = weight.numpy().reshape(3, -1) @ np.where(functions[1].numpy(), np.sin(angle), np.cos(angle))
    assert np.abs(found - expected).max() < 1e-7 * weight.abs().sum().item()


@pytest.mark.parametrize("gap", [1, 3])
def test_synthesis_is_the_series(grid, gap):
    index, _ = random_vectors(grid, 20, 8)
    index = index * gap
    rng = np.random.default_rng(9)
    cosine, sine = torch.as_tensor(rng.normal(size=(2, 20))), torch.as_tensor(rng.normal(size=(2, 20)))
    angle = phases(grid, index)
    expected = cosine.numpy() @ np.cos(angle).T + sine.numpy() @ np.sin(angle).T
    found = grid.synthesize(cosine, sine, index)
    assert found.shape == (2, *grid.shape)
    assert found.numpy().reshape(2, -1) == pytest.approx(expected, abs=1e-10)
    assert grid.synthesize(cosine[0], None, index).numpy().ravel() == pytest.approx(cosine[0].numpy() @ np.cos(angle).T, abs=1e-10)


def test_synthesis_and_moments_are_adjoint(grid):
    """⟨w, synthesize(c)⟩ = ⟨moments(w), c⟩: the normal equations rest on it."""
    index, sine = random_vectors(grid, 10, 10)
    rng = np.random.default_rng(11)
    weight, value = torch.as_tensor(rng.normal(size=grid.shape)), torch.as_tensor(rng.normal(size=10))
    zero = torch.zeros(10, dtype=torch.float64)
    series = grid.synthesize(torch.where(sine, zero, value), torch.where(sine, value, zero), index)
    reach = tuple(int(v) for v in index.abs().amax(0))
    other = project(grid.moments(weight, reach), reach, (index, sine)) @ value
    assert (weight * series).sum().item() == pytest.approx(other.item(), abs=1e-7 * weight.abs().sum().item())


def test_lattice_coordinates_and_another_lattice():
    grid = grid_of(OBLIQUE[2])
    u = grid.coordinates().numpy()
    x = np.stack(np.meshgrid(*(a.numpy() for a in grid.axes), indexing="ij"))
    assert u[1] == pytest.approx(x[0] * OBLIQUE[2][0, 1] + x[1] * OBLIQUE[2][1, 1])
    other = grid.with_lattice(torch.eye(2, dtype=torch.float64))
    assert other.aligned and not grid.aligned
    assert other.coordinates().numpy() == pytest.approx(x)
    assert grid.coordinates().numpy() == pytest.approx(u)          # tables are not shared


# ---------------------------------------------------------------------- halves of a plane

STARTS = [(-12, -9), (-12.5, -9.5), (-13, -9.5), (-10.5, -12), (-14.5, -8)]


def centred(start, sizes=(26, 20), to_lattice=OBLIQUE[2]):
    axes = tuple(d * (s + torch.arange(n, dtype=torch.float64)) for s, n, d in zip(start, sizes, (0.11, 0.16), strict=True))
    return FourierGrid(axes, torch.as_tensor(to_lattice), (9, 6))


@pytest.mark.parametrize("start", STARTS)
def test_half_of_a_plane(start):
    """Sums of even functions over the half are those over the plane, whether a pixel is the origin or not."""
    grid = centred(start)
    fold = fold_of(grid.axes)
    assert isinstance(fold, Fold) and len(fold.axes[0]) * len(fold.axes[1]) < 0.75 * 26 * 20
    x, y = torch.meshgrid(*grid.axes, indexing="ij")
    even = torch.cos(1.3 * x + 0.4 * y) + x * y
    assert torch.allclose(fold.whole(fold.half(even), even.shape), even, atol=1e-13)
    weight = torch.as_tensor(np.random.default_rng(3).normal(size=(2, *grid.shape)))
    half = fold.folded(weight)
    assert torch.allclose((half * fold.half(even)).sum((1, 2)), (weight * even).sum((1, 2)), atol=1e-10)
    u, v = torch.meshgrid(*fold.axes, indexing="ij")
    kept = fold.share + fold.share_other > 0
    assert torch.allclose((torch.cos(1.3 * u + 0.4 * v) + u * v).flatten()[kept], fold.half(even).flatten()[kept], atol=1e-12)
    assert (fold.axes[0] >= 0).all()


@pytest.mark.parametrize("kind", ["aligned", "oblique"])
@pytest.mark.parametrize("start", STARTS)
def test_sums_over_half_of_a_plane(start, kind):
    grid = centred(start, to_lattice=(ALIGNED if kind == "aligned" else OBLIQUE)[2])
    fold = fold_of(grid.axes)
    weight = torch.as_tensor(np.random.default_rng(4).normal(size=grid.shape))
    half, own = fold.folded(weight), fold.grid(grid)
    bound = 1e-9 * float(weight.abs().sum())
    for reach in ((4, 3), (80, 70)):
        assert (own.moments(half, reach) - grid.moments(weight, reach).real).abs().max() < bound
    index, _ = random_vectors(grid, 20, 5)
    functions, reach = (index, torch.zeros(20, dtype=torch.bool)), tuple(int(v) for v in index.abs().amax(0))
    assert (own.project(half[None], functions, reach) - grid.project(weight[None], functions, reach)).abs().max() < bound
    found = fold.whole(own.synthesize(torch.ones(20), None, index), grid.shape)
    assert (found - grid.synthesize(torch.ones(20), None, index)).abs().max() < 1e-10


def test_planes_that_have_no_halves():
    for start in ((-12.2, -9), (0, 0), (3, -9)):
        assert isinstance(fold_of(centred(start).axes), Unfolded)
    assert isinstance(fold_of(grid_of(OBLIQUE[3]).axes), Unfolded)


@pytest.mark.parametrize("start", STARTS)
def test_real_sums_at_any_frequency(start):
    grid = centred(start)
    fold = fold_of(grid.axes)
    rng = np.random.default_rng(7)
    weight, cycles = torch.as_tensor(rng.normal(size=grid.shape)), np.array([[0.0174, 0.0062], [-0.0125, 0.0107]])
    index = rng.integers(-190, 191, (60, 2))
    x, y = (np.arange(n) + s for n, s in zip(grid.shape, start, strict=True))
    turns = np.add.outer(x, 0 * y)[..., None] * (index @ cycles[0]) + np.add.outer(0 * x, y)[..., None] * (index @ cycles[1])
    expected = np.einsum("xy,xyn->n", weight.numpy(), np.cos(2 * np.pi * turns))
    first = [float(a[0] / (a[1] - a[0])) for a in fold.axes]
    found = read_half_spectrum(fold.folded(weight), index, cycles, first)
    assert np.abs(found - expected).max() < 1e-10 * float(weight.abs().sum())


def test_sparse_functions():
    rng = np.random.default_rng(9)
    table = torch.as_tensor(rng.normal(size=(7, 12, 9)) * (rng.random((7, 12, 9)) < 0.3))
    columns, weight = SparseColumns(table), torch.as_tensor(rng.normal(size=(3, 12, 9)))
    flat, heights = table.flatten(1), torch.arange(7.0, dtype=torch.float64)
    assert torch.allclose(columns.sum(heights), torch.einsum("k,kxy->xy", heights, table))
    assert torch.allclose(columns.project(weight), weight.flatten(1) @ flat.T)
    assert torch.allclose(columns.project(weight[0]), flat @ weight[0].flatten())
    assert torch.allclose(columns.products(weight[0]), (flat * weight[0].flatten()) @ flat.T)
    assert SparseColumns(table[:0]).products(weight[0]).shape == (0, 0)
