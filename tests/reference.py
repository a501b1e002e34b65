"""The naive twin: two-layer linear networks with every weight written out.

This file is the specification of the linear sweeps. It is written to be read, not to be fast, imports nothing of the
package and draws its own weights. Shapes: X (m, d), Y (m, k), V (n, k), U (n, d); all quantities are dimensionless.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

DONE, CONVERGED, OVER_BOUND, NOT_FINITE = 1, 2, 3, 4
UNDECIDED, LAZY, CATAPULT, DIVERGENT, MARGINAL = 0, 1, 2, 3, 4


# Inputs -------------------------------------------------------------------------------------------------------------


def draw_weights(seed, n, d, k, *, p=0.0, sigma_w=1.0):
    """Readout V (n, k) and input weights U (n, d), independent N(0, sigma_w^2 / n^p)."""
    rng = np.random.default_rng([seed, n, d, k])
    scale = sigma_w / n ** (p / 2)
    return scale * rng.standard_normal((n, k)), scale * rng.standard_normal((n, d))


def draw_data(seed, m, d, k, *, kind="gaussian", rank=None):
    """Gaussian inputs (of the given rank) with Gaussian, +-1 or one-hot targets."""
    rng = np.random.default_rng([seed, m, d, k, 1])
    X = rng.standard_normal((m, d))
    if rank is not None:
        X = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, d)) / np.sqrt(rank)
    if kind == "signs":
        return X, rng.choice([-1.0, 1.0], size=(m, k))
    if kind == "one-hot":
        return X, np.eye(k)[rng.integers(k, size=m)]
    return X, rng.standard_normal((m, k))


# The network, its loss and its gradient -----------------------------------------------------------------------------


def effective_width(V, p):
    return len(V) ** (1.0 - p)


def predict(V, U, X, *, p=0.0):
    """f(x) = n_eff^(-1/2) V^T U x for every row x of X: (m, k)."""
    return X @ U.T @ V / np.sqrt(effective_width(V, p))


def count(f, loss_normalization):
    """What the loss is divided by: samples, or samples times outputs."""
    m, k = f.shape
    return {"sample": m, "sample_output": m * k}[loss_normalization]


def softmax(f):
    weights = np.exp(f - f.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def residual(f, Y, loss):
    """Derivative of a sample's own loss with respect to its outputs."""
    return f - Y if loss == "mse" else softmax(f) - Y


def loss_value(f, Y, *, loss="mse", loss_normalization="sample"):
    if loss == "mse":
        return np.sum((f - Y) ** 2) / (2 * count(f, loss_normalization))
    top = f.max(axis=1)
    log_sum = top + np.log(np.sum(np.exp(f - top[:, None]), axis=1))
    return np.mean(log_sum - np.sum(Y * f, axis=1))


def predictor_gradient(V, U, X, Y, *, p=0.0, loss="mse", loss_normalization="sample"):
    """dL/dW (k, d) for the linear predictor W = V^T U / sqrt(n_eff)."""
    f = predict(V, U, X, p=p)
    return residual(f, Y, loss).T @ X / count(f, loss_normalization)


def gradient(V, U, X, Y, *, p=0.0, loss="mse", loss_normalization="sample"):
    """dL/dV and dL/dU by the chain rule through W."""
    E = predictor_gradient(V, U, X, Y, p=p, loss=loss, loss_normalization=loss_normalization)
    prefactor = 1 / np.sqrt(effective_width(V, p))
    return prefactor * U @ E.T, prefactor * V @ E


def accuracy(f, Y):
    """Share of samples labelled right: argmax, or for one output the sign, zero being wrong."""
    if Y.shape[1] == 1:
        return np.mean(np.sign(f) == Y)
    return np.mean(f.argmax(axis=1) == Y.argmax(axis=1))


# Training -----------------------------------------------------------------------------------------------------------


class Trajectory(NamedTuple):
    """Values at the steps 0, 1, .., steps (first axis); test values are NaN without test data."""

    V: np.ndarray
    U: np.ndarray
    f: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray
    test_loss: np.ndarray
    test_accuracy: np.ndarray
    weight_norm: np.ndarray


