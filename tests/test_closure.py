"""The package against the twin: compressed training equals training with every weight written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import catapult_fast as cf
import reference as twin
from catapult_fast.starts import minibatch_order

NEVER = cf.Stop(None, None)
KAPPAS = (0.0, 0.7, 1.6, 2.4)


def case(n, d, m, k, **options):
    """One comparison; what is not said is plain full-batch gradient descent on the mean squared error."""
    plain = {
        "kind": "gaussian",
        "rank": None,
        "steps": 40,
        "kappas": KAPPAS,
        "p": 0.0,
        "loss": "mse",
        "loss_normalization": "sample",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "schedule": None,
        "batch_size": None,
        "seed": 0,
        "diverged": 1e8,
        "converged": 1e-9,
    }
    return {"n": n, "d": d, "m": m, "k": k, **plain, **options}


WAVES = 0.6 + 0.4 * np.sin(np.arange(40.0))
GENTLE = (0.0, 0.5, 1.2)
CASES = {
    "one output": case(16, 3, 5, 1),
    "one output with signs": case(24, 3, 5, 1, kind="signs"),
    "ten outputs": case(32, 4, 12, 10, kind="one-hot"),
    "wide": case(3000, 5, 9, 2),
    "momentum": case(32, 3, 7, 2, momentum=0.8),
    "weight decay": case(32, 3, 7, 2, weight_decay=0.05),
    "momentum and weight decay": case(32, 3, 7, 2, momentum=0.6, weight_decay=0.05),
    "schedule": case(32, 3, 7, 2, schedule=WAVES),
    "minibatch": case(32, 3, 8, 2, batch_size=3, kappas=GENTLE),
    "minibatch of one": case(32, 3, 4, 1, batch_size=1, kappas=GENTLE),
    "minibatch of everything": case(32, 3, 4, 1, batch_size=4),
    "everything at once": case(
        32, 3, 8, 2, batch_size=3, momentum=0.5, weight_decay=0.05, schedule=WAVES, p=0.5, kappas=GENTLE
    ),
    "cross-entropy": case(32, 3, 9, 4, kind="one-hot", loss="cross_entropy"),
    "cross-entropy, ten outputs": case(32, 5, 12, 10, kind="one-hot", loss="cross_entropy"),
    "cross-entropy, minibatch": case(32, 3, 9, 4, kind="one-hot", loss="cross_entropy", batch_size=4, kappas=GENTLE),
    "cross-entropy, everything": case(
        32,
        3,
        9,
        4,
        kind="one-hot",
        loss="cross_entropy",
        batch_size=4,
        momentum=0.5,
        weight_decay=0.05,
        schedule=WAVES,
        p=1.0,
        kappas=GENTLE,
    ),
    "half-way parametrisation": case(32, 3, 7, 2, p=0.5),
    "mean-field parametrisation": case(32, 3, 7, 2, p=1.0),
    "mean per output": case(32, 3, 7, 3, loss_normalization="sample_output"),
    "mean per output, minibatch": case(
        32, 3, 8, 3, loss_normalization="sample_output", batch_size=3, weight_decay=0.05, kappas=GENTLE
    ),
    "rank-deficient inputs": case(32, 6, 9, 2, rank=2),
    "rank-deficient inputs, minibatch": case(32, 6, 9, 2, rank=2, batch_size=4, momentum=0.5, kappas=GENTLE),
    "fewer samples than inputs": case(32, 9, 3, 2),
    "fewer samples than inputs, weight decay": case(32, 9, 3, 2, weight_decay=0.05, momentum=0.5),
    "fewer samples than inputs, cross-entropy": case(32, 9, 3, 2, kind="one-hot", loss="cross_entropy"),
    "one input": case(32, 1, 5, 1),
    "one input, three outputs": case(32, 1, 5, 3),
    "one sample": case(32, 4, 1, 1, kind="signs"),
    "one sample, one input": case(32, 1, 1, 1),
    "one sample, weight decay": case(32, 4, 1, 1, weight_decay=0.05, momentum=0.5),
    "one sample, mean-field": case(32, 4, 1, 1, p=1.0, kappas=GENTLE),
    "one sample, three outputs": case(32, 4, 1, 3),
    "one hidden unit": case(1, 3, 5, 1, kappas=GENTLE),
    "one hidden unit, one sample": case(1, 3, 1, 1, kappas=(0.0, 0.3, 0.8)),
    "one hidden unit, three outputs": case(1, 3, 5, 3, kappas=GENTLE),
    "two hidden units": case(2, 3, 5, 1, kappas=GENTLE, momentum=0.5),
    "two hidden units, three outputs": case(2, 3, 5, 3, kappas=GENTLE, weight_decay=0.05),
    "three hidden units": case(3, 3, 5, 2, kappas=GENTLE, batch_size=2),
    "three hidden units, few samples": case(3, 6, 2, 2, kappas=GENTLE, weight_decay=0.05),
    "three hidden units, cross-entropy": case(3, 3, 5, 3, kappas=GENTLE, kind="one-hot", loss="cross_entropy"),
    "as many hidden units as columns": case(5, 3, 7, 2, kappas=GENTLE),
    "one more": case(6, 3, 7, 2, kappas=GENTLE),
}


def inputs(c):
    """Weights, training data and test data, the latter with a part outside the training span."""
    weights = twin.draw_weights(c["seed"], c["n"], c["d"], c["k"], p=c["p"])
    train = twin.draw_data(c["seed"], c["m"], c["d"], c["k"], kind=c["kind"], rank=c["rank"])
    return weights, train, twin.draw_data(c["seed"] + 99, 6, c["d"], c["k"], kind=c["kind"])


def labelled(c):
    return c["kind"] in ("signs", "one-hot")


def package(c, *, stop=NEVER, every=1, held_out=True, **changes):
    weights, train, test = inputs(c)
    also = ("weight_norm", "accuracy", "test_accuracy") if labelled(c) and held_out else ("weight_norm",)
    sweep = cf.Sweep(
        cf.Dataset(*train, *test),
        cf.TwoLayerLinear(c["n"], p=c["p"]),
        kappa=list(c["kappas"]),
        steps=c["steps"],
        weights=weights,
        training=cf.GradientDescent(c["momentum"], c["weight_decay"], c["batch_size"], c["schedule"]),
        record=cf.Record(every=every, ntk=True, test=held_out, also=also),
        stop=stop,
        loss=c["loss"],
        loss_normalization=c["loss_normalization"],
        **changes,
    )
    return cf.run(sweep, progress=False)


def explicit(c, eta, weights=None):
    own, train, test = inputs(c)
    batches = None
    if c["batch_size"] is not None:
        batches = minibatch_order(0, c["m"], c["batch_size"], c["steps"])
    names = ("p", "momentum", "weight_decay", "schedule", "loss", "loss_normalization")
    how = {name: c[name] for name in names}
    start = own if weights is None else weights
    return twin.train(*start, *train, eta, c["steps"], batches=batches, X_test=test[0], Y_test=test[1], **how)


def tangent(c, path, steps):
    X = inputs(c)[1][0]
    how = {"p": c["p"], "loss_normalization": c["loss_normalization"]}
    return np.array([twin.ntk(path.V[t], path.U[t], X, **how).top for t in steps])


def assert_same_loss(actual, expected, tolerance):
    """To ``tolerance`` of the trajectory's largest value, in the square root: so the size of a residual counts."""
    assert np.isfinite(expected).all()
    scale = np.sqrt(expected.max())
    assert_allclose(np.sqrt(actual), np.sqrt(expected), rtol=0, atol=tolerance * scale)


