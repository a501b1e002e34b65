"""`top_eig` on a real device, at real sizes, against the CPU and against spectra that are known exactly."""

import numpy as np
import pytest

import catapult_fast as cf
import spectra
from catapult_fast import device_spectrum

pytestmark = pytest.mark.gpu

# Both sides of the layouts: one and two threads a column, several teams and one, beyond 48 KiB, streamed.
SIZES = (1, 2, 8, 16, 17, 33, 64, 96, 97, 150, 160, 161, 256)


@pytest.fixture
def cupy(on_device):
    on_device("cupy")
    on_device("cuda")
    import cupy

    return cupy


def wishart(*shape, seed=0, dtype=np.float64):
    x = np.random.default_rng(seed).standard_normal((*shape, 2 * shape[-1]))
    a = x @ np.swapaxes(x, -1, -2) / shape[-1]
    return ((a + np.swapaxes(a, -1, -2)) / 2).astype(dtype)


def on_host(found):
    return cf.EigenResult(**{name: value.get() for name, value in vars(found).items()})


def check(a, found, true):
    """``true`` has the shape of the bounds, k last."""
    found = on_host(found)
    assert (found.bound == 2).all()
    assert (found.lower_bounds <= true).all()
    assert (true <= found.upper_bounds).all()
    assert found.converged.all()
    wide, v = a.astype(np.float64), found.eigenvectors
    residual = np.linalg.norm(wide @ v - found.eigenvalues[..., None, :] * v, axis=-2)
    norm = np.abs(true).max(axis=-1, keepdims=True)
    assert (np.abs(residual - found.residuals) <= 20 * a.shape[-1] * 2.0**-52 * norm).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", SIZES)
def test_every_spectrum(cupy, n, dtype):
    examples = [spectra.example(name, n, dtype) for name in spectra.SPECTRA]
    a, lam = np.array([e.matrix for e in examples]), np.array([e.eigenvalues for e in examples])
    there = cupy.asarray(a)
    check(a, cf.top_eig(there, which="both"), lam[:, [-1, 0]])
    k = min(2, n)
    check(a, cf.top_eig(there, k=k), lam[:, :k])
    np.testing.assert_array_equal(there.get(), a)


@pytest.mark.parametrize(("count", "n"), [(5000, 8), (2000, 64), (300, 160), (64, 256), (4, 1024)])
def test_many_matrices_against_the_cpu(cupy, count, n):
    a = wishart(count, n)
    there = cf.top_eig(cupy.asarray(a))
    assert all(isinstance(value, cupy.ndarray) for value in vars(there).values())
    here, there = cf.top_eig(a), on_host(there)
    np.testing.assert_allclose(there.eigenvalues, here.eigenvalues, rtol=40 * n * 2.0**-52)
    assert there.converged.all()
    assert (there.lower_bounds <= here.upper_bounds).all()
    assert (here.lower_bounds <= there.upper_bounds).all()


def test_a_large_matrix(cupy):
    a = wishart(2, 2048)
    found = on_host(cf.top_eig(cupy.asarray(a)))
    true = np.array([np.linalg.eigvalsh(matrix)[-1] for matrix in a])
    np.testing.assert_allclose(found.eigenvalues, true, rtol=1e-12)
    assert found.converged.all()
    assert (found.bound == 2).all()


@pytest.mark.parametrize("n", [8, 33, 64, 160, 200])
def test_values_do_not_depend_on_the_batch(cupy, n):
    a = wishart(37, n)
    a[3] = np.nan
    together = on_host(cf.top_eig(cupy.asarray(a), which="both"))
    for place in (0, 4, 36):
        alone = on_host(cf.top_eig(cupy.asarray(a[place]), which="both"))
        for name in ("eigenvalues", "residuals", "iterations", "eigenvectors"):
            np.testing.assert_array_equal(getattr(together, name)[place], getattr(alone, name), err_msg=name)


@pytest.mark.parametrize("n", [12, 200])
def test_the_last_method_is_right(cupy, n, monkeypatch):
    everything = lambda found, request, xp: xp.arange(len(found.norm))  # noqa: E731
    monkeypatch.setattr(device_spectrum.ends, "open_matrices", everything)
    a = wishart(3, n)
    check(a, cf.top_eig(cupy.asarray(a), k=2), np.linalg.eigvalsh(a)[:, :-3:-1])


def test_a_point_where_the_factorization_fails(cupy):
    """What cuSOLVER leaves of a matrix that is not positive definite proves nothing."""
    from catapult_fast.kernels.dense import proof_on_cupy

    a = cupy.asarray(wishart(5, 200) / 4.0)
    top = cupy.linalg.eigvalsh(a)[:, -1]
    norm = cupy.sqrt((a * a).sum(axis=(1, 2)))
    assert (proof_on_cupy.bound(a, top + 1e-9, norm, cupy) <= top + 2e-9).all()
    for below in (1e-9, 1e-3, 0.3):
        assert (proof_on_cupy.bound(a, top - below, norm, cupy) >= top).all()


def test_operators(cupy):
    a = cupy.asarray(wishart(4, 100))
    product = lambda v: cupy.einsum("bij,bj->bi", a, v)  # noqa: E731
    found = cf.top_eig(product, n=100, batch=(4,), start=cupy.zeros(100))
    assert isinstance(found.eigenvectors, cupy.ndarray)
    cupy.testing.assert_allclose(found.eigenvalues, cupy.linalg.eigvalsh(a)[:, -1], rtol=1e-12)
    assert found.converged.all()


@pytest.mark.parametrize("name", ["torch", "numba"])
def test_other_libraries_share_their_memory(cupy, name):
    a = wishart(3, 20)
    if name == "torch":
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("this torch has no CUDA")
        there = torch.tensor(a, device="cuda")
    else:
        from numba import cuda

        there = cuda.to_device(a)
    found = cf.top_eig(there)
    assert isinstance(found.eigenvalues, cupy.ndarray)
    np.testing.assert_allclose(found.eigenvalues.get(), cf.top_eig(a).eigenvalues, rtol=1e-13)


def test_another_stream(cupy):
    a = cupy.asarray(wishart(50, 64))
    plain = cf.top_eig(a)
    with cupy.cuda.Stream(non_blocking=True):
        other = cf.top_eig(a)
    cupy.testing.assert_array_equal(plain.eigenvalues, other.eigenvalues)
