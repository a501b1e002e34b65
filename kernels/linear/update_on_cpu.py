"""One update of a tile: rows in fours, product and update fused, sums over rows in growing order."""

from __future__ import annotations

from catapult_fast.kernels.compile import inner
from catapult_fast.kernels.linear.formula import fitted_after, keep, norm_after, step_length
from catapult_fast.kernels.loops import rolled
from catapult_fast.kernels.simd import fill, fma, like, load, store, widen


@inner
def _prepare(rho, spectrum, scratch):
    """pull = rho * s; growth and gram to zero."""
    k, r = rho.shape[0], rho.shape[1]
    for c in range(k):
        rolled()
        for j in range(r):
            rolled()
            p = load(rho, c * r + j)
            store(scratch.pull, c * r + j, p * spectrum[j])
            store(scratch.growth, c * r + j, fill(p, 0.0))
        for e in range(k):
            rolled()
            store(scratch.gram, c * k + e, fill(load(scratch.gram, 0), 0.0))


@inner
def _gram_of_rows(v, row, k, gram):
    """Add four rows to V^T V, in float64."""
    for c in range(k):
        rolled()
        for e in range(c + 1):
            rolled()
            total = load(gram, c * k + e)
            for i in range(row, row + 4):
                rolled()
                total = fma(widen(load(v, i * k + c)), widen(load(v, i * k + e)), total)
            store(gram, c * k + e, total)
            store(gram, e * k + c, total)


@inner
def _dots(u, row, rho, c, moves):
    """Four rows of u times row c of rho."""
    r = rho.shape[1]
    b = row * r
    h0 = h1 = h2 = h3 = fill(load(rho, 0), 0.0)
    for j in range(r):
        rolled()
        p = load(rho, c * r + j)
        h0 = fma(load(u, b + j), p, h0)
        h1 = fma(load(u, b + r + j), p, h1)
        h2 = fma(load(u, b + 2 * r + j), p, h2)
        h3 = fma(load(u, b + 3 * r + j), p, h3)
    store(moves, 4 * c, h0)
    store(moves, 4 * c + 1, h1)
    store(moves, 4 * c + 2, h2)
    store(moves, 4 * c + 3, h3)


@inner
def _move_four(u, row, a, kept, decays, scratch):
    """u' = c u - (a v) pull for four rows, and growth += dv^T u'."""
    k, r = scratch.pull.shape[0], scratch.pull.shape[1]
    b = row * r
    pull, growth, moves, scaled = scratch.pull, scratch.growth, scratch.moves, scratch.scaled
    for c in range(k):
        rolled()
        last = c == k - 1
        s0, s1, s2, s3 = load(scaled, 4 * c), load(scaled, 4 * c + 1), load(scaled, 4 * c + 2), load(scaled, 4 * c + 3)
        for j in range(r):
            rolled()
            p = load(pull, c * r + j)
            x0, x1 = load(u, b + j), load(u, b + r + j)
            x2, x3 = load(u, b + 2 * r + j), load(u, b + 3 * r + j)
            if decays and c == 0:
                x0, x1, x2, x3 = kept * x0, kept * x1, kept * x2, kept * x3
            x0, x1, x2, x3 = fma(-s0, p, x0), fma(-s1, p, x1), fma(-s2, p, x2), fma(-s3, p, x3)
            store(u, b + j, x0)
            store(u, b + r + j, x1)
            store(u, b + 2 * r + j, x2)
            store(u, b + 3 * r + j, x3)
            if last and k == 1:
                g = fma(load(moves, 0), x0, load(growth, j))
                g = fma(load(moves, 1), x1, g)
                g = fma(load(moves, 2), x2, g)
                store(growth, j, fma(load(moves, 3), x3, g))
    if k > 1:
        for c in range(k):
            rolled()
            m0, m1, m2, m3 = load(moves, 4 * c), load(moves, 4 * c + 1), load(moves, 4 * c + 2), load(moves, 4 * c + 3)
            for j in range(r):
                rolled()
                g = fma(m0, load(u, b + j), load(growth, c * r + j))
                g = fma(m1, load(u, b + r + j), g)
                g = fma(m2, load(u, b + 2 * r + j), g)
                store(growth, c * r + j, fma(m3, load(u, b + 3 * r + j), g))


