"""The loss Hessian's top eigenvalue against dense second derivatives of explicit weights and against closed forms."""

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse.linalg import LinearOperator, eigsh

import catapult_fast as cf
import reference as twin
from catapult_fast import engines, linear
from catapult_fast.layout import CURVATURE_TOLERANCE

NEVER = cf.Stop(None, None)
SHARP = cf.Record(every=2, sharpness=True)


def problem(k, loss="mse", m=6, d=4, seed=0):
    rng = np.random.default_rng([seed, k, m, d])
    X = rng.standard_normal((m, d))
    Y = np.eye(k)[rng.integers(0, k, m)] if loss == "cross_entropy" else rng.standard_normal((m, k))
    return rng, X, Y


def explicit_top(V, U, X, Y, how, p=0.0):
    """Largest eigenvalue of the Hessian of explicit weights; by products where the matrix would be large."""
    (n, k), d = V.shape, U.shape[1]
    if n < 100:
        return twin.hessian(V, U, X, Y, p=p, **how).top
    f = twin.predict(V, U, X, p=p)
    J = twin.jacobian(V, U, X, p=p)
    curvature = twin._output_curvature(f, how.get("loss", "mse")) / twin.count(
        f, how.get("loss_normalization", "sample")
    )
    E = twin.predictor_gradient(V, U, X, Y, p=p, **how) / np.sqrt(twin.effective_width(V, p))

    def product(x):
        x = x.ravel()
        dV, dU = x[: n * k].reshape(n, k), x[n * k :].reshape(n, d)
        return J.T @ (curvature @ (J @ x)) + np.r_[(dU @ E.T).ravel(), (dV @ E).ravel()]

    size = n * (k + d)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    return eigsh(operator, k=1, which="LA", tol=1e-13, return_eigenvectors=False, v0=np.ones(size))[0]


@pytest.mark.parametrize("width", [1, 3, 5, 64, 1000])
@pytest.mark.parametrize(
    ("k", "how", "training"),
    [
        (1, {}, {}),
        (3, {}, {}),
        (3, {"loss_normalization": "sample_output"}, {"momentum": 0.8, "weight_decay": 0.05}),
        (3, {"loss": "cross_entropy"}, {}),
    ],
)
def test_sharpness_is_that_of_explicit_weights(width, k, how, training):
    """C-P7: widths below, at and above k + r, along training."""
    rng, X, Y = problem(k, how.get("loss", "mse"))
    V, U = rng.standard_normal((width, k)), rng.standard_normal((width, 4))
    sweep = cf.Sweep(
        cf.Dataset(X, Y), cf.TwoLayerLinear(width), weights=(V, U), kappa=[0.7, 1.4], steps=6, record=SHARP, stop=NEVER,
        training=cf.GradientDescent(**training), **how,
    )  # fmt: skip
    results = cf.run(sweep, progress=False)
    for rate in range(2):
        path = twin.train(V, U, X, Y, results.eta[0, 0, rate], 6, **how, **training)
        tops = [explicit_top(path.V[t], path.U[t], X, Y, how) for t in (0, 2, 4, 6)]
        assert_allclose(results.sharpness[0, 0, rate], tops, rtol=1e-10)
        assert_allclose(results.final_sharpness[0, 0, rate], tops[-1], rtol=1e-10)
    assert_allclose(results.initial_sharpness, tops[0], rtol=1e-10)
    assert (results.sharpness_residual <= CURVATURE_TOLERANCE["float64"] * results.sharpness).all()


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_sharpness_in_every_parametrization(p):
    rng, X, Y = problem(2)
    V, U = rng.standard_normal((7, 2)), rng.standard_normal((7, 4))
    sweep = cf.Sweep(
        cf.Dataset(X, Y), cf.TwoLayerLinear(7, p=p), weights=(V, U), kappa=[1.0], steps=0, record=SHARP
    )  # fmt: skip
    expected = twin.hessian(V, U, X, Y, p=p).top
    assert_allclose(cf.run(sweep, progress=False).sharpness.ravel(), [expected], rtol=1e-10)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("width", "inputs"), [(1, 1), (2, 3), (7, 2), (30, 3)])