def assert_same_run(c, tolerance=1e-12, *, held_out=True):
    results = package(c, held_out=held_out)
    assert results.loss.shape == (1, 1, len(c["kappas"]), c["steps"] + 1)
    for i, kappa in enumerate(c["kappas"]):
        eta = results.eta[0, 0, i]
        path = explicit(c, eta)
        lam = tangent(c, path, range(c["steps"] + 1))
        assert_allclose(eta * lam[0], kappa, rtol=1e-13)
        assert_same_loss(results.loss[0, 0, i], path.loss, tolerance)
        if held_out:
            assert_same_loss(results.test_loss[0, 0, i], path.test_loss, tolerance)
        assert_allclose(results.ntk_lambda_max[0, 0, i], lam, rtol=tolerance)
        assert_allclose(results.weight_norm[0, 0, i], path.weight_norm, rtol=tolerance)
        if labelled(c) and held_out:
            assert_allclose(results.accuracy[0, 0, i], path.accuracy, rtol=1e-15)
            assert_allclose(results.test_accuracy[0, 0, i], path.test_accuracy, rtol=1e-15)
        assert_allclose(results.max_loss[0, 0, i], path.loss.max(), rtol=tolerance)
        assert_allclose(results.initial_loss[0, 0], path.loss[0], rtol=tolerance)
        assert_allclose(results.initial_ntk_lambda_max[0, 0], lam[0], rtol=1e-13)
    assert (results.status == twin.DONE).all()
    assert (results.n_steps == c["steps"]).all()


