"""`top_eig` on dense batches: arguments, libraries, independence of bits, and what happens when a method fails."""

import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import scipy.linalg
from hypothesis import strategies as st

import catapult_fast as cf
import spectra
from catapult_fast import dense_spectrum
from catapult_fast.errors import BackendUnavailable, ConfigError, DataError

FIELDS = (
    "eigenvalues", "residuals", "lower_bounds", "upper_bounds", "bound", "converged", "iterations", "eigenvectors",
)  # fmt: skip


def wishart(*shape, seed=0, dtype=np.float64):
    x = np.random.default_rng(seed).standard_normal((*shape, 2 * shape[-1]))
    a = x @ np.swapaxes(x, -1, -2) / shape[-1]
    return ((a + np.swapaxes(a, -1, -2)) / 2).astype(dtype)


def batch(count, n, seed=0):
    return wishart(count, n, seed=seed)


def same(one, other):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def part(found, place):
    return cf.EigenResult(**{name: getattr(found, name)[place] for name in FIELDS})


# --- the answer ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "k", "axis"), [("largest", None, ()), ("smallest", 1, (1,)), ("largest", 4, (4,)), ("both", None, (2,))]
)
@pytest.mark.parametrize("n", [9, 130])
def test_shapes_and_types(which, k, axis, n):
    found = cf.top_eig(wishart(2, 3, n), which=which, k=k)
    for name in ("eigenvalues", "residuals", "lower_bounds", "upper_bounds"):
        assert getattr(found, name).shape == (2, 3, *axis)
        assert getattr(found, name).dtype == np.float64
    assert found.bound.shape == found.converged.shape == (2, 3, *axis)
    assert (found.bound.dtype, found.converged.dtype, found.iterations.dtype) == (np.int8, bool, np.int32)
    assert found.iterations.shape == (2, 3)
    assert found.eigenvectors.shape == (2, 3, n, *axis)
    if axis:
        assert (np.diff(found.eigenvalues, axis=-1) * (1 if which == "both" else -1) > 0).all()


def test_one_matrix_gives_numbers():
    found = cf.top_eig([[2.0, 1.0], [1.0, 2.0]])
    assert found.eigenvalues.shape == ()
    assert float(found.eigenvalues) == pytest.approx(3.0, rel=1e-15)
    np.testing.assert_allclose(abs(found.eigenvectors), [0.5**0.5] * 2)


@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 90, 90)])
def test_an_empty_batch(shape):
    found = cf.top_eig(np.empty(shape), k=2)
    assert found.eigenvalues.shape == (*shape[:-2], 2)
    assert found.eigenvectors.shape == (*shape[:-1], 2)


def test_without_proof_the_outer_bound_is_open():
    for a in (batch(3, 10), batch(2, 120)):
        found = cf.top_eig(a, which="both", certify=False)
        assert (found.bound == 0).all()
        assert (found.upper_bounds[:, 1] == np.inf).all()
        assert (found.lower_bounds[:, 0] == -np.inf).all()
        assert (found.lower_bounds[:, 1] <= np.linalg.eigvalsh(a)[:, -1]).all()
        assert found.converged.all()


def test_whole_numbers_are_taken_as_they_are():
    assert float(cf.top_eig(np.array([[2, 1], [1, 2]])).eigenvalues) == pytest.approx(3.0)


def test_float32_is_solved_in_float64():
    a = wishart(3, 20, dtype=np.float32)
    same(cf.top_eig(a, tol=1e-10), cf.top_eig(a.astype(np.float64)))


@pytest.mark.parametrize("n", [12, 120])
def test_all_k_up_to_n(n):
    a = spectra.rotated(np.linspace(-1, 1, n))[0]
    found = cf.top_eig(a, k=min(n, 12))
    assert found.converged.all()
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(a)[::-1][:12], atol=1e-13)


