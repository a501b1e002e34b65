"""Starts: their law against weights drawn one by one, their compression, and the order of minibatches."""

import inspect
import itertools
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import ks_2samp, kstest

import catapult_fast as cf
from catapult_fast.compress import compress, compress_test
from catapult_fast.starts import compress_root, compress_weights, draw_root, minibatch_order

SHAPES = [(k, d, n) for k, d in ((1, 1), (1, 3), (2, 3), (4, 2)) for n in (1, 2, 3, 4, 5, 7, 40)]


# --- the law of the root -----------------------------------------------------------------------


@lru_cache
def grams(k, d, n):
    roots = np.array([draw_root(seed, n, d, k) for seed in range(2000)])
    return np.einsum("sij,sil->sjl", roots, roots)


def explicit_grams(k, d, n):
    weights = np.random.default_rng([k, d, n]).standard_normal((2000, n, k + d))
    return np.einsum("sij,sil->sjl", weights, weights)


@pytest.mark.parametrize(("k", "d", "n"), SHAPES)
def test_shape(k, d, n):
    root = draw_root(0, n, d, k)
    assert root.shape == (min(n, k + d), k + d)
    assert (np.tril(root, -1) == 0).all()
    assert (np.diagonal(root) > 0).all()
    assert (root[np.triu_indices_from(root)] != 0).all()


@pytest.mark.parametrize(("k", "d", "n"), SHAPES)
def test_moments_of_the_gram_matrix(k, d, n):
    """A Wishart matrix: mean n I, variances 2n and n, no correlation between its entries."""
    gram = grams(k, d, n)
    count, size = len(gram), k + d
    upper = np.triu_indices(size)
    entries = gram[:, *upper]
    on_diagonal = (upper[0] == upper[1]).astype(float)
    mean, variance = n * on_diagonal, n * (1.0 + on_diagonal)
    assert_allclose(entries.mean(0), mean, rtol=0, atol=4.5 * np.sqrt(2 * n / count))
    # Fourth cumulants of chi^2 make the variance of small n broad.
    assert_allclose(entries.var(0), variance, rtol=4.5 * np.sqrt((2 + 12 / n) / count))
    correlation = np.corrcoef(entries.T)
    assert np.abs(correlation[np.triu_indices_from(correlation, 1)]).max() < 4.5 * np.sqrt((1 + 4 / n) / count)


@pytest.mark.parametrize(("k", "d", "n"), SHAPES)
def test_law_against_explicit_weights(k, d, n):
    """Numbers that mix all entries have the distribution that weights drawn one by one give."""
    ours, explicit = grams(k, d, n), explicit_grams(k, d, n)
    statistics = {
        "readout": lambda g: g[:, 0, 0],
        "last input": lambda g: g[:, -1, -1],
        "output": lambda g: g[:, 0, k],
        "all columns": lambda g: g.sum((1, 2)),
        "largest eigenvalue": lambda g: np.linalg.eigvalsh(g)[:, -1],
        "smallest eigenvalue but zeros": lambda g: np.linalg.eigvalsh(g)[:, max(0, k + d - n)],
        "overlap": lambda g: (g[:, :k, k:] ** 2).sum((1, 2)) / np.einsum("sii->s", g),
    }
    for name, statistic in statistics.items():
        # Some 200 comparisons are made here.
        assert ks_2samp(statistic(ours), statistic(explicit)).pvalue > 1e-4, name


@pytest.mark.parametrize("n", [1, 2, 4, 10**6, 10**12, 10**15])
def test_law_of_one_network_function(n):
    """f(x) for unit x over its conditional scale is N(0, 1), and |v|^2 is chi^2 with n degrees of freedom."""
    roots = np.array([draw_root(seed, n, 3, 1) for seed in range(1500)])
    x = np.array([2.0, -1.0, 2.0]) / 3.0
    norm_v = np.sum(roots[:, :, 0] ** 2, 1)
    f = np.einsum("si,si->s", roots[:, :, 0], roots[:, :, 1:] @ x)
    assert kstest(f / np.sqrt(norm_v), "norm").pvalue > 1e-3
    if n <= 4:
        assert kstest(norm_v, "chi2", args=(n,)).pvalue > 1e-3
    else:
        assert kstest((norm_v - n) / np.sqrt(2.0 * n), "norm").pvalue > 1e-3


