"""At width 10^15 no explicit network fits: the package against the same recursion in eighty decimal digits.

A rotated root, as good as the triangular one in exact arithmetic, must fail the bounds that the package keeps.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import catapult_fast as cf
import reference as twin
from catapult_fast.starts import draw_root

WIDTH, STEPS, SEEDS, KAPPAS = 10**15, 400, 3, (2.5, 3.0, 3.9)
MEMBERS = [(seed, i) for seed in range(SEEDS) for i in range(len(KAPPAS))]
# about ten times the worst errors of the triangular root with carried fitted values, for each kappa
LAM_BOUND = {"float64": (5e-14, 5e-14, 2e-12), "float32": (1e-5, 1e-5, 3e-4)}
RESIDUAL_BOUND = {"float64": 1e-14, "float32": 2e-6}
LOSS_BOUND = {"float64": 2e-15, "float32": 1e-12}  # relative to a loss of order one that no predictor removes
SAMPLES = (3, 5)  # with three, the fit is exact and the loss shows the residual down to rounding


def data(m):
    """Three inputs, labels +-1; the seeds are those of a well-conditioned draw."""
    return twin.draw_data({3: 9, 5: 1}[m], m, 3, 1, kind="signs")


@cache
def run(m, dtype="float64"):
    sweep = cf.Sweep(
        cf.Dataset(*data(m)),
        cf.TwoLayerLinear(WIDTH),
        kappa=list(KAPPAS),
        seeds=SEEDS,
        steps=STEPS,
        record=cf.Record(every=STEPS),
        stop=cf.Stop(None, None),
        dtype=dtype,
    )
    return cf.run(sweep, progress=False)


@cache
def start(m, seed):
    """Root, singular values and targets in eighty digits, and the loss that no predictor removes."""
    sigma, Q, T, L_perp = twin.data_basis_mp(*data(m))
    return twin.root_in_span_mp(draw_root(seed, WIDTH, 3, 1), Q, WIDTH), sigma, T, L_perp


@cache
def exact(m, seed, eta):
    root, sigma, T, _ = start(m, seed)
    return twin.compressed_mp(root, None, sigma, T, eta, WIDTH, STEPS)


def rotated(m, seed, eta, dtype):
    root, sigma, T, _ = start(m, seed)
    numbers = (np.asarray(values, dtype=np.float64) for values in (root, sigma, T))
    return twin.rotated_root_float64(*numbers, eta, WIDTH, STEPS, dtype=np.dtype(dtype).type)


def relative(value, reference):
    return abs(float(value / reference) - 1)


@pytest.mark.parametrize("m", SAMPLES)
def test_rates_come_from_the_start_itself(m):
    results = run(m)
    for seed, i in MEMBERS:
        root, sigma, T, _ = start(m, seed)
        lam = twin.compressed_mp(root, None, sigma, T, 0, WIDTH, 0).lam
        assert relative(results.eta[0, seed, i] * lam, KAPPAS[i]) <= 1e-14
        assert relative(results.initial_ntk_lambda_max[0, seed], lam) <= 1e-14


@pytest.mark.parametrize("dtype", LAM_BOUND)
@pytest.mark.parametrize("m", SAMPLES)
def test_final_curvature(m, dtype):
    results = run(m, dtype)
    for seed, i in MEMBERS:
        end = exact(m, seed, results.eta[0, seed, i])
        assert end.residual < 1e-15, "the member must have converged"
        assert relative(results.final_ntk_lambda_max[0, seed, i], end.lam) <= LAM_BOUND[dtype][i]


@pytest.mark.parametrize("dtype", RESIDUAL_BOUND)
def test_final_residual(dtype):
    """The residual has no floor of size sqrt(n) * eps, only one of rounding the targets."""
    results = run(3, dtype)
    for seed, i in MEMBERS:
        residual = np.sqrt(2 * results.final_loss[0, seed, i])
        assert abs(residual - exact(3, seed, results.eta[0, seed, i]).residual) <= RESIDUAL_BOUND[dtype]


@pytest.mark.parametrize("dtype", LOSS_BOUND)
def test_final_loss(dtype):
    results = run(5, dtype)
    for seed, i in MEMBERS:
        end, floor = exact(5, seed, results.eta[0, seed, i]), start(5, seed)[3]
        assert relative(results.final_loss[0, seed, i], end.loss + floor) <= LOSS_BOUND[dtype]


@pytest.mark.parametrize("dtype", LAM_BOUND)
@pytest.mark.parametrize("m", SAMPLES)
def test_a_rotated_root_fails_these_bounds(m, dtype):
    """Every member misses the bound on the residual; in a strong catapult the curvature is lost as well."""
    results = run(m, dtype)
    for seed, i in MEMBERS:
        eta = results.eta[0, seed, i]
        end, lost = exact(m, seed, eta), rotated(m, seed, eta, dtype)
        assert abs(lost.residual - float(end.residual)) > 100 * RESIDUAL_BOUND[dtype]
        if KAPPAS[i] == 3.9:
            assert relative(lost.lam, end.lam) > LAM_BOUND[dtype][i]
