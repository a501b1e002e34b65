"""Inputs at the edge of what numbers can be: every one gets its results or its verdict, and none a warning."""

import dataclasses
import itertools
import os
import platform

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import catapult_fast as cf
import reference as twin
from catapult_fast.kernels.outcome import CONVERGED, DONE, NO_RATE, NOT_FINITE
from catapult_fast.phases import DIVERGENT, LAZY, UNDECIDED
from faults import python

NEVER = cf.Stop(None, None)
RNG = np.random.default_rng(5)
X, Y = RNG.standard_normal((5, 3)), np.array([1.0, -1.0, -1.0, 1.0, -1.0])
V, U = RNG.standard_normal(8), RNG.standard_normal((8, 3))
NET = cf.TwoLayerLinear()
ENGINES = pytest.mark.parametrize("m", [1, 5], ids=["scalar", "linear"])


def run(data, **options):
    common = {"steps": 30, "record": cf.Record(every=1)}
    return cf.run(cf.Sweep(data, NET, **(common | options)), progress=False)


def given(m, size_v=1.0, size_u=1.0, **options):
    return run(cf.Dataset(X[:m], Y[:m]), weights=(size_v * V, size_u * U), **options)


def path_of(results, eta, weights=(V, U)):
    """What the twin makes of the same weights."""
    data = results.sweep.data
    return twin.train(weights[0][:, None], weights[1], data.X, data.targets, eta, results.sweep.steps)


def assert_is_the_twins(results, weights=(V, U), tolerance=1e-12):
    assert results.status.size
    for i, eta in enumerate(results.eta.ravel()):
        expected = np.sqrt(path_of(results, eta, weights).loss)
        loss = np.sqrt(results.loss.reshape(-1, results.sweep.steps + 1)[i])
        until = results.n_steps.ravel()[i] + (results.status.ravel()[i] != NOT_FINITE)
        assert_allclose(loss[:until], expected[:until], rtol=0, atol=tolerance * expected[:until].max())


# --- size --------------------------------------------------------------------------------------


@ENGINES
@pytest.mark.parametrize("sizes", [(1e160, 1e-160), (1e-160, 1e160), (1e160, 1e160)])
def test_squares_that_overflow_have_a_verdict(m, sizes):
    """The weights are finite, their squares are not: no curvature to take a rate from, and no state to train."""
    in_units = given(m, *sizes, kappa=[0.0, 1.0])
    assert set(in_units.status.ravel()) == {NO_RATE}
    assert np.isnan(in_units.eta).all()
    assert set(in_units.phase.ravel()) == {UNDECIDED}
    plain = given(m, *sizes, eta=[1e-320, 1e-200])
    assert set(plain.status.ravel()) == {NOT_FINITE}
    assert set(plain.phase.ravel()) == {DIVERGENT}
    assert (plain.n_steps <= 1).all()


@ENGINES
@pytest.mark.parametrize("power", [-200, 200])
def test_curvature_far_from_one(m, power):
    """Weights of 2^200 and 2^-200: the same function, with a tangent kernel near 10^120."""
    one, other = (given(m, 2.0**e, 2.0**-e, kappa=[0.5, 1.5, 3.0]) for e in (0, power))
    kernel = twin.ntk(2.0**power * V[:, None], 2.0**-power * U, X[:m]).top
    assert_allclose(other.initial_ntk_lambda_max, kernel, rtol=1e-12)
    assert_allclose(other.initial_loss, one.initial_loss, rtol=1e-14)
    assert_is_the_twins(other, weights=(2.0**power * V, 2.0**-power * U))


@ENGINES
def test_rates_from_the_smallest_to_the_largest(m):
    """In the order given; a rate too small to move anything leaves the start, the largest end at once."""
    rates = [1e300, 0.1, 5e-324, 1e-310, 0.1, 0.0, 1e200]
    results = given(m, eta=rates)
    assert_array_equal(results.eta.ravel(), rates)
    still = [2, 3, 5]
    assert (results.loss[0, 0, still] == results.initial_loss[..., None]).all()
    assert (results.status[0, 0, still] == DONE).all()
    assert (results.n_steps[0, 0, [0, 6]] == 1).all()
    assert (results.phase[0, 0, [0, 6]] == DIVERGENT).all()
    for name in ("loss", "ntk_lambda_max", "status", "max_loss", "final_ntk_lambda_max"):
        one, other = getattr(results, name)[0, 0, [1, 4]]
        assert one.tobytes() == other.tobytes(), name


@pytest.mark.parametrize("size", [10**6, pytest.param(10**7, marks=pytest.mark.long)])
def test_a_very_long_grid(tmp_path, size):
    data = cf.Dataset(X[:1], Y[:1])
    sweep = cf.Sweep(data, NET, kappa=np.linspace(0, 5, size), steps=12, record=cf.Record(every=0, ntk=False))
    results = cf.run(sweep, tmp_path / "out.h5", progress=False)
    some = np.r_[0, RNG.integers(1, size, 20), size - 1]
    alone = cf.run(dataclasses.replace(sweep, kappa=sweep.kappa[some]), progress=False)
    for name in ("final_loss", "status", "phase", "max_loss"):
        assert np.ascontiguousarray(getattr(results, name)[0, 0, some]).tobytes() == getattr(alone, name).tobytes()