def test_starts_differ():
    keys = itertools.product((0, 1, 2**63 - 1), (5, 6, 10**15), (3, 4), (1, 2))
    diagonals = [tuple(np.diagonal(draw_root(*key))[:2] / np.sqrt(key[1])) for key in keys]
    assert len({value for pair in diagonals for value in pair}) == 2 * len(diagonals)


def test_starts_of_neighbours_are_independent():
    """Seeds beside each other, and one seed at two widths, share nothing."""
    n = 50
    roots = np.array([draw_root(seed, n, 3, 2) for seed in range(2001)])
    other = np.array([draw_root(seed, n + 1, 3, 2) for seed in range(2001)])
    i, j = np.triu_indices(5)
    a, b, c = (r[:, i, j] - r[:, i, j].mean(0) for r in (roots[:-1], roots[1:], other[:-1]))
    for x, y in ((a, b), (a, c)):
        correlation = (x * y).mean(0) / (x.std(0) * y.std(0))
        assert np.abs(correlation).max() < 4.5 / np.sqrt(2000)


@pytest.mark.parametrize("n", [10**9, 10**15])
@pytest.mark.parametrize("k", [1, 3])
def test_largest_widths_are_finite_and_of_the_right_scale(n, k):
    root = draw_root(3, n, 5, k)
    assert np.isfinite(root).all()
    diagonal = np.diagonal(root)
    assert_allclose(diagonal, np.sqrt(float(n)), rtol=6 / np.sqrt(2.0 * n))
    assert len(set(diagonal)) == len(diagonal)  # the spread survives rounding
    above = root[np.triu_indices_from(root, 1)]
    assert np.abs(above).max() < 6


def test_same_bits_in_another_process():
    here = draw_root(7, 10**15, 4, 2).tobytes().hex()
    code = "from catapult_fast.starts import draw_root; print(draw_root(7, 10**15, 4, 2).tobytes().hex())"
    environment = {"PYTHONPATH": str(Path(cf.__file__).parent.parent), "PYTHONHASHSEED": "5"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == here


# --- compression -------------------------------------------------------------------------------


def data_of(seed, m, d, k, rank=None, m_test=0):
    rng = np.random.default_rng([seed, m, d, k])
    X = rng.standard_normal((m, d))
    if rank is not None:
        X = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, d))
    test = (rng.standard_normal((m_test, d)), rng.standard_normal((m_test, k))) if m_test else ()
    return cf.Dataset(X, rng.standard_normal((m, k)), *test)


def assert_same_start(begin, V, U, data, root_n, rest=None):
    """Every number of a compressed start from weights written out, V (n, k) and U (n, d)."""
    span = compress(data)
    v, u = V / root_n, U / root_n
    over = np.where(span.sigma > 0, 1 / np.where(span.sigma > 0, span.sigma, 1), 0)
    n = len(V)
    k, r = V.shape[1], len(span.sigma)
    assert begin.v.shape[0] == begin.u.shape[0] == begin.rest.shape[0] <= max(k + r, n)
    scale = max(np.abs(v).max(), np.abs(u).max()) ** 2 * max(n, 1)
    inside = u @ span.directions
    unscaled = begin.u * over
    close = {"rtol": 1e-12, "atol": 1e-13 * scale}
    assert_allclose(begin.v.T @ begin.v, v.T @ v, **close)
    assert_allclose(begin.v.T @ unscaled, v.T @ inside, **close)
    assert_allclose(unscaled.T @ unscaled, inside.T @ inside, **close)
    assert_allclose(begin.norm_u, np.sum(inside**2), **close)
    assert_allclose(begin.outside, np.sum(u**2) - np.sum(inside**2), **close)
    # F gives the outputs on the training data: f = sqrt(m) Phi F^T.
    f = data.X @ U.T @ V / root_n
    largest = 10 * scale * root_n * np.abs(data.X).max()
    assert_allclose(span.features @ begin.fitted.T, f, rtol=1e-11, atol=1e-12 * largest)
    if rest is not None:
        assert_allclose(begin.v.T @ begin.rest, v.T @ (u @ rest), **close)


