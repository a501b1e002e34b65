"""`top_eig` on operators: a batch advanced together, the probabilistic bound, and what is refused."""

import numpy as np
import pytest

import catapult_fast as cf
import spectra
from catapult_fast import operator_spectrum
from catapult_fast.errors import BackendUnavailable, ConfigError, DataError


def operator(a):
    return lambda v: np.einsum("...ij,...j->...i", a, v)


def wishart(*shape, seed=0):
    x = np.random.default_rng(seed).standard_normal((*shape, 2 * shape[-1]))
    return x @ np.swapaxes(x, -1, -2) / shape[-1]


@pytest.mark.parametrize(
    ("which", "k"), [("largest", None), ("smallest", None), ("both", None), ("largest", 3), ("smallest", 3)]
)
@pytest.mark.parametrize("name", spectra.SPECTRA)
def test_known_spectra(name, which, k):
    for n in (1, 2, 6, 60):
        wanted = None if k is None else min(k, n)
        example = spectra.example(name, n)
        found = cf.top_eig(operator(example.matrix), n=n, which=which, k=wanted, tol=1e-9)
        lam, norm = example.eigenvalues, np.abs(example.eigenvalues).max()
        true = {"largest": lam[: wanted or 1], "smallest": lam[-(wanted or 1) :], "both": lam[[-1, 0]]}[which]
        assert (found.bound == 1).all()
        assert (found.lower_bounds <= true).all()
        assert (true <= found.upper_bounds).all()
        assert found.converged.all()
        np.testing.assert_allclose(np.ravel(found.eigenvalues), true, atol=1e-8 * norm)


def test_shapes():
    a = wishart(2, 3, 7)
    seen = []

    def matvec(v):
        seen.append((v.shape, v.dtype))
        return operator(a)(v)

    found = cf.top_eig(matvec, n=7, batch=(2, 3), k=2)
    assert set(seen) == {((2, 3, 7), np.dtype(np.float64))}
    assert found.eigenvalues.shape == (2, 3, 2)
    assert found.eigenvectors.shape == (2, 3, 7, 2)
    assert found.iterations.shape == (2, 3)
    single = cf.top_eig(operator(a[0, 0]), n=7)
    assert single.eigenvalues.shape == ()
    assert single.eigenvectors.shape == (7,)


def test_it_agrees_with_the_matrix():
    a = wishart(4, 80)
    one, other = cf.top_eig(operator(a), n=80, batch=(4,), which="both"), cf.top_eig(a, which="both")
    np.testing.assert_allclose(one.eigenvalues, other.eigenvalues, atol=1e-12)
    assert (one.lower_bounds <= other.upper_bounds).all()
    assert (one.upper_bounds >= other.lower_bounds).all()


def test_members_do_not_see_each_other():
    """Each stops at its own step; one that is not finite, and one of another size, change no bit."""
    a = wishart(5, 70)
    a[1] = np.nan
    a[2] = np.diag(np.arange(70.0) ** 4)
    together = cf.top_eig(operator(a), n=70, batch=(5,))
    for place in (0, 2, 4):
        alone = cf.top_eig(operator(a[place : place + 1]), n=70, batch=(1,))
        for name in ("eigenvalues", "residuals", "lower_bounds", "upper_bounds", "iterations", "eigenvectors"):
            np.testing.assert_array_equal(getattr(together, name)[place], getattr(alone, name)[0], err_msg=name)
    assert len(set(together.iterations[[0, 2]])) == 2
    assert np.isnan(together.eigenvalues[1])
    assert (together.bound[1], together.converged[1]) == (0, False)
    assert together.upper_bounds[1] == np.inf


def test_the_bound_holds_over_random_starts(monkeypatch):
    """At a risk of one in ten it fails in about that share of the draws, so it is neither void nor wrong."""
    monkeypatch.setattr(operator_spectrum, "RISK", 0.1)
    lam = np.r_[1.02, np.linspace(0, 1, 79)]
    a, _ = spectra.rotated(lam)
    failed = 0
    for seed in range(150):
        vector = np.random.default_rng(seed).standard_normal(80)
        monkeypatch.setattr(
            operator_spectrum, "fixed_vector", lambda n, number=0, vector=vector: vector + 1e-9 * number
        )
        found = cf.top_eig(operator(a), n=80, max_iterations=8)
        failed += found.upper_bounds < 1.02
    assert failed <= 30


def test_the_bound_closes():
    a, _ = spectra.rotated(1.0 / np.arange(1, 121))
    found = cf.top_eig(operator(a), n=120)
    assert 1.0 - 1e-13 <= found.upper_bounds <= 1.0 + 1e-4


def test_a_start_at_another_eigenvector():
    example = spectra.example("flat", 64)
    for j in (1, 30):
        found = cf.top_eig(operator(example.matrix), n=64, start=example.vectors[:, j])
        assert found.lower_bounds <= 64 <= found.upper_bounds
        assert found.converged