@pytest.mark.parametrize("name", CASES)
def test_same_run(name):
    assert_same_run(CASES[name])


WITHOUT_READOUT = {
    "one output": case(16, 3, 5, 1),
    "just wide enough": case(4, 3, 5, 1, kappas=GENTLE),
    "schedule": case(32, 3, 7, 1, schedule=WAVES),
    "mean-field": case(32, 3, 7, 1, p=1.0, kappas=GENTLE),
    "rank-deficient inputs": case(32, 6, 9, 1, rank=2),
    "fewer samples than inputs": case(32, 9, 3, 1),
    "seven directions": case(64, 7, 12, 1),
    "many directions": case(160, 132, 140, 1, steps=6, kappas=(0.5, 2.5)),
}


@pytest.mark.parametrize("name", WITHOUT_READOUT)
def test_same_run_without_held_out_data(name):
    """Then the readout itself need not be kept, and the state may be another."""
    assert_same_run(WITHOUT_READOUT[name], held_out=False)


def test_converged_run_does_not_drift():
    """C-P1: with n >= 16 and convergence the agreement does not fade with time."""
    c = case(16, 3, 5, 1, steps=300, kappas=(0.5, 1.5, 2.5, 2.9))
    assert_same_run(c)


def test_coordinates_of_given_weights():
    results = package(case(7, 3, 5, 1, steps=2))
    assert results.width.tolist() == [7]
    assert results.seed.tolist() == [-1]
    assert results.step.tolist() == [0, 1, 2]
    assert results.dims["loss"] == ("width", "seed", "kappa", "step")


def test_readout_may_be_a_vector():
    c = case(16, 3, 5, 1, steps=5)
    (V, U), (X, Y), _ = inputs(c)
    record = cf.Record(every=1)
    runs = [
        cf.run(
            cf.Sweep(data, cf.TwoLayerLinear(16), eta=[0.1], steps=5, weights=weights, record=record), progress=False
        )
        for data, weights in ((cf.Dataset(X, Y), (V, U)), (cf.Dataset(X, Y[:, 0]), (V[:, 0], U)))
    ]
    assert np.array_equal(runs[0].loss, runs[1].loss)


def test_zero_rate_is_constant():
    results = package(case(16, 3, 5, 2, kappas=(0.0,), steps=15))
    for values in (results.loss, results.test_loss, results.weight_norm):
        assert (values == values[..., :1]).all()
    lam = results.ntk_lambda_max
    assert_allclose(lam, np.broadcast_to(lam[..., :1], lam.shape), rtol=1e-14)  # each value is an iteration's
    assert (results.phase == twin.UNDECIDED).all()


def test_inputs_without_signal():
    """Inputs that are all zero: no gradient, no tangent kernel, a constant loss."""
    V, U = twin.draw_weights(0, 5, 3, 1)
    Y = np.array([[1.0], [-2.0]])
    sweep = cf.Sweep(
        cf.Dataset(np.zeros((2, 3)), Y),
        cf.TwoLayerLinear(5),
        eta=[0.5],
        steps=4,
        weights=(V, U),
        record=cf.Record(every=1, also=("weight_norm",)),
        stop=NEVER,
    )
    results = cf.run(sweep, progress=False)
    assert_allclose(results.loss, 1.25, rtol=1e-15)
    assert_allclose(results.ntk_lambda_max, 0.0, atol=1e-300)
    assert_allclose(results.weight_norm, np.sum(V**2) + np.sum(U**2), rtol=1e-14)