COMPRESSED = [
    (k, d, m, rank, n)
    for k, d, m, rank in ((1, 3, 5, None), (2, 4, 3, None), (3, 5, 6, 2), (4, 2, 3, None), (1, 6, 1, None))
    for n in (1, 2, 3, 4, 6, 30)
]


@pytest.mark.parametrize(("k", "d", "m", "rank", "n"), COMPRESSED)
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_drawn_start_is_an_explicit_network(k, d, m, rank, n, p):
    """The root itself is a network of min(n, k+d) hidden units: rotating them changes nothing."""
    data = data_of(n, m, d, k, rank, m_test=2)
    span = compress(data)
    rest = compress_test(data, span).directions
    root_n = np.sqrt(n) ** (1 - p)
    root = draw_root(n, n, d, k)
    scale = 2.0 / np.sqrt(n)
    begin = compress_root(root, k, span.sigma, span.directions, rest, scale=scale, root_n=root_n, width=n)
    weights = 2.0 * root * root_n / np.sqrt(n)
    assert_same_start(begin, weights[:, :k], weights[:, k:], data, root_n, rest)
    assert (np.tril(begin.v, -1) == 0).all()
    assert (np.tril(begin.u[k:], -1) == 0).all()


@pytest.mark.parametrize(("k", "d", "m", "rank", "n"), COMPRESSED)
def test_given_weights(k, d, m, rank, n):
    data = data_of(n, m, d, k, rank, m_test=2)
    span = compress(data)
    rest = compress_test(data, span).directions
    rng = np.random.default_rng(n)
    V, U = rng.standard_normal((n, k)), rng.standard_normal((n, d))
    begin = compress_weights(V, U, span.sigma, span.directions, rest, root_n=np.sqrt(n))
    assert_same_start(begin, V, U, data, np.sqrt(n), rest)
    assert len(begin.v) == min(n, k + len(span.sigma))


def first(data, net, **axes):
    rates = axes.pop("rates", {"eta": [0.1]})
    record = cf.Record(every=1, also=("weight_norm",))
    return cf.run(cf.Sweep(data, net, **rates, steps=1, record=record, **axes), progress=False)


@pytest.mark.parametrize("n", [1, 2, 5, 200])
@pytest.mark.parametrize("k", [1, 2])
def test_a_drawn_run_is_the_run_of_its_root(n, k):
    """A sweep over a seed equals the sweep of given weights that are that seed's root."""
    data = data_of(0, 4, 3, k)
    root = draw_root(5, n, 3, k)
    net = cf.TwoLayerLinear(n, sigma_w=1.5)
    drawn = first(data, net, seeds=[5])
    # Its min(n, k+d) rows are fewer than n: the prefactor is put into a net of as many units.
    rows = len(root)
    V, U = 1.5 * root[:, :k] * (rows / n) ** 0.5, 1.5 * root[:, k:]
    given = first(data, net, weights=(V, U))
    assert_allclose(drawn.loss[..., 0], given.loss[..., 0], rtol=1e-12)