# --- subnormal numbers -------------------------------------------------------------------------

# Sets the processor to flush what is below the smallest normal number to zero, as libraries that were
# compiled for speed do to a whole process; threads inherit it.
FLUSHED = """
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
import numpy as np
import catapult_fast as cf
from catapult_fast.machine import provenance

@intrinsic
def set_control(typingctx, value):
    def codegen(context, builder, signature, args):
        place = builder.alloca(ir.IntType(32))
        builder.store(args[0], place)
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
        call = builder.module.globals.get("llvm.x86.sse.ldmxcsr")
        call = call or ir.Function(builder.module, kind, "llvm.x86.sse.ldmxcsr")
        builder.call(call, [builder.bitcast(place, ir.IntType(8).as_pointer())])
        return context.get_dummy_value()
    return types.void(types.uint32), codegen

@njit
def flush():
    set_control(np.uint32(0x9FC0))

rng = np.random.default_rng(0)
outcomes = []
for flushed in (False, True):
    if flushed:
        flush()
    assert (np.float64(2.0**-1022) * np.float64(0.5) == 0) == flushed
    assert provenance()["flushes_subnormal"] is flushed
    for m in (1, 5):
        data = cf.Dataset(rng.standard_normal((5, 3))[:m], np.zeros(m))
        sweep = cf.Sweep(data, cf.TwoLayerLinear(64), kappa=np.linspace(0, 5, 41), steps=1500,
                         stop=cf.Stop(None, None), record=cf.Record(every=500))
        results = cf.run(sweep, progress=False)
        outcomes.append((results.status.tobytes(), results.phase.tobytes(), results.n_steps.tobytes()))
    rng = np.random.default_rng(0)
assert outcomes[:2] == outcomes[2:]
# Losses did fall to where it matters.
assert results.final_loss.min() < 1e-300
print("same")
"""