# --- bits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"which": "both"}, {"k": 3}, {"which": "smallest", "certify": False}])
@pytest.mark.parametrize("n", [3, 20, 113])
def test_bits_do_not_depend_on_the_batch_or_the_threads(n, options):
    a = batch(21, n)
    a[4] = np.nan
    a[7] *= 1e200
    together = cf.top_eig(a, workers=1, **options)
    same(together, cf.top_eig(a, workers=3, **options))
    for place in (0, 7, 8, 20):
        same(part(together, place), cf.top_eig(a[place], **options))
    same(part(together, slice(5, 14)), cf.top_eig(a[5:14], **options))


def test_nothing_is_modified():
    for n in (6, 120):
        a = batch(4, n)
        before = a.copy()
        cf.top_eig(a, k=2)
        np.testing.assert_array_equal(a, before)
        assert a.flags.writeable


def test_layouts_give_the_same():
    a = batch(6, 10)
    found = cf.top_eig(a)
    same(found, cf.top_eig(np.asfortranarray(a)))
    same(found, cf.top_eig(np.repeat(a, 2, axis=0)[::2]))
    same(found, cf.top_eig(a.astype(">f8")))
    a.flags.writeable = False
    same(found, cf.top_eig(a))


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_other_libraries(name):
    library = pytest.importorskip(name)
    a = wishart(3, 9, dtype=np.float32)
    other = library.tensor(a, requires_grad=True) if name == "torch" else library.numpy.asarray(a)
    same(cf.top_eig(other), cf.top_eig(a))


# --- what cannot be solved -------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 100])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_spoils_its_own_matrix(n, value):
    a = batch(3, n)
    clean = cf.top_eig(a)
    a[1, 2, 0] = a[1, 0, 2] = value
    found = cf.top_eig(a)
    for place in (0, 2):
        same(part(found, place), part(clean, place))
    assert np.isnan(found.eigenvalues[1])
    assert np.isnan(found.eigenvectors[1]).all()
    assert (found.bound[1], found.converged[1]) == (0, False)
    assert (found.lower_bounds[1], found.upper_bounds[1]) == (-np.inf, np.inf)


def test_an_eigenvalue_beyond_the_largest_number():
    a = np.full((4, 4), 1.5e308)
    found = cf.top_eig(a)
    assert found.upper_bounds == np.inf
    assert found.lower_bounds == np.finfo(np.float64).max
    assert not found.converged


@pytest.mark.parametrize("n", [5, 100])
def test_asymmetry_is_found(n):
    a = batch(9, n)
    a[6, 3, 1] += 1e-9
    with pytest.raises(DataError, match=r"matrix 6 .*A\.mT"):
        cf.top_eig(a)


@pytest.mark.parametrize("n", [5, 100])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rounding_is_no_asymmetry(n, dtype):
    """The bounds then are those of the symmetric part."""
    a = wishart(n, dtype=dtype)
    a = np.where(np.tri(n, k=-1) > 0, a * (1 + 2 * np.finfo(dtype).eps), a).astype(dtype)
    assert (a != a.T).any()
    found = cf.top_eig(a)
    wide = a.astype(np.float64)
    true = np.linalg.eigvalsh((wide + wide.T) / 2)[-1]
    assert found.lower_bounds <= true <= found.upper_bounds
    assert found.converged


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"A": np.zeros((3, 4))}, DataError, "shape"),
        ({"A": np.zeros(3)}, DataError, "shape"),
        ({"A": np.zeros((2, 0, 0))}, DataError, "shape"),
        ({"A": np.zeros((2, 2), complex)}, TypeError, "complex128"),
        ({"A": np.zeros((2, 2), np.float16)}, TypeError, "float16"),
        ({"A": [[1.0], [1.0, 2.0]]}, DataError, "rectangular"),
        ({"A": np.ma.masked_equal(np.eye(2), 0)}, DataError, "masked"),
        ({"A": np.eye(2), "which": "top"}, ConfigError, "which"),
        ({"A": np.eye(2), "k": 3}, ConfigError, "k = 3"),
        ({"A": np.eye(2), "k": 0}, ConfigError, "k = 0"),
        ({"A": np.eye(2), "k": 1, "which": "both"}, ConfigError, "both"),
        ({"A": np.eye(2), "tol": -1.0}, ConfigError, "tol"),
        ({"A": np.eye(2), "tol": "small"}, TypeError, "tol"),
        ({"A": np.eye(2), "max_iterations": 0}, ConfigError, "max_iterations"),
        ({"A": np.eye(2), "certify": 1}, TypeError, "certify"),
        ({"A": np.eye(2), "workers": 0}, ConfigError, "workers"),
        ({"A": np.eye(2), "n": 2}, ConfigError, "operator"),
        ({"A": np.eye(2), "batch": (1,)}, ConfigError, "operator"),
        ({"A": np.eye(2), "start": np.zeros(3)}, ConfigError, "start"),
        ({"A": np.eye(2), "start": np.zeros(2, complex)}, TypeError, "start"),
    ],
)
def test_wrong_arguments(arguments, error, said):
    with pytest.raises(error, match=said):
        cf.top_eig(**arguments)