def test_start_does_not_depend_on_the_data():
    """Networks of one seed on different data are the same function of the inputs."""
    d = 3
    net = cf.TwoLayerLinear(17)
    zero = [np.zeros(m) for m in range(5)]
    slope = []
    for i in range(d):
        only = first(cf.Dataset(np.eye(d)[i : i + 1], zero[1]), net)
        slope.append(np.sqrt(2 * only.loss[0, 0, 0, 0]))
    root = draw_root(0, 17, d, 1)
    assert_allclose(slope, np.abs(root[:, 0] @ root[:, 1:]) / np.sqrt(17), rtol=1e-12)
    norms = [
        first(data, net).weight_norm[0, 0, 0, 0]
        for data in (data_of(0, 1, d, 1), data_of(1, 4, d, 1), data_of(2, 9, d, 1), data_of(2, 9, d, 1, rank=2))
    ]
    assert_allclose(norms, np.sum(root**2), rtol=1e-13)


@pytest.mark.parametrize("k", [1, 2])
def test_start_does_not_depend_on_rates_or_training(k):
    data, net = data_of(0, 4, 3, k), cf.TwoLayerLinear(9)
    plain = first(data, net, seeds=3)
    others = [
        {"rates": {"eta": [7.0, 0.0, 0.2]}},
        {"rates": {"kappa": [0.5, 1.0]}},
        {"training": cf.GradientDescent(momentum=0.9, batch_size=2)},
        {"stop": cf.Stop(None, None)},
    ]
    for changes in others:
        changed = first(data, net, **({"seeds": 3} | changes))
        assert_array_equal(changed.initial_loss, plain.initial_loss)
        # The eigenvalue may come from another algorithm: which one is decided from the sweep.
        assert_allclose(changed.initial_ntk_lambda_max, plain.initial_ntk_lambda_max, rtol=1e-14)
    alone = first(data, net, seeds=[2], width=[9, 4])
    assert_allclose(alone.initial_loss[0, 0], plain.initial_loss[0, 2], rtol=1e-14)
    assert_allclose(alone.initial_ntk_lambda_max[0, 0], plain.initial_ntk_lambda_max[0, 2], rtol=1e-14)


def test_largest_width_in_a_sweep():
    """At n = 10^15 the loss of the start and its tangent kernel are those of the limit of wide networks."""
    data = data_of(0, 4, 3, 1)
    wide = first(data, cf.TwoLayerLinear(10**15), seeds=20, rates={"kappa": [1.0]})
    limit = 2 * np.linalg.eigvalsh(data.X @ data.X.T / 4)[-1]  # both layers give lambda_max(X X^T/m)
    assert_allclose(wide.initial_ntk_lambda_max, limit, rtol=1e-6)
    assert np.isfinite(wide.loss).all()
    # f is N(0, X X^T): its mean square is the trace.
    f2 = 2 * wide.initial_loss - np.mean(data.Y**2)
    assert abs(f2.mean()) < 10 * np.mean(data.X**2) * 3
    assert_allclose(wide.weight_norm[..., 0], 4e15, rtol=1e-6)


# --- minibatches -------------------------------------------------------------------------------

orders = given(seed=st.integers(0, 2**63 - 1), m=st.integers(1, 12), share=st.floats(0.01, 1), steps=st.integers(0, 40))


@orders
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_every_epoch_is_without_replacement(seed, m, share, steps):
    size = max(1, round(share * m))
    order = minibatch_order(seed, m, size, steps)
    assert order.shape == (steps, size)
    assert order.dtype == np.int64
    per_epoch = m // size
    for low in range(0, steps, per_epoch):
        epoch = order[low : low + per_epoch].ravel()
        assert len(set(epoch.tolist())) == len(epoch)
        assert set(epoch.tolist()) <= set(range(m))
        if m % size == 0 and len(epoch) == m:
            assert sorted(epoch.tolist()) == list(range(m))


@orders
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_longer_runs_go_on(seed, m, share, steps):
    size = max(1, round(share * m))
    assert np.array_equal(minibatch_order(seed, m, size, 60)[:steps], minibatch_order(seed, m, size, steps))


