"""The twin itself: its derivatives against finite differences, and the exact identities of the linear model."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

import reference as twin

SHAPES = [(16, 3, 5, 1), (16, 4, 3, 3), (2, 3, 4, 3), (1, 1, 1, 1), (40, 5, 2, 2)]  # n, d, m, k
HOWS = [
    {"loss": "mse"},
    {"loss": "mse", "loss_normalization": "sample_output", "p": 0.5},
    {"loss": "cross_entropy", "p": 1.0},
]


def problem(n, d, m, k, *, seed=0, p=0.0, kind="gaussian"):
    return *twin.draw_weights(seed, n, d, k, p=p), *twin.draw_data(seed, m, d, k, kind=kind)


def flat(V, U):
    return np.concatenate([V.ravel(), U.ravel()])


def unflat(theta, V, U):
    return theta[: V.size].reshape(V.shape), theta[V.size :].reshape(U.shape)


def central(function, theta, step=1e-5):
    """Derivatives of an array-valued function along every coordinate, second-order accurate (last axis)."""
    columns = [(function(theta + e) - function(theta - e)) / (2 * step) for e in step * np.eye(theta.size)]
    return np.stack(columns, axis=-1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("how", HOWS, ids=["mse", "mse-per-output-uv", "cross-entropy-mean-field"])
class TestDerivatives:
    def test_gradient_is_the_slope_of_the_loss(self, shape, how):
        V, U, X, Y = problem(*shape, p=how.get("p", 0.0), kind="one-hot" if how["loss"] != "mse" else "gaussian")
        rest = {name: value for name, value in how.items() if name != "p"}

        def value(theta):
            return twin.loss_value(twin.predict(*unflat(theta, V, U), X, p=how.get("p", 0.0)), Y, **rest)

        slope = central(value, flat(V, U))
        assert_allclose(flat(*twin.gradient(V, U, X, Y, **how)), slope, rtol=1e-6, atol=1e-8)

    def test_hessian_is_the_slope_of_the_gradient(self, shape, how):
        V, U, X, Y = problem(*shape, p=how.get("p", 0.0), kind="one-hot" if how["loss"] != "mse" else "gaussian")

        def slope(theta):
            return flat(*twin.gradient(*unflat(theta, V, U), X, Y, **how))

        dense = twin.hessian(V, U, X, Y, **how)
        assert_allclose(dense.matrix, central(slope, flat(V, U)), rtol=1e-6, atol=1e-8)
        assert_allclose(dense.top, np.linalg.eigvalsh(dense.matrix).max(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_jacobian_is_the_slope_of_the_outputs(shape, p):
    V, U, X, _ = problem(*shape, p=p)

    def outputs(theta):
        return twin.predict(*unflat(theta, V, U), X, p=p).ravel()

    assert_allclose(twin.jacobian(V, U, X, p=p), central(outputs, flat(V, U)), rtol=1e-7, atol=1e-9)


def test_cross_entropy_does_not_overflow():
    f, Y = np.array([[1e4, 0.0], [0.0, -1e4]]), np.eye(2)
    assert_allclose(twin.loss_value(f, Y, loss="cross_entropy"), 5e3, rtol=1e-15)


def test_accuracy_counts_a_zero_output_as_wrong():
    assert twin.accuracy(np.array([[0.0], [2.0], [-1.0], [3.0]]), np.array([[1.0], [1.0], [-1.0], [-1.0]])) == 0.5


# The Gram closure ---------------------------------------------------------------------------------------------------


def gram(V, U, p=0.0):
    Z = np.hstack([V, U])
    return Z.T @ Z / twin.effective_width(V, p)


def right_factor(E, rate):
    """I + rate * [[0, E], [E^T, 0]]."""
    k, d = E.shape
    factor = np.eye(k + d)
    factor[:k, k:] += rate * E
    factor[k:, :k] += rate * E.T
    return factor


@pytest.mark.parametrize("n", [16, 64, 1000])
@pytest.mark.parametrize(("d", "k"), [(1, 1), (3, 1), (5, 1), (2, 2), (4, 3)])
@pytest.mark.parametrize("kappa", [0.5, 1.5, 2.5])
def test_gram_matrix_closes(n, d, k, kappa):
    """C-P1: the k + d columns' Gram matrix evolves by itself; runs that converge agree to 1e-12."""
    V, U, X, Y = problem(n, d, 2 * d + 1, k, seed=3)
    eta, steps = kappa / twin.ntk(V, U, X).top, 300
    path = twin.train(V, U, X, Y, eta, steps)
    S, B = X.T @ X / len(X), Y.T @ X / len(X)
    G = gram(V, U)
    for _ in range(steps):
        E = np.sqrt(n) * G[:k, k:] @ S - B
        factor = right_factor(E, -eta / np.sqrt(n))
        G = factor @ G @ factor
    assert path.loss[-1] < path.loss[0]
    assert_allclose(G, gram(path.V[-1], path.U[-1]), rtol=0, atol=1e-12 * np.abs(G).max())