def test_a_processor_that_flushes_subnormal_numbers(tmp_path):
    """Some library may have set it for the whole process: the verdicts are the same, and the file says so."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("sets a control register of x86-64")
    ended = python(FLUSHED, tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "same\n", "")


# --- rates on the boundaries -------------------------------------------------------------------


@ENGINES
@pytest.mark.parametrize("boundary", [2.0, 4.0])
def test_exactly_on_a_boundary(m, boundary):
    """No rule of its own: the label follows the loss, on both sides and between."""
    rates = [np.nextafter(boundary, 0), boundary, np.nextafter(boundary, 9)]
    results = given(m, kappa=rates, steps=400)
    for i, eta in enumerate(results.eta.ravel()):
        assert results.status[0, 0, i] > 0
        path = path_of(results, eta)
        rose = np.nanmax(path.loss) > path.loss[0] * (1 + 1e-6)
        assert (results.max_loss[0, 0, i] > results.initial_loss[0, 0] * (1 + 1e-6)) == rose
        assert (results.phase[0, 0, i] == LAZY) == (not rose and results.late_max_loss[0, 0, i] < path.loss[0])


# --- shapes of the data ------------------------------------------------------------------------

ODD = {
    "repeated rows": np.repeat(X[:2], [3, 2], axis=0),
    "a row of zeros": np.vstack([X[:4], np.zeros((1, 3))]),
    "rows of zeros but one": np.vstack([np.zeros((4, 3)), X[:1]]),
    "a constant column": np.column_stack([X[:, :2], np.ones(5)]),
    "a column of zeros": np.column_stack([X[:, :2], np.zeros(5)]),
    "equal columns": np.column_stack([X[:, 0]] * 3),
    "opposite rows": np.vstack([X[:1], -X[:1], X[:1], -X[:1], X[:1]]),
    "tiny inputs": 1e-60 * X,
    "large inputs": 1e60 * X,
}


@pytest.mark.parametrize("name", ODD)
def test_odd_inputs(name):
    data = cf.Dataset(ODD[name], Y)
    results = run(data, weights=(V, U), kappa=[0.0, 0.7, 1.6, 2.2], stop=NEVER)
    assert_is_the_twins(results)
    kernel = twin.ntk(V[:, None], U, data.X).top
    assert_allclose(results.initial_ntk_lambda_max, kernel, rtol=1e-12)


@pytest.mark.parametrize(("m", "d"), list(itertools.product((1, 2, 6), (1, 2, 6))))
def test_inputs_that_are_all_zero(m, d):
    """Rank 0: nothing to train, and no curvature whose units a rate could have."""
    data = cf.Dataset(np.zeros((m, d)), np.ones(m))
    with pytest.raises(cf.DataError, match="kappa needs a tangent kernel, but all inputs are zero; use eta"):
        run(data, kappa=[0.0, 1.0])
    plain = run(data, eta=[0.5], width=[1, 7], seeds=2)
    assert (plain.loss[..., 0] == 0.5).all()
    assert (plain.final_loss == 0.5).all()


# --- targets -----------------------------------------------------------------------------------


@ENGINES
def test_targets_of_zero(m):
    """The network forgets: nothing but the product of its weights is left to fall."""
    results = run(cf.Dataset(X[:m], np.zeros(m)), weights=(V, U), kappa=[0.5, 1.5, 2.2], stop=NEVER)
    assert_is_the_twins(results)
    assert (results.final_loss < results.initial_loss[..., None]).all()


def test_targets_outside_the_span_of_the_inputs():
    """What no linear network can fit stays in the loss, and takes no part in training."""
    inside = np.linalg.qr(X)[0]
    outside = Y - inside @ (inside.T @ Y)
    results = run(cf.Dataset(X, outside), weights=(V, U), kappa=[0.5, 1.5], steps=500)
    assert_is_the_twins(results)
    assert (results.status == CONVERGED).all()
    assert_allclose(results.final_loss, outside @ outside / 10, rtol=1e-12)


@pytest.mark.parametrize("outputs", [1, 3])
def test_labels_of_one_class(outputs):
    """No contrast to learn is no error."""
    targets = np.ones(5) if outputs == 1 else np.tile(np.eye(outputs)[1], (5, 1))
    options = {} if outputs == 1 else {"loss": "cross_entropy"}
    data = cf.Dataset(X, targets)
    results = run(data, kappa=[0.5], width=32, steps=200, record=cf.Record(every=1, also=("accuracy",)), **options)
    assert (results.final_loss < results.initial_loss[..., None]).all()
    assert (results.status > 0).all()


@ENGINES
def test_a_start_that_fits_already(m):
    """Its loss is 0 from the first: converged at step 0, and without a phase."""
    fitted = twin.predict(V[:, None], U, X[:m])
    for exact in (fitted[:, 0], None):
        data = cf.Dataset(X[:m], np.zeros(m) if exact is None else exact)
        weights = (V, U) if exact is not None else (V, 0 * U)
        results = run(data, weights=weights, kappa=[0.5])
        assert (results.status == CONVERGED).all()
        assert (results.n_steps == 0).all()
    assert (results.initial_loss == 0).all()
    assert (results.phase == UNDECIDED).all()


# --- single precision --------------------------------------------------------------------------


def test_labels_of_single_precision():
    """As documented: labels differ at a boundary only, values below kappa = 3 by 1e-3 at most."""
    data = cf.load_dataset("fashion-mnist-mini", classes=[0, 1], n_train=24)
    sweep = cf.Sweep(
        data, NET, kappa=np.linspace(0.01, 5, 500), width=[64, 2**40], seeds=2, steps=300, record=cf.Record(every=0)
    )
    double = cf.run(sweep, progress=False)
    single = cf.run(dataclasses.replace(sweep, dtype="float32"), progress=False)
    below = sweep.kappa < 3
    assert_allclose(single.max_loss[..., below], double.max_loss[..., below], rtol=1e-3)
    assert_allclose(single.final_ntk_lambda_max[..., below], double.final_ntk_lambda_max[..., below], rtol=1e-4)
    differ = np.argwhere(single.phase != double.phase)
    for w, s, r in differ:
        near = double.phase[w, s, max(0, r - 2) : r + 3]
        assert len(set(near)) > 1, sweep.kappa[r]
    assert len(set(double.phase.ravel())) > 2


# --- forked processes --------------------------------------------------------------------------

FORKED = """
import os
import signal
import threading
import warnings
import numpy as np
import catapult_fast as cf

warnings.simplefilter("ignore", DeprecationWarning)  # of later Pythons, about any fork beside threads
matrices = np.cov(np.random.default_rng(0).standard_normal((12, 50)))[None] + np.arange(3000.0)[:, None, None]
data = cf.Dataset(np.random.default_rng(0).standard_normal((4, 3)), [1.0, -1.0, 1.0, 1.0])
sweep = cf.Sweep(data, cf.TwoLayerLinear(64), kappa=np.linspace(0, 4, 200), seeds=4, steps=50)

def numbers():
    found = cf.top_eig(matrices, workers=2)
    results = cf.run(sweep, workers=2, progress=False)
    return found.eigenvalues.tobytes() + found.upper_bounds.tobytes() + results.loss.tobytes()

before = numbers()
child = os.fork()
if child == 0:
    signal.alarm(100)
    same = numbers() == before
    beside = any(thread.name.startswith("catapult_fast") for thread in threading.enumerate())
    os._exit(0 if same and beside else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert numbers() == before
print("same")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_its_own_threads(tmp_path):
    """The package starts processes afresh; one that a user forks after threads were at work computes the same."""
    ended = python(FORKED, tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "same\n", "")