def test_one_sample_in_closed_form(width, inputs, p):
    """C-P6, D-E3: formula, dense matrix, proven bounds of `top_eig` in both precisions, and the recorded value."""
    rng = np.random.default_rng([width, inputs])
    V, U, x = rng.standard_normal((width, 1)), rng.standard_normal((width, inputs)), rng.standard_normal(inputs)
    X, Y = x[None] / np.linalg.norm(x), np.array([[0.4]])
    f, kernel = twin.predict(V, U, X, p=p).item(), twin.ntk(V, U, X, p=p)
    expected = cf.theory.hessian_top(f, kernel.top, twin.effective_width(V, p), 0.4)
    dense = twin.hessian(V, U, X, Y, p=p)
    assert_allclose(np.trace(dense.matrix), kernel.top, rtol=1e-13)
    for matrix, rtol in ((dense.matrix, 1e-10), (dense.matrix.astype(np.float32), 1e-5)):
        found = cf.top_eig((matrix + matrix.T) / 2)
        assert found.converged.all()
        assert_allclose(found.eigenvalues, expected, rtol=rtol)
    sweep = cf.Sweep(
        cf.Dataset(X, Y), cf.TwoLayerLinear(width, p=p), weights=(V, U), kappa=[1.0], steps=0, record=SHARP
    )  # fmt: skip
    assert_allclose(cf.run(sweep, progress=False).sharpness.ravel(), [expected], rtol=1e-10)


def one_sample_sweep(**options):
    data = cf.load_dataset("one-sample", dim=3, n_train=1)
    common = {"width": [1, 2, 64, 10**9], "seeds": 3, "c": np.linspace(0.2, 4.2, 9), "steps": 30}
    return cf.Sweep(data, cf.TwoLayerLinear(), record=cf.Record(every=5, sharpness=True), **(common | options))


def test_both_engines_and_the_closed_form_agree(monkeypatch):
    sweep = one_sample_sweep(stop=NEVER, c=np.linspace(0.2, 1.9, 9))
    closed = cf.run(sweep, progress=False)
    monkeypatch.setattr(engines, "_is_one_sample", lambda sweep: False)
    solved = cf.run(sweep, progress=False)
    for name in ("initial_sharpness", "sharpness", "final_sharpness", "eta"):
        assert_allclose(getattr(solved, name), getattr(closed, name), rtol=1e-9, err_msg=name)


def test_rates_in_units_of_the_starts_own_sharpness():
    for sweep in (one_sample_sweep(), dataclasses.replace(one_sample_sweep(), data=cf.Dataset(*problem(2)[1:]))):
        results = cf.run(sweep, progress=False)
        assert results.axis == "c"
        assert_allclose(
            results.eta * results.initial_sharpness[..., None], np.broadcast_to(sweep.c, results.eta.shape), rtol=1e-14
        )
        assert_array_equal(results.c, np.broadcast_to(sweep.c, results.eta.shape))
        again = cf.run(dataclasses.replace(sweep, c=None, eta=results.eta[2, 1]), progress=False)
        assert_array_equal(again.loss[2, 1], results.loss[2, 1])


def test_sharpness_is_not_there_unless_asked():
    results = cf.run(dataclasses.replace(one_sample_sweep(), c=None, kappa=[1.0], record=cf.Record()), progress=False)
    assert "sharpness" not in results.dims
    assert np.isnan(results.initial_sharpness).all()
    assert np.isnan(results.c).all()


def test_a_start_without_hessian_gives_no_rate():
    data = cf.Dataset(np.eye(2), np.ones((2, 1)))
    V, U = np.zeros((3, 1)), np.zeros((3, 2))
    sweep = cf.Sweep(data, cf.TwoLayerLinear(3), weights=(V, U), c=[1.0], steps=3)
    results = cf.run(sweep, progress=False)
    assert np.isfinite(results.eta).all()  # the label alone curves the loss at zero weights
    rank_one = cf.Dataset(np.eye(2), np.zeros((2, 1)))
    flat = cf.run(dataclasses.replace(sweep, data=rank_one), progress=False)
    assert np.isnan(flat.eta).all()
    assert (flat.status == 6).all()


def test_ended_members_keep_the_sharpness_of_their_last_state():
    _, X, Y = problem(1)
    sweep = cf.Sweep(
        cf.Dataset(X, Y), cf.TwoLayerLinear(64), kappa=np.linspace(0.5, 1.9, 9), steps=4000,
        record=cf.Record(every=1, sharpness=True), stop=cf.Stop(converged=1e-3),
    )  # fmt: skip
    results = cf.run(sweep, progress=False)
    assert (results.status == 2).all()
    assert len(np.unique(results.n_steps)) > 3
    last = np.take_along_axis(results.sharpness, results.n_steps[..., None], axis=-1)[..., 0]
    assert_allclose(results.final_sharpness, last, rtol=1e-12)
    assert linear.traces(sweep) is False