def test_a_good_start_saves_products():
    a = wishart(3, 150)
    cold = cf.top_eig(operator(a), n=150, batch=(3,))
    warm = cf.top_eig(operator(a), n=150, batch=(3,), start=cold.eigenvectors)
    assert (warm.iterations < cold.iterations).all()
    assert warm.converged.all()


def test_a_start_of_zeros_is_none():
    a = wishart(2, 40)
    cold = cf.top_eig(operator(a), n=40, batch=(2,), which="both")
    zeros = cf.top_eig(operator(a), n=40, batch=(2,), which="both", start=np.zeros((40, 2)))
    np.testing.assert_array_equal(zeros.iterations, cold.iterations)
    for name in ("eigenvalues", "lower_bounds", "upper_bounds"):  # upper ones are wider for the share of a given start
        np.testing.assert_allclose(getattr(zeros, name), getattr(cold, name), rtol=1e-11, err_msg=name)


def test_matvec_may_write_on_its_vector():
    a = np.diag(np.linspace(1.0, 2.0, 50))

    def in_place(v):
        v[:] = operator(a)(v)
        return v

    assert float(cf.top_eig(in_place, n=50).eigenvalues) == pytest.approx(2.0, rel=1e-12)


def test_restarts(monkeypatch):
    monkeypatch.setattr(operator_spectrum, "_BASIS", 12)
    a = wishart(100)
    found = cf.top_eig(operator(a), n=100, max_iterations=400, tol=1e-8)
    true = np.linalg.eigvalsh(a)[-1]
    assert found.iterations > 13
    assert found.converged
    assert found.lower_bounds <= true <= found.upper_bounds
    assert float(found.eigenvalues) == pytest.approx(true, rel=1e-12)


def test_too_few_iterations_are_said():
    a = wishart(100)
    found = cf.top_eig(operator(a), n=100, max_iterations=4)
    assert found.iterations == 5  # and one for the residual
    assert not found.converged
    assert found.lower_bounds <= np.linalg.eigvalsh(a)[-1] <= found.upper_bounds


def test_an_empty_batch():
    found = cf.top_eig(lambda v: v, n=3, batch=(0,), which="both")
    assert found.eigenvalues.shape == (0, 2)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_other_libraries(name):
    library = pytest.importorskip(name)
    a = wishart(30).astype(np.float32)
    make = library.tensor if name == "torch" else library.numpy.asarray
    there, seen = make(a), []

    def matvec(v):
        seen.append((type(v).__module__.partition(".")[0], str(v.dtype)))
        return (there @ v[..., None])[..., 0] if name == "torch" else library.numpy.einsum("ij,j->i", there, v)

    found = cf.top_eig(matvec, n=30, start=make(np.ones(30, np.float32)))
    assert set(seen) <= {("torch", "torch.float32"), ("jax", "float32"), ("jaxlib", "float32")}
    true = np.linalg.eigvalsh(a.astype(np.float64))[-1]
    assert found.converged
    assert float(found.eigenvalues) == pytest.approx(true, rel=1e-6)
    assert found.lower_bounds <= true <= found.upper_bounds
    assert isinstance(found.eigenvectors, np.ndarray)


def test_asymmetry_is_found():
    a = np.stack([wishart(20), wishart(20) + np.triu(np.ones((20, 20)))])
    with pytest.raises(DataError, match="problem 1"):
        cf.top_eig(operator(a), n=20, batch=(2,))


def test_the_operator_may_fail():
    def fails(v):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cf.top_eig(fails, n=4)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({}, ConfigError, "size of the operator"),
        ({"n": 0}, ConfigError, "n = 0"),
        ({"n": 2.0}, TypeError, "n must be a whole number"),
        ({"n": 2, "batch": 3}, TypeError, "batch"),
        ({"n": 2, "batch": (-1,)}, ConfigError, "batch"),
        ({"n": 2, "k": 3}, ConfigError, "k = 3"),
        ({"n": 2, "start": np.zeros(2, int)}, TypeError, "start"),
        ({"n": 2, "start": np.zeros(3)}, ConfigError, "start"),
    ],
)
def test_wrong_arguments(arguments, error, said):
    with pytest.raises(error, match=said):
        cf.top_eig(lambda v: v, **arguments)


@pytest.mark.parametrize(
    ("matvec", "error", "said"),
    [
        (lambda v: v[:1], ConfigError, "keep the shape"),
        (lambda v: v + 1j, TypeError, "complex"),
        (lambda v: None, TypeError, "matvec returned"),
        (lambda v: v.astype(np.float32), TypeError, "float32 for vectors of float64"),
    ],
)
def test_wrong_answers(matvec, error, said):
    with pytest.raises(error, match=said):
        cf.top_eig(matvec, n=3)


def test_a_device_is_refused():
    class OnDevice:
        def __dlpack_device__(self):
            return 2, 0

    with pytest.raises(BackendUnavailable, match="the result of matvec lies on a device"):
        cf.top_eig(lambda v: OnDevice(), n=3)