def train(
    V,
    U,
    X,
    Y,
    eta,
    steps,
    *,
    p=0.0,
    momentum=0.0,
    weight_decay=0.0,
    schedule=None,
    batches=None,
    loss="mse",
    loss_normalization="sample",
    X_test=None,
    Y_test=None,
):
    """Train with every weight written out and keep the whole history.

    ``batches`` (steps, b) holds the sample indices of each step's minibatch; None is the full batch. Losses are those
    of the whole training set.
    """
    schedule = np.ones(steps) if schedule is None else schedule
    how = {"loss": loss, "loss_normalization": loss_normalization}
    V, U = V.copy(), U.copy()
    P_V, P_U = np.zeros_like(V), np.zeros_like(U)
    history = []
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(steps + 1):
            history.append(_observe(V, U, X, Y, X_test, Y_test, p, how))
            if t == steps:
                break
            rows = slice(None) if batches is None else batches[t]
            g_V, g_U = gradient(V, U, X[rows], Y[rows], p=p, **how)
            g_V, g_U = g_V + weight_decay * V, g_U + weight_decay * U
            P_V = momentum * P_V - eta * schedule[t] * g_V
            P_U = momentum * P_U - eta * schedule[t] * g_U
            V, U = V + P_V, U + P_U
    return Trajectory(*(np.array(column) for column in zip(*history, strict=True)))


def _observe(V, U, X, Y, X_test, Y_test, p, how):
    f = predict(V, U, X, p=p)
    test_loss = test_accuracy = np.nan
    if X_test is not None:
        f_test = predict(V, U, X_test, p=p)
        test_loss, test_accuracy = loss_value(f_test, Y_test, **how), accuracy(f_test, Y_test)
    weight_norm = np.sum(V**2) + np.sum(U**2)
    return V, U, f, loss_value(f, Y, **how), accuracy(f, Y), test_loss, test_accuracy, weight_norm


# Curvature ----------------------------------------------------------------------------------------------------------


class Spectrum(NamedTuple):
    matrix: np.ndarray
    top: float


def jacobian(V, U, X, *, p=0.0):
    """d f / d (V, U) as (m*k, n*k + n*d): sample-major rows, V before U, both row-major."""
    m, k = len(X), V.shape[1]
    hidden = X @ U.T
    by_V = np.einsum("ai,oj->aoij", hidden, np.eye(k))
    by_U = np.einsum("io,al->aoil", V, X)
    both = np.concatenate([by_V.reshape(m * k, -1), by_U.reshape(m * k, -1)], axis=1)
    return both / np.sqrt(effective_width(V, p))


def ntk(V, U, X, *, p=0.0, loss_normalization="sample"):
    """Tangent kernel (m*k, m*k), divided by what the loss is divided by, and its largest eigenvalue."""
    J = jacobian(V, U, X, p=p)
    f = np.empty((len(X), V.shape[1]))
    matrix = J @ J.T / count(f, loss_normalization)
    return Spectrum(matrix, np.linalg.eigvalsh(matrix)[-1])


def hessian(V, U, X, Y, *, p=0.0, loss="mse", loss_normalization="sample", weight_decay=0.0):
    """Second derivatives of the loss with respect to (V, U): Gauss-Newton part plus residual part."""
    (n, k), d = V.shape, U.shape[1]
    f = predict(V, U, X, p=p)
    J = jacobian(V, U, X, p=p)
    matrix = J.T @ _output_curvature(f, loss) @ J / count(f, loss_normalization)
    # the only second derivatives of f mix V[i, o] with U[i, l]: they give dL/dW[o, l] / sqrt(n_eff)
    E = predictor_gradient(V, U, X, Y, p=p, loss=loss, loss_normalization=loss_normalization)
    mixed = np.kron(np.eye(n), E / np.sqrt(effective_width(V, p)))
    matrix[: n * k, n * k :] += mixed
    matrix[n * k :, : n * k] += mixed.T
    matrix += weight_decay * np.eye(n * (k + d))
    return Spectrum(matrix, np.linalg.eigvalsh(matrix)[-1])