@pytest.mark.parametrize("n", [16, 1000])
@pytest.mark.parametrize(("d", "k"), [(1, 1), (4, 1), (2, 2), (4, 3)])
@pytest.mark.parametrize("kappa", [1.5, 2.5])
def test_determinant(n, d, k, kappa):
    """C-P4: det G shrinks by prod_i (1 - eta^2 s_i^2 / n)^2 a step, s_i the singular values of dL/dW."""
    V, U, X, Y = problem(n, d, 2 * d + 1, k, seed=5)
    eta = kappa / twin.ntk(V, U, X).top
    path = twin.train(V, U, X, Y, eta, 20)
    for t in range(20):
        s = np.linalg.svd(twin.predictor_gradient(path.V[t], path.U[t], X, Y), compute_uv=False)
        before, after = np.linalg.det(gram(path.V[t], path.U[t])), np.linalg.det(gram(path.V[t + 1], path.U[t + 1]))
        shrink = np.prod(1 - eta**2 * s**2 / n) ** 2
        assert_allclose(after, shrink * before, rtol=0, atol=1e-11 * max(before, after))


@pytest.mark.parametrize("n", [7, 100])
@pytest.mark.parametrize(("m", "d"), [(1, 3), (5, 3), (9, 2)])
@pytest.mark.parametrize("kappa", [1.4, 2.5])
def test_function_space_updates(n, m, d, kappa):
    """C-P3: error and tangent kernel after a step, from function-space quantities and the two moments alone."""
    V, U, X, Y = problem(n, d, m, 1, seed=7)
    eta = kappa / twin.ntk(V, U, X).top
    path = twin.train(V, U, X, Y, eta, 5)
    for t in range(5):
        V, U, f = path.V[t][:, 0], path.U[t], path.f[t][:, 0]
        r, theta, next_r = f - Y[:, 0], twin.ntk(path.V[t], U, X).matrix, path.f[t + 1][:, 0] - Y[:, 0]
        zeta = r @ X / m
        expected = r - eta * theta @ r + eta**2 / n * (X @ zeta) * np.mean(f * r)
        assert_allclose(next_r, expected, rtol=0, atol=1e-12 * (abs(r) + abs(next_r)).max())
        slope, overlap = np.outer(X @ zeta, f), X @ X.T
        first = slope + slope.T + 2 * overlap * np.mean(f * r)
        second = (V @ V) * np.outer(X @ zeta, X @ zeta) + np.sum((U @ zeta) ** 2) * overlap
        expected = theta - eta / (n * m) * first + eta**2 / (n**2 * m) * second
        actual = twin.ntk(path.V[t + 1], path.U[t + 1], X).matrix
        assert_allclose(actual, expected, rtol=0, atol=1e-13 * (abs(theta) + abs(actual)).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_norm_identity(shape, p):
    """C-P5 with two layers: |theta'|^2 - |theta|^2 = -(4 eta/m) f.r + (eta^2/m) r^T Theta r."""
    V, U, X, Y = problem(*shape, p=p, seed=2)
    theta, m = twin.ntk(V, U, X, p=p), len(X)
    eta = 2.5 / theta.top
    path = twin.train(V, U, X, Y, eta, 1, p=p)
    r = (path.f[0] - Y).ravel()
    change = -4 * eta / m * path.f[0].ravel() @ r + eta**2 / m * r @ theta.matrix @ r
    assert_allclose(np.diff(path.weight_norm), change, rtol=0, atol=1e-14 * path.weight_norm.max())


def test_one_sample_map():
    """C-P2: the closed map of the tangent kernel and the residual, on the size of its terms."""
    for n in (1, 4, 1000):
        V, U, X, Y = problem(n, 1, 1, 1, seed=11)
        X = np.ones((1, 1))
        lam = twin.ntk(V, U, X).top
        eta, y = 2.5 / lam, Y[0, 0]
        path = twin.train(V, U, X, Y, eta, 1)
        f, r = path.f[0, 0, 0], path.f[0, 0, 0] - y
        next_r = (1 - eta * lam + eta**2 * r * f / n) * r
        next_lam = lam + eta**2 * r**2 * lam / n - 4 * eta * r * f / n
        scale = abs(r) * (1 + eta * lam + eta**2 * abs(r * f) / n) + abs(y) + np.sqrt(n) * next_lam / 2
        assert abs(path.f[1, 0, 0] - y - next_r) <= 1e-13 * scale
        assert abs(twin.ntk(path.V[1], path.U[1], X).top - next_lam) <= 1e-13 * max(lam, next_lam)


# Reduced spectra ----------------------------------------------------------------------------------------------------


def in_span(X):
    """sigma and Q of X/sqrt(m), rank only."""
    _, sigma, Qt = np.linalg.svd(X / np.sqrt(len(X)), full_matrices=False)
    keep = sigma > max(X.shape) * np.finfo(float).eps * sigma[0]
    return sigma[keep], Qt[keep].T


SPECTRA = [(n, 3, 5, 1) for n in (1, 2, 3, 4, 5, 20)] + [(n, 4, 2, 3) for n in (1, 2, 4, 5, 7, 12)] + [(9, 1, 1, 1)]


@pytest.mark.parametrize("shape", [*SHAPES, *SPECTRA])
@pytest.mark.parametrize("loss_normalization", ["sample", "sample_output"])
def test_tangent_kernel_is_one_small_problem(shape, loss_normalization):
    """Top eigenvalue, trace and rank from S^(1/2) (U^T U + mu I) S^(1/2), mu the top eigenvalue of V^T V."""
    p, (_, _, m, k) = 0.5, shape
    V, U, X, _ = problem(*shape, p=p)
    dense = twin.ntk(V, U, X, p=p, loss_normalization=loss_normalization)
    sigma, Q = in_span(X)
    root, n_eff = U @ Q * sigma, twin.effective_width(V, p)
    blocks = [root.T @ root + mu * np.diag(sigma**2) for mu in np.linalg.eigvalsh(V.T @ V)]
    small = np.sort(np.concatenate([np.linalg.eigvalsh(block) for block in blocks])) / n_eff
    small = small / (k if loss_normalization == "sample_output" else 1)
    padded = np.concatenate([np.zeros(m * k - small.size), small])
    assert_allclose(np.linalg.eigvalsh(dense.matrix), padded, rtol=0, atol=1e-14 * dense.top)
    assert_allclose(dense.top, small[-1], rtol=1e-14)
    assert_allclose(np.trace(dense.matrix), small.sum(), rtol=1e-14)


def reduced_hessian(v, u, rho, sigma, n_eff, weight_decay, curvature):
    """Matrix of the operator on K = [K_v | K_u] of the compressed network.

    ``curvature`` maps a change of the fitted values (k, r) to the change of rho; the identity for squared errors.
    """
    q, k = v.shape

    def apply(K):
        K_v, K_u = K[:, :k], K[:, k:]
        P = curvature(K_v.T @ u + v.T @ (K_u * sigma))
        H_v = u @ P.T + K_u * sigma @ rho.T / np.sqrt(n_eff)
        H_u = (v @ P + K_v @ rho / np.sqrt(n_eff)) * sigma
        return np.hstack([H_v, H_u]) + weight_decay * K

    size = q * (k + len(sigma))
    return np.stack([apply(e.reshape(q, -1)).ravel() for e in np.eye(size)], axis=1)


@pytest.mark.parametrize("shape", SPECTRA)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_whole_hessian_spectrum_is_width_free(shape, weight_decay, loss):
    """C-P7: compressed spectrum, +-s_i/sqrt(n_eff) with multiplicity n - q, and zeros, at the start and later."""
    n, _, m, k = shape
    p = 0.5
    V, U, X, Y = problem(*shape, p=p, kind="one-hot" if loss == "cross_entropy" else "gaussian")
    path = twin.train(V, U, X, Y, 2.6 / twin.ntk(V, U, X, p=p).top, 3, p=p, loss=loss)
    sigma, Q = in_span(X)
    Phi, n_eff = X @ Q / sigma / np.sqrt(m), twin.effective_width(V, p)
    for V, U, f in ((path.V[t], path.U[t], path.f[t]) for t in (0, 3)):
        rho = twin.residual(f, Y, loss).T @ Phi / np.sqrt(m)
        root = np.linalg.qr(np.hstack([V, U @ Q]))[1] / np.sqrt(n_eff)
        output_curvature = twin._output_curvature(f, loss)

        def curvature(P, B=output_curvature):
            change = (Phi @ P.T).ravel()  # per sample, to within sqrt(m), which cancels
            return (B @ change).reshape(m, k).T @ Phi

        small = reduced_hessian(root[:, :k], root[:, k:] * sigma, rho, sigma, n_eff, weight_decay, curvature)
        assert_allclose(small, small.T, rtol=0, atol=1e-14 * np.abs(small).max())
        dense = twin.hessian(V, U, X, Y, p=p, loss=loss, weight_decay=weight_decay)
        s = np.linalg.svd(rho * sigma, compute_uv=False) / np.sqrt(n_eff)
        complement = np.tile(np.concatenate([s, -s]), n - len(root)) + weight_decay
        found = np.concatenate([np.linalg.eigvalsh(small), complement])
        zeros = np.full(len(dense.matrix) - found.size, weight_decay)
        expected = np.linalg.eigvalsh(dense.matrix)
        assert_allclose(np.sort(np.concatenate([found, zeros])), expected, rtol=0, atol=1e-13 * abs(expected).max())
        assert_allclose(np.linalg.eigvalsh(small)[-1], dense.top, rtol=1e-13)
        if not weight_decay and loss == "mse":
            assert_allclose(np.trace(dense.matrix), np.trace(twin.ntk(V, U, X, p=p).matrix), rtol=1e-13)


# How a member ends --------------------------------------------------------------------------------------------------


def ending(losses, status, steps):
    return twin._summary(np.array(losses, dtype=float), status, steps)


LABELS = {
    "falls throughout": ([4.0, *([1.0] * 20)], twin.DONE, twin.LAZY),
    "rises within tolerance, then falls": ([4.0, 4.000003, *([1.0] * 20)], twin.DONE, twin.LAZY),
    "rises, then falls": ([4.0, 5.0, *([1.0] * 20)], twin.DONE, twin.CATAPULT),
    "rises and stays up": ([4.0, *([5.0] * 20)], twin.DONE, twin.MARGINAL),
    "falls and comes back late": ([4.0, *([1.0] * 18), 4.0, 1.0], twin.DONE, twin.MARGINAL),
    "comes back before the last tenth": ([4.0, *([1.0] * 17), 4.0, 1.0, 1.0], twin.DONE, twin.LAZY),
    "over the bound": ([4.0, 9.0, 1e9], twin.OVER_BOUND, twin.DIVERGENT),  # stopped early
    "not finite": ([4.0, 9.0, np.nan], twin.NOT_FINITE, twin.DIVERGENT),
    "starts at a minimum": ([4.0], twin.CONVERGED, twin.LAZY),
    "starts without loss": ([0.0], twin.CONVERGED, twin.UNDECIDED),
    "converges early": ([4.0, 7.0, 1.0], twin.CONVERGED, twin.CATAPULT),
}


@pytest.mark.parametrize("name", LABELS)
def test_phase_labels(name):
    losses, status, label = LABELS[name]
    end = ending(losses, status, 20)
    assert twin.phase(end, losses[0], 0.1, steps=20) == label
    assert end.n_steps == len(losses) - 1


def test_undecided_members():
    short = ending([4.0, 1.0, 1.0], twin.DONE, 2)
    assert twin.phase(short, 4.0, 0.1, steps=2) == twin.UNDECIDED
    still = ending([4.0] * 21, twin.DONE, 20)
    assert twin.phase(still, 4.0, 0.0, steps=20) == twin.UNDECIDED
    assert twin.phase(still, 4.0, np.nan, steps=20) == twin.UNDECIDED


def test_late_maximum_counts_the_last_tenth_only():
    losses = np.arange(21.0)[::-1]
    end = ending(losses, twin.DONE, 20)
    assert (end.max_loss, end.max_loss_step, end.late_max_loss, end.final_loss) == (20.0, 0, 1.0, 0.0)
    assert np.isnan(ending([4.0, 1e9], twin.OVER_BOUND, 20).late_max_loss)


def test_three_endings_of_one_network():
    """Small rates converge, middling ones run out of steps, large ones leave the bound."""
    V, U, X, Y = problem(64, 3, 5, 1, seed=1)
    top = twin.ntk(V, U, X).top
    ends = []
    for kappa, steps in [(1.0, 2000), (1.0, 20), (6.0, 200)]:
        path = twin.train(V, U, X, Y, kappa / top, steps)
        ends.append(twin.outcome(path, X, Y, kappa / top))
    assert [end.status for end in ends] == [twin.CONVERGED, twin.DONE, twin.OVER_BOUND]
    assert ends[0].n_steps < 2000
    assert ends[1].n_steps == 20
    assert 0 < ends[2].n_steps < 200
    without = twin.outcome(path, X, Y, 6.0 / top, diverged=None)
    assert without.status == twin.NOT_FINITE
    assert without.n_steps > ends[2].n_steps


def test_unstable_minimum_is_not_convergence():
    """At an exact minimum with eta * lam > 2 the gradient vanishes, but the member has not converged."""
    V, U, X, _ = problem(64, 3, 5, 1, seed=1)
    Y, top = twin.predict(V, U, X), twin.ntk(V, U, X).top
    assert twin.has_converged(V, U, X, Y, 1.99 / top, 1e-9)
    assert not twin.has_converged(V, U, X, Y, 2.01 / top, 1e-9)


# The compressed recursion -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4, 64])
@pytest.mark.parametrize("k", [1, 2])
def test_high_precision_recursion_is_the_same_training(n, k):
    """From the same start, 40 steps of explicit weights and of the compressed root agree to rounding."""
    V, U, X, Y = problem(n, 3, 5, k, seed=4)
    eta = 1.5 / twin.ntk(V, U, X).top
    path = twin.train(V, U, X, Y, eta, 40)
    sigma, Q, T, L_perp = twin.data_basis_mp(X, Y, digits=40)
    root = twin.root_in_span_mp(np.hstack([V, U]), Q, n, digits=40)
    end = twin.compressed_mp(root, None, sigma, T, eta, n, 40, digits=40)
    assert_allclose(float(end.loss + L_perp), path.loss[-1], rtol=1e-12)
    assert_allclose(float(end.lam), twin.ntk(path.V[-1], path.U[-1], X).top, rtol=1e-12)
    assert_allclose(float(end.residual) ** 2 / 2, float(end.loss), rtol=1e-15)


def test_high_precision_recursion_is_left_invariant():
    """Orthogonal combinations of the hidden units change nothing when digits do not run out."""
    V, U, X, Y = problem(4, 3, 5, 1, seed=4)
    sigma, Q, T, _ = twin.data_basis_mp(X, Y, digits=60)
    columns, signs = np.hstack([V, U]), np.array([[1.0], [-1.0], [1.0], [1.0]])
    ends = []
    for hidden in (columns, signs * columns[[1, 2, 0, 3]]):
        root = twin.root_in_span_mp(hidden, Q, 4, digits=60)
        ends.append(twin.compressed_mp(root, None, sigma, T, 0.3, 4, 20, digits=60))
    assert_allclose(float(abs(ends[0].lam - ends[1].lam)), 0, atol=1e-50)
    assert_allclose(float(abs(ends[0].residual - ends[1].residual)), 0, atol=1e-50)