def test_single_precision():
    """The state is float32: one step from one state agrees to a few of its roundings."""
    for c in (case(32, 3, 7, 2, steps=1), case(32, 4, 1, 1, steps=1), case(32, 3, 7, 2, steps=1, batch_size=3)):
        results = package(c, dtype="float32")
        assert results.loss.dtype == np.float32
        for i in range(len(c["kappas"])):
            path = explicit(c, results.eta[0, 0, i])
            assert_same_loss(results.loss[0, 0, i], path.loss, 2e-6)
            assert_allclose(results.ntk_lambda_max[0, 0, i], tangent(c, path, (0, 1)), rtol=2e-6)
            assert_allclose(results.weight_norm[0, 0, i], path.weight_norm, rtol=2e-6)


small = st.integers(1, 5)


@given(
    n=st.integers(1, 9),
    d=small,
    m=small,
    k=st.integers(1, 4),
    seed=st.integers(0, 50),
    momentum=st.sampled_from([0.0, 0.5]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    share=st.sampled_from([None, 1, 2]),
    p=st.sampled_from([0.0, 0.5, 1.0]),
    loss=st.sampled_from([("mse", "sample"), ("mse", "sample_output"), ("cross_entropy", "sample")]),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_any_small_network(n, d, m, k, seed, momentum, weight_decay, share, p, loss):
    """Four steps of any small network, whatever the shapes and the way of training."""
    batch_size = None if share is None else max(1, m // share)
    if loss[0] == "cross_entropy":
        k = max(k, 2)
    c = case(
        n,
        d,
        m,
        k,
        kind="one-hot" if k > 1 else "signs",
        steps=4,
        kappas=(1.1,),
        seed=seed,
        momentum=momentum,
        weight_decay=weight_decay,
        batch_size=batch_size,
        p=p,
        loss=loss[0],
        loss_normalization=loss[1],
    )
    assert_same_run(c, tolerance=1e-11)


# Stop and phase rules -----------------------------------------------------------------------------------------------

GRID = tuple(np.linspace(0.15, 6.0, 40))
ENDINGS = {
    "one output": case(64, 3, 5, 1, kind="signs", steps=150, kappas=GRID),
    "one sample": case(200, 2, 1, 1, kind="signs", steps=120, kappas=GRID),
    "two outputs, few samples": case(50, 4, 3, 2, steps=150, kappas=GRID),
    "rank-limited": case(2, 4, 6, 3, steps=150, kappas=GRID),
    "rank-limited, loose": case(2, 4, 6, 3, steps=150, kappas=GRID, converged=0.02),
    "tight bound, few samples": case(50, 12, 2, 1, kind="signs", steps=60, kappas=GRID, diverged=1.2),
    "tight bound, weight decay": case(
        50, 12, 2, 1, kind="signs", steps=60, kappas=GRID, diverged=1.2, weight_decay=0.05, momentum=0.5
    ),
    "two outputs, mean per output": case(64, 3, 7, 2, steps=150, kappas=GRID, loss_normalization="sample_output"),
    "mean-field": case(64, 3, 5, 1, kind="signs", steps=150, kappas=GRID, p=1.0),
    "one sample, mean-field": case(200, 2, 1, 1, kind="signs", steps=120, kappas=GRID, p=1.0),
    "momentum": case(64, 3, 5, 1, kind="signs", steps=150, kappas=GRID, momentum=0.5),
    "weight decay": case(64, 3, 5, 1, kind="signs", steps=80, kappas=GRID, weight_decay=0.05),
    "minibatch": case(64, 3, 5, 1, kind="signs", steps=80, kappas=GRID, batch_size=2),
    "cross-entropy": case(
        64, 3, 9, 3, kind="one-hot", steps=80, kappas=tuple(np.geomspace(1.0, 4000.0, 40)), loss="cross_entropy"
    ),
    "labels as large as the width": case(2, 1, 4, 1, kind="signs", steps=150, kappas=GRID, seed=3),
    "one weight a layer": case(1, 1, 1, 1, kind="signs", steps=150, kappas=GRID),
}


LABELS_SEEN = {name: {twin.LAZY, twin.DIVERGENT} for name in ENDINGS}
LABELS_SEEN["one output"] = {twin.LAZY, twin.CATAPULT, twin.DIVERGENT}
LABELS_SEEN["labels as large as the width"] = {twin.LAZY, twin.CATAPULT, twin.DIVERGENT, twin.MARGINAL}


def ending(c, eta, weights=None):
    path = explicit(c, eta, weights)
    how = {name: c[name] for name in ("p", "loss", "loss_normalization", "diverged", "converged")}
    judge = c["batch_size"] is None and not c["weight_decay"]
    end = twin.outcome(path, *inputs(c)[1], eta, judge=judge, **how)
    return end, twin.phase(end, path.loss[0], eta, steps=c["steps"])


def settled(c, eta):
    """The ending, or None where a change of the start in its last digit changes it: chaos, not a rule."""
    (V, U), _, _ = inputs(c)
    end, label = ending(c, eta)
    other, other_label = ending(c, eta, (V * (1 + 1e-14), U * (1 - 1e-14)))
    same = (end.status, end.n_steps, end.max_loss_step, label) == (
        other.status,
        other.n_steps,
        other.max_loss_step,
        other_label,
    )
    near = np.allclose([end.max_loss, end.late_max_loss], [other.max_loss, other.late_max_loss], 1e-8, equal_nan=True)
    return (end, label) if same and near else None


@pytest.mark.parametrize("name", ENDINGS)
def test_same_ending(name):
    c = ENDINGS[name]
    results = package(c, stop=cf.Stop(c["diverged"], c["converged"]), every=0)
    compared = []
    for i in range(len(c["kappas"])):
        expected = settled(c, results.eta[0, 0, i])
        if expected is None:
            continue
        end, label = expected
        found = (results.status[0, 0, i], results.n_steps[0, 0, i], results.max_loss_step[0, 0, i])
        assert found == (end.status, end.n_steps, end.max_loss_step), (i, c["kappas"][i])
        assert_allclose(results.max_loss[0, 0, i], end.max_loss, rtol=1e-6)
        assert_allclose(results.late_max_loss[0, 0, i], end.late_max_loss, rtol=1e-6, atol=1e-16)
        assert_allclose(results.final_loss[0, 0, i], end.final_loss, rtol=1e-6, atol=1e-16)
        assert results.phase[0, 0, i] == label
        compared.append(label)
    assert len(compared) >= 25
    assert set(compared) >= LABELS_SEEN[name]


@pytest.mark.parametrize("shape", [(24, 3, 5, 1), (24, 3, 1, 1), (24, 3, 5, 2)])
def test_sparse_records_are_the_same_run(shape):
    """What is recorded changes no state: every seventh step is every seventh of all steps."""
    c = case(*shape)
    dense, sparse, none = (package(c, every=every) for every in (1, 7, 0))
    assert sparse.step.tolist() == [0, 7, 14, 21, 28, 35]
    for name in ("loss", "test_loss", "weight_norm"):
        assert np.array_equal(getattr(sparse, name), getattr(dense, name)[..., ::7])
    assert_allclose(sparse.ntk_lambda_max, dense.ntk_lambda_max[..., ::7], rtol=1e-14)
    for name in ("final_loss", "max_loss", "max_loss_step", "late_max_loss", "initial_loss", "phase"):
        values = [getattr(results, name) for results in (dense, sparse, none)]
        assert np.array_equal(values[0], values[1])
        assert np.array_equal(values[0], values[2])


def test_nothing_is_recorded_beyond_the_end():
    c = ENDINGS["one output"]
    results = package(c, stop=cf.Stop())
    assert {twin.CONVERGED, twin.OVER_BOUND} <= set(results.status.ravel().tolist())
    for name in ("loss", "test_loss", "ntk_lambda_max", "weight_norm"):
        values, beyond = getattr(results, name), results.step > results.n_steps[..., None]
        assert np.isnan(values[beyond]).all()
        assert np.isfinite(values[~beyond]).all()