def _output_curvature(f, loss):
    """Block-diagonal second derivative of the samples' losses with respect to their outputs."""
    m, k = f.shape
    if loss == "mse":
        return np.eye(m * k)
    curvature = np.zeros((m * k, m * k))
    for a, q in enumerate(softmax(f)):
        curvature[a * k : (a + 1) * k, a * k : (a + 1) * k] = np.diag(q) - np.outer(q, q)
    return curvature


# How a member ends --------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    status: int
    n_steps: int
    max_loss: float
    max_loss_step: int
    late_max_loss: float
    final_loss: float


def outcome(
    path, X, Y, eta, *, p=0.0, loss="mse", loss_normalization="sample", diverged=1e8, converged=1e-9, judge=True
):
    """How a member with stop rules ends, from its trajectory without them.

    ``judge=False`` never looks for convergence (minibatches, weight decay).
    """
    steps = len(path.loss) - 1
    status, n_steps = DONE, steps
    for t in range(steps + 1):
        V, U = path.V[t], path.U[t]
        if not (np.isfinite(V).all() and np.isfinite(U).all()):
            status, n_steps = NOT_FINITE, t
        elif diverged is not None and path.weight_norm[t] > diverged * path.weight_norm[0]:
            status, n_steps = OVER_BOUND, t
        elif judge and converged is not None:
            how = {"p": p, "loss": loss, "loss_normalization": loss_normalization}
            if has_converged(V, U, X, Y, eta, converged, **how):
                status, n_steps = CONVERGED, t
        if status != DONE:
            break
    return _summary(path.loss[: n_steps + 1], status, steps)


@np.errstate(over="ignore", invalid="ignore")
def has_converged(V, U, X, Y, eta, tolerance, *, p=0.0, loss="mse", loss_normalization="sample"):
    """Gradient of the linear predictor at most tolerance * (1 + |X^T Y / m|), and eta * lam <= 2 for squared errors.

    Below min(k, r) hidden units the fit is limited by its rank and the parameter gradient is judged instead.
    """
    how = {"p": p, "loss": loss, "loss_normalization": loss_normalization}
    if len(V) < min(V.shape[1], np.linalg.matrix_rank(X)):
        slope = np.sqrt(sum(np.sum(g**2) for g in gradient(V, U, X, Y, **how)))
    else:
        slope = np.linalg.norm(predictor_gradient(V, U, X, Y, **how))
    if not slope <= tolerance * (1 + np.linalg.norm(X.T @ Y / count(Y, loss_normalization))):
        return False
    return loss != "mse" or eta * ntk(V, U, X, p=p, loss_normalization=loss_normalization).top <= 2


def _summary(losses, status, steps):
    n_steps = len(losses) - 1
    times = np.arange(n_steps + 1)
    seen = ~np.isnan(losses)
    late = losses[seen & (10 * times > 9 * steps)]
    finite = losses[np.isfinite(losses)]
    max_loss_step = int(times[seen][np.argmax(losses[seen])])
    late_max_loss = late.max() if late.size else np.nan
    if status == CONVERGED:
        late_max_loss = losses[-1]
    return Outcome(status, n_steps, losses[max_loss_step], max_loss_step, late_max_loss, finite[-1])


def phase(end, initial_loss, eta, *, steps):
    """Label of a member, read off its loss alone."""
    if end.status in (OVER_BOUND, NOT_FINITE):
        return DIVERGENT
    if initial_loss == 0 or eta == 0 or np.isnan(eta):
        return UNDECIDED
    if steps < 10 and end.status != CONVERGED:
        return UNDECIDED
    if end.status == CONVERGED and end.n_steps == 0:
        return LAZY
    if not end.late_max_loss < initial_loss:
        return MARGINAL
    return LAZY if end.max_loss <= initial_loss * (1 + 1e-6) else CATAPULT


# The compressed recursion at high precision -------------------------------------------------------------------------


class Limit(NamedTuple):
    """End of a compressed run: reduced loss |F - T|^2 / 2, |F - T| and the largest tangent-kernel eigenvalue."""

    loss: float
    residual: float
    lam: float