def test_a_device_is_refused():
    class OnDevice:
        def __dlpack_device__(self):
            return 2, 0

    with pytest.raises(BackendUnavailable, match="A lies on a device"):
        cf.top_eig(OnDevice())


# --- starts ----------------------------------------------------------------------------------


def test_a_good_start_saves_products():
    a = batch(3, 150)
    cold = cf.top_eig(a, k=2)
    warm = cf.top_eig(a, k=2, start=cold.eigenvectors)
    assert (warm.iterations < cold.iterations).all()
    assert warm.converged.all()
    np.testing.assert_allclose(warm.eigenvalues, cold.eigenvalues, rtol=1e-13)


def test_starts_of_both_ends():
    a = batch(2, 150)
    cold = cf.top_eig(a, which="both")
    warm = cf.top_eig(a, which="both", start=cold.eigenvectors)
    assert (warm.iterations < cold.iterations).all()
    np.testing.assert_allclose(warm.eigenvalues, cold.eigenvalues, atol=1e-12)


@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_a_start_at_another_eigenvector(which):
    """The start is an exact eigenvector that is not the one wanted."""
    example = spectra.example("flat", 128)
    for j in (1, 64, 126):
        found = cf.top_eig(example.matrix, which=which, start=example.vectors[:, j])
        assert found.lower_bounds <= example.eigenvalues[0 if which == "largest" else -1] <= found.upper_bounds
        assert found.converged


def test_the_fixed_start_is_orthogonal_to_the_answer():
    n = 120
    fixed = dense_spectrum.fixed_vector(n)
    q = np.linalg.qr(np.c_[fixed, np.random.default_rng(0).standard_normal((n, n - 1))])[0]
    for lam in (np.r_[0.5, 3.0, np.linspace(-1, 1, n - 2)], np.r_[1.0, 2.0, np.ones(n - 2)]):
        a = (q * lam) @ q.T
        a = (a + a.T) / 2
        found = cf.top_eig(a)
        assert found.lower_bounds - 1e-13 <= lam.max() <= found.upper_bounds + 1e-13
        assert found.converged


def test_useless_starts_are_left_out():
    a = batch(3, 110)
    start = np.zeros((3, 110))
    start[1] = np.nan
    start[2] = 1e300
    start[2, 0] = np.inf
    same(cf.top_eig(a, start=start), cf.top_eig(a))


def test_starts_broadcast():
    a = batch(3, 110)
    one = np.arange(110.0)
    same(cf.top_eig(a, start=one), cf.top_eig(a, start=np.tile(one, (3, 1))))


# --- limits and failures ---------------------------------------------------------------------


def test_too_few_iterations_are_said():
    a = batch(2, 200)
    found = cf.top_eig(a, max_iterations=5)
    assert (found.iterations == 5).all()
    assert not found.converged.any()
    true = np.linalg.eigvalsh(a)[:, -1]
    assert (found.lower_bounds <= true).all()
    assert (true <= found.upper_bounds).all()


def test_a_tolerance_that_cannot_be_met():
    found = cf.top_eig(batch(2, 20), tol=0.0)
    assert not found.converged.any()
    assert (found.bound == 2).all()