@inner
def _norm_terms(rho, fitted, spectrum, gram):
    """<rho, F> and <V^T V, rho s rho^T> in float64."""
    k, r = rho.shape[0], rho.shape[1]
    along = across = fill(load(gram, 0), 0.0)
    for c in range(k):
        rolled()
        for j in range(r):
            rolled()
            along = fma(widen(load(rho, c * r + j)), widen(load(fitted, c * r + j)), along)
        for e in range(k):
            rolled()
            total = fill(along, 0.0)
            for j in range(r):
                rolled()
                total = fma(widen(load(rho, c * r + j)) * spectrum[j], widen(load(rho, e * r + j)), total)
            across = fma(load(gram, c * k + e), total, across)
    return along, across


@inner
def _refit(fitted, eta, kept, root_n, scratch):
    """F' of every output."""
    k, r = fitted.shape[0], fitted.shape[1]
    for c in range(k):
        rolled()
        for j in range(r):
            rolled()
            drift = fill(eta, 0.0)
            for e in range(k):
                rolled()
                drift = fma(like(load(scratch.gram, c * k + e), eta), load(scratch.pull, e * r + j), drift)
            new = fitted_after(
                load(fitted, c * r + j), kept, root_n, load(scratch.growth, c * r + j), eta, drift
            )  # fmt: skip
            store(fitted, c * r + j, new)


@inner
def descend(part, rho, spectrum, eta, decay, root_n, norm, scratch):
    """Gradient descent with weight decay on one tile.

    ``eta``, ``root_n`` and ``norm`` are float64 vectors (eta 0 in idle lanes, which stay as they
    are); returns ``|u/sigma|^2`` after the step.
    """
    v, u, fitted = part.v, part.u, part.fitted
    k = rho.shape[0]
    model = load(v, 0)
    wide_kept = keep(eta, decay)
    wide_a = step_length(eta, root_n)
    a, kept = like(wide_a, model), like(wide_kept, model)
    _prepare(rho, spectrum, scratch)
    for row in range(0, v.shape[0], 4):
        rolled()
        _gram_of_rows(v, row, k, scratch.gram)
        for c in range(k):
            rolled()
            _dots(u, row, rho, c, scratch.moves)
            for i in range(4):
                store(scratch.moves, 4 * c + i, -a * load(scratch.moves, 4 * c + i))
                store(scratch.scaled, 4 * c + i, a * load(v, (row + i) * k + c))
        _move_four(u, row, a, kept, decay != 0.0, scratch)
        for c in range(k):
            rolled()
            for i in range(4):
                at = (row + i) * k + c
                store(v, at, fma(kept, load(v, at), load(scratch.moves, 4 * c + i)))
    along, across = _norm_terms(rho, fitted, spectrum, scratch.gram)
    _refit(fitted, like(eta, model), kept, like(root_n, model), scratch)
    return norm_after(norm, wide_kept, wide_a, along, across, root_n)


@inner
def _roll_readout(part, row, a, rate, beta, scratch):
    """P_v' of four rows into ``scratch.moves``, a v into ``scratch.scaled``."""
    k = scratch.pull.shape[0]
    for c in range(k):
        rolled()
        for i in range(4):
            at = (row + i) * k + c
            x = load(part.v, at)
            p = fma(-rate, x, beta * load(part.velocity_v, at) - a * load(scratch.moves, 4 * c + i))
            store(part.velocity_v, at, p)
            store(scratch.moves, 4 * c + i, p)
            store(scratch.scaled, 4 * c + i, a * x)