def test_epochs_are_keyed_by_seed_and_epoch():
    """Whatever the batch size, an epoch is the beginning of one permutation."""
    whole = minibatch_order(3, 12, 12, 5)
    for size in (1, 2, 3, 5, 7):
        per_epoch = 12 // size
        epochs = minibatch_order(3, 12, size, 5 * per_epoch).reshape(5, per_epoch * size)
        assert np.array_equal(epochs, whole[:, : per_epoch * size])
    assert len({tuple(row) for row in whole.tolist()}) == 5
    assert not np.array_equal(minibatch_order(4, 12, 12, 5), whole)


def test_orders_are_uniform():
    """Every sample is as often first as any other, and pairs of epochs are independent."""
    m, seeds = 4, 3000
    orders = np.array([minibatch_order(seed, m, m, 2) for seed in range(seeds)])
    counts = np.zeros((m, m))
    np.add.at(counts, (orders[:, 0, 0], orders[:, 1, 0]), 1)
    expected = seeds / m**2
    assert np.abs(counts - expected).max() < 4.5 * np.sqrt(expected)


def test_nothing_of_the_data_enters_a_draw():
    """The signatures are the promise: seed, width and sizes alone."""
    assert list(inspect.signature(draw_root).parameters) == ["seed", "width", "d", "k"]
    assert list(inspect.signature(minibatch_order).parameters) == ["seed", "m", "batch_size", "steps"]


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_order_is_equal_for_rates_and_widths(loss):
    """A run with minibatches is that of the order above, at every rate and width of a seed."""
    data = cf.Dataset(data_of(0, 5, 3, 2).X, np.eye(2)[[0, 1, 1, 0, 1]])
    batched = cf.GradientDescent(batch_size=2)
    common = {"steps": 4, "loss": loss, "record": cf.Record(every=1), "stop": cf.Stop(None, None)}
    together = cf.Sweep(
        data, cf.TwoLayerLinear(), eta=[0.05, 0.2], width=[3, 50], seeds=[4, 9], training=batched, **common
    )
    results = cf.run(together, progress=False)
    for w, s, r in itertools.product(range(2), range(2), range(2)):
        loss_of = sgd(data, together, w, s, r, loss)
        assert_allclose(results.loss[w, s, r], loss_of, rtol=1e-9)


def sgd(data, sweep, w, s, r, loss):
    """Minibatch descent with every weight written out, from the sweep's own start."""
    n, seed, eta = int(sweep.width[w]), int(sweep.seeds[s]), sweep.eta[r]
    root = draw_root(seed, n, data.d, data.k)
    V, U = root[:, : data.k].copy(), root[:, data.k :].copy()

    def outputs(X):
        return X @ U.T @ V / np.sqrt(n)

    def value(f, Y):
        if loss == "mse":
            return np.sum((f - Y) ** 2) / (2 * len(Y))
        return np.mean(np.log(np.exp(f).sum(1)) - (Y * f).sum(1))

    losses = [value(outputs(data.X), data.Y)]
    for batch in minibatch_order(seed, data.m, 2, sweep.steps):
        X, f = data.X[batch], outputs(data.X[batch])
        slope = f if loss == "mse" else np.exp(f) / np.exp(f).sum(1, keepdims=True)
        E = (slope - data.Y[batch]).T @ X / len(batch) / np.sqrt(n)
        V, U = V - eta * U @ E.T, U - eta * V @ E
        losses.append(value(outputs(data.X), data.Y))
    return losses


def test_given_weights_take_the_order_of_seed_zero():
    data = data_of(0, 5, 3, 1)
    root = draw_root(0, 2, 3, 1)
    batched = cf.GradientDescent(batch_size=2)
    common = {"eta": [0.1], "steps": 6, "training": batched, "stop": cf.Stop(None, None)}
    net = cf.TwoLayerLinear(2)
    starts = ({"seeds": [0]}, {"weights": (root[:, :1], root[:, 1:])}, {"seeds": [1]})
    drawn, given_weights, other = (cf.run(cf.Sweep(data, net, **s, **common), progress=False).loss for s in starts)
    assert_allclose(drawn, given_weights, rtol=1e-11)
    assert not np.allclose(drawn, other, rtol=1e-3)