def spoiled(monkeypatch):
    """Make LAPACK return vectors of another eigenvalue."""
    original = scipy.linalg.eigh

    def wrong(a, subset_by_index, **options):
        return original(a, subset_by_index=[0, subset_by_index[1] - subset_by_index[0]], **options)

    monkeypatch.setattr(scipy.linalg, "eigh", wrong)


@pytest.mark.parametrize("n", [12, 120])
def test_a_wrong_pair_is_never_certified(n, monkeypatch):
    """Every matrix is sent to the last method, and that one answers with the smallest eigenvalue."""
    spoiled(monkeypatch)
    monkeypatch.setattr(dense_spectrum, "_open", lambda job: np.arange(job.count))
    a = spectra.rotated(np.linspace(1, 2, n))[0]
    found = cf.top_eig(a)
    assert float(found.eigenvalues) == pytest.approx(1.0)
    assert not found.converged
    assert found.upper_bounds >= 2.0


def test_the_last_method_is_right(monkeypatch):
    monkeypatch.setattr(dense_spectrum, "_open", lambda job: np.arange(job.count))
    for options in ({}, {"which": "both"}, {"k": 3}):
        for n in (7, 120):
            a = batch(3, n)
            found = cf.top_eig(a, **options)
            assert found.converged.all()
            true = np.linalg.eigvalsh(a)[:, ::-1]
            np.testing.assert_allclose(np.max(found.eigenvalues.reshape(3, -1), axis=1), true[:, 0], rtol=1e-13)


def test_a_close_pair_goes_to_the_last_method():
    """Lanczos would need thousands of steps for a gap of 1e-8 below a crowd."""
    n = 400
    lam = 1.0 - 1e-8 * np.arange(n) ** 1.5
    a = spectra.rotated(lam)[0] + 0.0
    found = cf.top_eig(a)
    assert found.converged
    assert found.lower_bounds - 1e-13 <= 1.0 <= found.upper_bounds + 1e-13


def test_no_answer_at_all(monkeypatch):
    def fails(*arguments, **options):
        raise scipy.linalg.LinAlgError

    monkeypatch.setattr(scipy.linalg, "eigh", fails)
    monkeypatch.setattr(dense_spectrum, "steps_before_direct", lambda n: 4)
    found = cf.top_eig(batch(1, 200)[0])
    assert not found.converged


def test_an_error_in_a_thread_arrives(monkeypatch):
    def fails(*arguments):
        raise MemoryError("no room")

    monkeypatch.setattr(dense_spectrum.lanes_on_cpu, "workspace", fails)
    with pytest.raises(MemoryError, match="no room"):
        cf.top_eig(batch(4000, 8), workers=3)


def test_nothing_heavy_is_loaded_before_it_is_needed():
    heavy = "print([m for m in ('numba', 'scipy', 'h5py') if m in sys.modules])"
    code = f"import sys, catapult_fast as cf; cf.top_eig; {heavy}"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


# --- at random -------------------------------------------------------------------------------


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    d=st.lists(st.integers(-(2**30), 2**30), min_size=1, max_size=40),
    power=st.integers(-900, 900),
    seed=st.integers(0, 2**32),
    which=st.sampled_from(["largest", "smallest"]),
    k=st.integers(1, 4),
)
def test_any_spectrum_is_enclosed(d, power, seed, which, k):
    example = spectra.from_integers(d, power=power, seed=seed)
    k = min(k, len(d))
    found = cf.top_eig(example.matrix, which=which, k=k)
    true = example.eigenvalues[:k] if which == "largest" else example.eigenvalues[-k:]
    assert (found.lower_bounds <= true).all()
    assert (true <= found.upper_bounds).all()
    assert found.converged.all()


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(
    d=st.lists(st.integers(-(2**24), 2**24), min_size=113, max_size=150),
    seed=st.integers(0, 2**32),
    which=st.sampled_from(["largest", "smallest"]),
)
def test_any_larger_spectrum_is_enclosed(d, seed, which):
    example = spectra.from_integers(d, seed=seed)
    found = cf.top_eig(example.matrix, which=which)
    true = example.eigenvalues[0 if which == "largest" else -1]
    assert found.lower_bounds <= true <= found.upper_bounds
    assert found.converged