@inner
def _roll_four(part, row, rate, beta, problem, norm, scratch):
    """P_u', u' and their part of the growth for four rows, v being the old one; adds to ``|u/sigma|^2``."""
    k, r = scratch.pull.shape[0], scratch.pull.shape[1]
    u, velocity, pull, growth, moves, scaled = (
        part.u, part.velocity_u, scratch.pull, scratch.growth, scratch.moves, scratch.scaled
    )  # fmt: skip
    for j in range(r):
        rolled()
        at, vat = row * r + j, row * k
        x0, x1, x2, x3 = load(u, at), load(u, at + r), load(u, at + 2 * r), load(u, at + 3 * r)
        p0 = fma(-rate, x0, beta * load(velocity, at))
        p1 = fma(-rate, x1, beta * load(velocity, at + r))
        p2 = fma(-rate, x2, beta * load(velocity, at + 2 * r))
        p3 = fma(-rate, x3, beta * load(velocity, at + 3 * r))
        for c in range(k):
            rolled()
            g = load(pull, c * r + j)
            p0, p1 = fma(-load(scaled, 4 * c), g, p0), fma(-load(scaled, 4 * c + 1), g, p1)
            p2, p3 = fma(-load(scaled, 4 * c + 2), g, p2), fma(-load(scaled, 4 * c + 3), g, p3)
        x0, x1, x2, x3 = x0 + p0, x1 + p1, x2 + p2, x3 + p3
        store(velocity, at, p0)
        store(velocity, at + r, p1)
        store(velocity, at + 2 * r, p2)
        store(velocity, at + 3 * r, p3)
        store(u, at, x0)
        store(u, at + r, x1)
        store(u, at + 2 * r, x2)
        store(u, at + 3 * r, x3)
        for c in range(k):
            rolled()
            g = fma(load(moves, 4 * c), x0, fma(load(part.v, vat + c), p0, load(growth, c * r + j)))
            g = fma(load(moves, 4 * c + 1), x1, fma(load(part.v, vat + k + c), p1, g))
            g = fma(load(moves, 4 * c + 2), x2, fma(load(part.v, vat + 2 * k + c), p2, g))
            g = fma(load(moves, 4 * c + 3), x3, fma(load(part.v, vat + 3 * k + c), p3, g))
            store(growth, c * r + j, g)
        w0, w1, w2, w3 = widen(x0), widen(x1), widen(x2), widen(x3)
        norm = fma(fma(w3, w3, fma(w2, w2, fma(w1, w1, w0 * w0))), problem.inverse[j], norm)
    return norm


@inner
def roll(part, rho, problem, eta, momentum, root_n, scratch):
    """Heavy ball with weight decay on one tile: ``P' = beta P - eta g``, ``Z' = Z + P'``.

    F' = F + sqrt(n_eff) (P_v'^T u' + v^T P_u'). Returns ``|u'/sigma|^2``, formed directly.
    """
    k = rho.shape[0]
    model = load(part.v, 0)
    a, rate = like(step_length(eta, root_n), model), like(eta * problem.weight_decay, model)
    beta, root = like(momentum, model), like(root_n, model)
    norm = fill(eta, 0.0)
    _prepare(rho, problem.spectrum, scratch)
    for row in range(0, part.v.shape[0], 4):
        rolled()
        for c in range(k):
            rolled()
            _dots(part.u, row, rho, c, scratch.moves)
        _roll_readout(part, row, a, rate, beta, scratch)
        norm = _roll_four(part, row, rate, beta, problem, norm, scratch)
        for c in range(k):
            rolled()
            for i in range(4):
                at = (row + i) * k + c
                store(part.v, at, load(part.v, at) + load(scratch.moves, 4 * c + i))
    for i in range(rho.shape[0] * rho.shape[1]):
        rolled()
        store(part.fitted, i, fma(root, load(scratch.growth, i), load(part.fitted, i)))
    return norm
