"""Largest eigenvalues of a batch by other libraries: each function returns a call from (B, n, n) to (B,).

With a ``device`` the matrices are the library's own arrays there, and so is the result; else they are NumPy's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "cupy_eigsh",
    "cupy_eigvalsh",
    "jax_eigvalsh",
    "numpy_eigvalsh",
    "scipy_eigsh",
    "scipy_eigsh_warm",
    "torch_eigvalsh",
    "torch_lobpcg",
    "torch_lobpcg_warm",
]

Array = NDArray[np.float64]
Solve = Callable[[Array], Array]


def numpy_eigvalsh(*, threads: int) -> Solve:
    """All eigenvalues by LAPACK, matrix after matrix."""
    return lambda a: np.linalg.eigvalsh(a)[:, -1]


def scipy_eigsh(*, threads: int, tol: float) -> Solve:
    """ARPACK from one fixed start vector, matrix after matrix."""
    from scipy.sparse.linalg import eigsh

    def solve(a: Array) -> Array:
        start = np.random.default_rng(0).standard_normal(a.shape[-1])
        return np.array([eigsh(m, k=1, which="LA", tol=tol, v0=start, return_eigenvectors=False)[0] for m in a])

    return solve


def scipy_eigsh_warm(*, threads: int, tol: float) -> Solve:
    """ARPACK along (B, T, n, n), each run beginning with the vector of the step before."""
    from scipy.sparse.linalg import eigsh

    def follow(run: Array) -> list[float]:
        vector, values = np.random.default_rng(0).standard_normal(run.shape[-1]), []
        for matrix in run:
            value, found = eigsh(matrix, k=1, which="LA", tol=tol, v0=vector)
            vector = found[:, 0]
            values.append(value[0])
        return values

    return lambda a: np.array([follow(run) for run in a])


def torch_eigvalsh(*, threads: int = 1, device: str = "") -> Solve:
    """All eigenvalues, batched."""
    import torch

    if device:
        return lambda a: torch.linalg.eigvalsh(a)[:, -1]

    def solve(a: Array) -> Array:
        torch.set_num_threads(threads)
        return torch.linalg.eigvalsh(torch.from_numpy(a))[:, -1].numpy()  # type: ignore[no-any-return,unused-ignore]

    return solve


def torch_lobpcg(*, threads: int = 1, tol: float, device: str = "") -> Solve:
    """Preconditioned conjugate gradients without a preconditioner, batched."""
    import torch

    def top(a: Any) -> Any:
        start = torch.randn(len(a), a.shape[-1], 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return torch.lobpcg(a, k=1, X=start.to(a.device), tol=tol, niter=100)[0][:, 0]

    if device:
        return top

    def solve(a: Array) -> Array:
        torch.set_num_threads(threads)
        return top(torch.from_numpy(a)).numpy()  # type: ignore[no-any-return,unused-ignore]

    return solve


def torch_lobpcg_warm(*, threads: int, tol: float) -> Solve:
    """The same along (B, T, n, n), each step beginning with the vectors of the step before."""
    import torch

    def solve(a: Array) -> Array:
        torch.set_num_threads(threads)
        generator = torch.Generator().manual_seed(0)
        vectors, values = torch.randn(len(a), a.shape[-1], 1, dtype=torch.float64, generator=generator), []
        for t in range(a.shape[1]):
            found, vectors = torch.lobpcg(torch.from_numpy(a[:, t].copy()), k=1, X=vectors, tol=tol, niter=100)
            values.append(found[:, 0].numpy())
        return np.array(values).T

    return solve


def jax_eigvalsh(*, threads: int = 1, device: str = "") -> Solve:
    """All eigenvalues, batched and jitted."""
    import jax

    jax.config.update("jax_enable_x64", True)
    solve: Any = jax.jit(lambda a: jax.numpy.linalg.eigvalsh(a)[:, -1])
    return solve if device else lambda a: np.asarray(solve(a))


def cupy_eigvalsh(*, device: str) -> Solve:
    """All eigenvalues, batched."""
    from catapult_fast.bench.peers_cupy import module

    xp = module()
    return lambda a: xp.linalg.eigvalsh(a)[:, -1]


def cupy_eigsh(*, tol: float, device: str) -> Solve:
    """CuPy's Lanczos, matrix after matrix."""
    import cupy
    from cupyx.scipy.sparse.linalg import eigsh

    return lambda a: cupy.concatenate([eigsh(m, k=1, which="LA", tol=tol, return_eigenvectors=False) for m in a])
