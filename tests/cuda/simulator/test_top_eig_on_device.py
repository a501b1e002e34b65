"""`top_eig` of device arrays in Numba's simulator: both methods on the gallery, then what they share with the CPU."""

import numpy as np
import pytest
from numba import cuda

import catapult_fast as cf
import spectra
from catapult_fast import device_arrays, device_spectrum
from catapult_fast.errors import DataError
from catapult_fast.kernels.dense import krylov_on_cuda, teams_on_cuda

EPS = 2.0**-52
FIELDS = (
    "eigenvalues", "residuals", "lower_bounds", "upper_bounds", "bound", "converged", "iterations", "eigenvectors",
)  # fmt: skip
QUERIES = (("largest", None), ("both", None), ("smallest", 3))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Few threads, which the simulator runs one after another: two groups of four instead of eight of 32."""
    monkeypatch.setattr(teams_on_cuda, "_BLOCK", 16)
    monkeypatch.setattr(krylov_on_cuda, "THREADS", 8)
    monkeypatch.setattr(krylov_on_cuda, "_GROUP", 4)
    monkeypatch.setattr(krylov_on_cuda, "_PRODUCTS", 20)


@pytest.fixture(autouse=True)
def alone(monkeypatch, request):
    """Nothing is left to the last method: it would set right what a kernel does wrong."""
    if not {"last_method", "with_all_methods"} & set(request.fixturenames):
        monkeypatch.setattr(device_spectrum, "_directly", lambda job: None)


@pytest.fixture
def with_all_methods():
    """For spectra whose largest eigenvalue is below what Lanczos can tell from nothing beside the norm."""


@pytest.fixture
def streamed(monkeypatch):
    """Small matrices by the method for larger ones."""
    monkeypatch.setattr(device_spectrum, "_TEAMS_UP_TO", 0)


@pytest.fixture(params=["teams", "streamed"])
def method(request):
    if request.param == "streamed":
        request.getfixturevalue("streamed")
    return request.param


def top_eig(a, **options):
    return cf.top_eig(cuda.to_device(a), **options)


def same(one, other):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def part(found, place):
    return cf.EigenResult(**{name: getattr(found, name)[place] for name in FIELDS})


def wishart(*shape, seed=0):
    x = np.random.default_rng(seed).standard_normal((*shape, 2 * shape[-1]))
    a = x @ np.swapaxes(x, -1, -2) / shape[-1]
    return (a + np.swapaxes(a, -1, -2)) / 2


def wanted(lam, which, k):
    if which == "both":
        return lam[..., [-1, 0]]
    k = 1 if k is None else min(k, lam.shape[-1])
    return lam[..., :k] if which == "largest" else lam[..., lam.shape[-1] - k :]


def check(a, lam, which, k, power=0):
    """Every promise of `EigenResult`, on a batch whose spectra are known exactly."""
    k = None if k is None else min(k, a.shape[-1])
    before = a.copy()
    found = top_eig(a, which=which, k=k)
    np.testing.assert_array_equal(a, before)
    true = wanted(lam, which, k)
    lower, upper = (x.reshape(true.shape) for x in (found.lower_bounds, found.upper_bounds))
    assert (found.bound == 2).all()
    assert (lower <= true).all()
    assert (true <= upper).all()
    assert found.converged.all()
    wide = np.ldexp(a.astype(np.float64), -power)
    v = found.eigenvectors.reshape(len(a), a.shape[-1], -1)
    values = np.ldexp(found.eigenvalues.reshape(len(a), 1, -1), -power)
    norm = np.abs(np.ldexp(lam, -power)).max(axis=1)[:, None]
    residual = np.linalg.norm(wide @ v - values * v, axis=1)
    tol = 1e-10 if a.dtype == np.float64 else 2e-5
    assert (residual <= (1.01 * tol + 20 * a.shape[-1] * EPS) * norm).all()
    reported = np.ldexp(found.residuals.reshape(residual.shape), -power)
    assert (np.abs(reported - residual) <= 20 * a.shape[-1] * EPS * norm).all()
    np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1.0, rtol=1e-13)
    if which != "both":
        np.testing.assert_allclose(v.swapaxes(1, 2) @ v, np.tile(np.eye(v.shape[2]), (len(a), 1, 1)), atol=10 * tol)


def gallery(n, dtype, power=0):
    examples = [spectra.example(name, n, dtype, power) for name in spectra.SPECTRA]
    return np.array([e.matrix for e in examples]), np.array([e.eigenvalues for e in examples])


# --- the gallery -----------------------------------------------------------------------------


LONG = pytest.mark.long  # seconds each in the simulator, and much like their neighbours


@pytest.mark.parametrize("n", [1, pytest.param(2, marks=LONG), 3, pytest.param(5, marks=LONG), 8])
def test_every_spectrum(n, method):
    for which, k in QUERIES if n < 3 or method == "teams" else QUERIES[:1]:  # the simulator takes a second each
        check(*gallery(n, np.float64), which, k)


@pytest.mark.parametrize("n", [2, 5])
def test_every_spectrum_in_float32(n, method, with_all_methods):
    check(*gallery(n, np.float32), "largest", None)


@pytest.mark.parametrize("power", [-498, pytest.param(498, marks=LONG)])
def test_every_spectrum_at_every_scale(power, method):
    check(*gallery(3, np.float64, power), "both", None, power)


def test_slabs_and_groups(method):
    """A size at which columns have two threads, and the basis outgrows a group of vectors."""
    a, lam = gallery(17, np.float64)
    check(a[3:5], lam[3:5], "largest", 2)
    check(a[10:12], lam[10:12], "smallest", 1)


@pytest.mark.parametrize("n", [pytest.param(4, marks=LONG), 7])
def test_it_agrees_with_the_cpu(n, method, monkeypatch):
    monkeypatch.setattr(krylov_on_cuda, "THREADS", 16)  # two columns of a product, the last beyond the matrix
    a = wishart(5, n)
    here, there = top_eig(a, k=2), cf.top_eig(a, k=2)
    np.testing.assert_allclose(here.eigenvalues, there.eigenvalues, rtol=0, atol=40 * n * EPS * 3)
    overlap = np.abs(np.sum(here.eigenvectors * there.eigenvectors, axis=1))
    np.testing.assert_allclose(overlap, 1.0, rtol=1e-9)
    assert (here.lower_bounds <= there.upper_bounds).all()
    assert (there.lower_bounds <= here.upper_bounds).all()


# --- bits, batches, arrays -------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"k": 2}, pytest.param({"which": "both", "certify": False}, marks=LONG)])
def test_bits_do_not_depend_on_the_batch(options, method):
    a = wishart(5, 6)
    a[1] = np.nan
    a[3] *= 1e200
    together = top_eig(a, **options)
    for place in (0, 3, 4):
        same(part(together, place), top_eig(a[place], **options))
    assert np.isnan(together.eigenvalues[1]).all()
    assert (together.bound[1] == 0).all()
    assert not together.converged[1].any()


def test_a_batch_in_parts(monkeypatch, method):
    a = wishart(5, 5)
    whole = top_eig(a, k=2)
    monkeypatch.setattr(device_spectrum, "bytes_to_use", lambda xp: 3000)
    same(top_eig(a, k=2), whole)


def test_shapes_and_types(method):
    found = top_eig(wishart(2, 3, 4).astype(np.float32), k=2)
    assert found.eigenvalues.shape == found.bound.shape == (2, 3, 2)
    assert found.eigenvectors.shape == (2, 3, 4, 2)
    assert found.iterations.shape == (2, 3)
    assert (found.eigenvalues.dtype, found.bound.dtype, found.converged.dtype) == (np.float64, np.int8, bool)
    assert found.iterations.dtype == np.int32
    assert top_eig(np.empty((0, 3, 3)), k=2).eigenvalues.shape == (0, 2)
    assert float(top_eig(np.array([[2, 1], [1, 2]])).eigenvalues) == pytest.approx(3.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_spoils_its_own_matrix(value, method):
    a = wishart(3, 4)
    clean = top_eig(a)
    a[1, 2, 0] = a[1, 0, 2] = value
    found = top_eig(a)
    for place in (0, 2):
        same(part(found, place), part(clean, place))
    assert np.isnan(found.eigenvalues[1])
    assert np.isnan(found.eigenvectors[1]).all()
    assert (found.lower_bounds[1], found.upper_bounds[1]) == (-np.inf, np.inf)


def test_asymmetry_is_found(method):
    a = wishart(3, 5)
    a[2, 3, 1] += 1e-9
    with pytest.raises(DataError, match=r"matrix 2 .*A\.mT"):
        top_eig(a)


def test_rounding_is_no_asymmetry(method):
    a = wishart(5)
    a = np.where(np.tri(5, k=-1) > 0, a * (1 + 2 * EPS), a)
    found = top_eig(a)
    assert found.lower_bounds <= np.linalg.eigvalsh((a + a.T) / 2)[-1] <= found.upper_bounds
    assert found.converged


def test_without_proof_the_outer_bound_is_open(method):
    a = wishart(2, 5)
    found = top_eig(a, which="both", certify=False)
    assert (found.bound == 0).all()
    assert (found.upper_bounds[:, 1] == np.inf).all()
    assert (found.lower_bounds[:, 1] <= np.linalg.eigvalsh(a)[:, -1]).all()
    assert found.converged.all()


# --- starts, limits, the last method ---------------------------------------------------------


def test_starts(streamed):
    a = np.array([spectra.rotated(0.6 ** np.arange(14), seed)[0] for seed in range(2)])
    cold = top_eig(a, tol=1e-6)
    warm = top_eig(a, tol=1e-6, start=cuda.to_device(cold.eigenvectors))
    assert (warm.iterations < cold.iterations).all()
    assert warm.converged.all()
    useless = np.zeros((2, 14))
    useless[1] = np.nan
    same(top_eig(a, tol=1e-6, start=useless), cold)  # on the host: it goes along


def test_a_pair_found_loosely_is_not_found_again(streamed):
    """What the first vector lacks of the first eigenvector would draw the second one there."""
    lam = 0.9 ** np.arange(20)
    found = top_eig(spectra.rotated(lam)[0], k=2, tol=3e-2)
    np.testing.assert_allclose(found.eigenvalues, lam[:2], atol=0.03)


def test_a_start_at_another_eigenvector(streamed):
    example = spectra.example("flat", 16)
    for j in (1, 14):
        found = top_eig(example.matrix, start=example.vectors[:, j])
        assert found.lower_bounds <= example.eigenvalues[0] <= found.upper_bounds
        assert found.converged


def test_the_fixed_start_is_orthogonal_to_the_answer(streamed, with_all_methods):
    n = 12
    fixed = device_spectrum.fixed_vector(n)
    q = np.linalg.qr(np.c_[fixed, np.random.default_rng(0).standard_normal((n, n - 1))])[0]
    a = (q * np.r_[0.5, 3.0, np.linspace(-1, 1, n - 2)]) @ q.T
    found = top_eig((a + a.T) / 2)
    assert found.lower_bounds - 1e-13 <= 3.0 <= found.upper_bounds + 1e-13
    assert found.converged


def test_too_few_iterations_are_said(streamed):
    a = wishart(2, 20)
    found = top_eig(a, max_iterations=4)
    assert (found.iterations == 4).all()
    assert not found.converged.any()
    true = np.linalg.eigvalsh(a)[:, -1]
    assert (found.lower_bounds <= true).all()
    assert (true <= found.upper_bounds).all()


def test_a_tolerance_that_cannot_be_met(method):
    found = top_eig(wishart(2, 4), tol=0.0)
    assert not found.converged.any()
    assert (found.bound == 2).all()


@pytest.fixture
def last_method(monkeypatch):
    """Every matrix goes to ``eigh``."""
    monkeypatch.setattr(device_spectrum.ends, "open_matrices", lambda found, request, xp: np.arange(len(found.norm)))


def test_the_last_method_is_right(last_method, method):
    a, lam = gallery(5, np.float64)
    keep = np.abs(lam).max(axis=1) > 0
    check(a[keep][:6], lam[keep][:6], "smallest", 2)


def test_a_wrong_pair_is_never_certified(last_method, monkeypatch, method):
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda a: (eigh(a)[0], eigh(a)[1][..., ::-1]))
    a = spectra.rotated(np.linspace(1, 2, 6))[0]
    found = top_eig(a)
    assert float(found.eigenvalues) == pytest.approx(1.0)
    assert not found.converged
    assert found.upper_bounds >= 2.0


def test_matrices_that_do_not_fit_are_streamed(monkeypatch):
    monkeypatch.setattr(device_spectrum.device, "shared_memory", lambda: 1000)
    assert (top_eig(wishart(2, 4)).iterations == 0).all()
    assert (top_eig(wishart(2, 12)).iterations > 0).all()
    assert teams_on_cuda.shape(300, 1 << 30) is None


# --- the reduction ---------------------------------------------------------------------------


def hard_cases(n):
    """Symmetric matrices: random, graded both ways, of low rank, reduced already."""
    rng = np.random.default_rng(n)
    x = rng.standard_normal((5, n, n))
    grade = np.logspace(0, -30, n)
    x[1] *= np.outer(grade, grade)
    x[2] *= np.outer(grade, grade)[::-1, ::-1]
    x[3] = np.outer(x[3, 0], x[3, 0])
    x[4] = np.diag(np.arange(n)) + np.eye(n, k=1)
    return (x + x.swapaxes(1, 2)) / 2


@pytest.mark.parametrize("n", [1, 2, 3, 9, 17])
def test_the_reduction_is_a_similarity_within_its_bound(n):
    from catapult_fast.kernels.dense.rounding import team_reduction_error
    from catapult_fast.kernels.dense.state import pairs

    a = hard_cases(n)
    kept, found, shape = teams_on_cuda.kept(5, n, np), pairs(5, 1, n), teams_on_cuda.shape(n, 48 * 1024)
    device_arrays.launch(
        teams_on_cuda.reduce, -(-5 // shape.teams), shape.threads(n), a.reshape(-1), n, 0, 1.0, shape.rows, 5, found,
        kept, shared=shape.shared(n),
    )  # fmt: skip
    for b in range(5):
        q = np.eye(n)
        for k in range(2, n):
            v = np.zeros(n)
            v[:k] = kept.triangle[b, k * (k + 1) // 2 :][:k]
            q = (np.eye(n) - kept.scale[b, k] * np.outer(v, v)) @ q
        beta = kept.beta[: n - 1, b]
        reduced = np.diag(kept.alpha[:, b]) + np.diag(beta, 1) + np.diag(beta, -1)
        scaled = np.ldexp(a[b], -found.exponent[b])
        size = np.linalg.norm(scaled)
        assert np.abs(q @ q.T - np.eye(n)).max() < 1e-14 * n
        gap = np.linalg.norm(q @ reduced @ q.T - scaled)
        assert gap <= 1e-15 * n * size
        assert gap <= team_reduction_error(n, shape.rows, size)


# --- operators -------------------------------------------------------------------------------


@pytest.mark.parametrize(("which", "k"), [("largest", None), ("both", None), ("smallest", 2)])
def test_operators(which, k):
    a, seen = wishart(3, 20), []

    def matvec(v):
        seen.append(type(v).__name__)
        return cuda.to_device(np.einsum("bij,bj->bi", a, v.copy_to_host()))

    axis = (1,) if which == "both" or k else ()
    found = cf.top_eig(matvec, n=20, batch=(3,), which=which, k=k, start=cuda.to_device(np.zeros((20, *axis))))
    assert set(seen) == {"FakeCUDAArray"}
    true = wanted(np.linalg.eigvalsh(a)[:, ::-1], which, k)
    np.testing.assert_allclose(found.eigenvalues.reshape(true.shape), true, atol=1e-12)
    assert found.converged.all()
    assert (found.bound == 1).all()


def test_an_operator_may_answer_from_the_host():
    a = wishart(12)
    found = cf.top_eig(lambda v: a @ v.copy_to_host(), n=12, start=cuda.to_device(np.zeros(12)))
    assert float(found.eigenvalues) == pytest.approx(np.linalg.eigvalsh(a)[-1], rel=1e-12)