def data_basis_mp(X, Y, *, digits=80):
    """sigma (r,), Q (d, r), T (k, r), L_perp of full-rank data, as arrays of mpmath numbers.

    X/sqrt(m) = Phi diag(sigma) Q^T, T = Y^T Phi/sqrt(m), L_perp the loss that no linear predictor removes.
    """
    import mpmath

    with mpmath.workdps(digits):
        X, Y, m = _exact(X), _exact(Y), mpmath.mpf(len(X))
        left, sigma, right = mpmath.svd_r(mpmath.matrix(X.tolist()) / mpmath.sqrt(m))
        Phi, Q = np.array(left.tolist()), np.array(right.tolist()).T
        T = Y.T @ Phi / mpmath.sqrt(m)
        rest = Y - mpmath.sqrt(m) * Phi @ T.T
        return np.array(list(sigma)), Q, T, (rest**2).sum() / (2 * m)


def root_in_span_mp(columns, Q, n_eff, *, digits=80):
    """Root [v | u/sigma] over sqrt(n_eff) from unscaled columns [V | U] in input coordinates; no triangle needed."""
    import mpmath

    with mpmath.workdps(digits):
        columns, k = _exact(columns), columns.shape[1] - len(Q)
        return np.hstack([columns[:, :k], columns[:, k:] @ Q]) / mpmath.sqrt(mpmath.mpf(n_eff))


def compressed_mp(root, F, sigma, T, eta, n_eff, steps, *, digits=80):
    """Gradient descent on the mean squared error from the root [v | u/sigma], in ``digits`` decimal digits.

    ``root`` (q, k + r) is any root over sqrt(n_eff); it need not be triangular. ``F`` (k, r) are the fitted values of
    the start, or None to form them.
    """
    import mpmath

    with mpmath.workdps(digits):
        root, sigma, T = _exact(root), _exact(sigma), _exact(T)
        k, eta, scale = len(T), mpmath.mpf(eta), mpmath.sqrt(mpmath.mpf(n_eff))
        v, u = root[:, :k], root[:, k:] * sigma
        F = scale * v.T @ u if F is None else _exact(F)
        for _ in range(steps):
            rho = F - T
            dv, du = -eta / scale * u @ rho.T, -eta / scale * v @ (rho * sigma**2)
            F = F + scale * (dv.T @ (u + du) + v.T @ du)
            v, u = v + dv, u + du
        size = mpmath.sqrt(((F - T) ** 2).sum())
        tangent = u.T @ u + _top_mp(v.T @ v) * np.diag(sigma**2)
        return Limit(size**2 / 2, size, _top_mp(tangent))


def rotated_root_float64(root, sigma, T, eta, n_eff, steps, *, seed=0, dtype=np.float64):
    """The same recursion in machine arithmetic from a rotated root, F formed as a product: it loses sqrt(n) * eps."""
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(root), len(root))))[0]
    root = (rotation @ root).astype(dtype)
    sigma, T, scale = sigma.astype(dtype), T.astype(dtype), dtype(np.sqrt(n_eff))
    k, rate = len(T), dtype(eta) / scale
    v, u = root[:, :k], root[:, k:] * sigma
    for _ in range(steps):
        rho = scale * v.T @ u - T
        v, u = v - rate * u @ rho.T, u - rate * v @ (rho * sigma**2)
    size = np.linalg.norm((scale * v.T @ u - T).astype(np.float64))
    v, u, sigma = v.astype(np.float64), u.astype(np.float64), sigma.astype(np.float64)
    tangent = u.T @ u + np.linalg.eigvalsh(v.T @ v)[-1] * np.diag(sigma**2)
    return Limit(size**2 / 2, size, np.linalg.eigvalsh(tangent)[-1])


def _exact(values):
    """Array of mpmath numbers equal to the given ones."""
    import mpmath

    return np.vectorize(mpmath.mpf, otypes=[object])(np.asarray(values))


def _top_mp(matrix):
    import mpmath

    return max(mpmath.eigsy(mpmath.matrix(matrix.tolist()), eigvals_only=True))
