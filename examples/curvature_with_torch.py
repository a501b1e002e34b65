"""Recipe: extreme curvatures of a PyTorch model with `cf.top_eig`, while it trains at a large learning rate.

    python curvature_with_torch.py [--width N] [--samples N] [--seeds N] [--steps N] [--rate C]

To copy: `flat_model`, the three products, and `top`, which hands one of them to `top_eig`. Networks of several
seeds take steps of gradient descent, with C/sharpness as learning rate; a table says what the curvature is on
the way, and at the end it is compared with dense matrices.

Everything is float64. With float32 parameters and a float32 `start` the default tolerance is 2e-5 instead of
1e-10, and the bounds allow for the rounding of float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap

import catapult_fast as cf

CHECKPOINTS = (0, 1, 2, 3, 4, 6, 10, 20, 50, 100, 200, 500)
LEGEND = """lower and upper are bounds, less the largest eigenvalue of the Hessian;
products are those of the Hessian (both ends) + Gauss-Newton (GN) + NTK, after step 0 with starts.
step seed     loss  smallest   largest  rate*lam  residual     lower     upper        GN       NTK  products"""


def flat_model(model: torch.nn.Module, X: Tensor) -> tuple[Callable, Tensor]:
    """Outputs at X as a function of all parameters in one vector, and that vector."""
    parameters = dict(model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def outputs(theta: Tensor) -> Tensor:
        parts = zip(parameters.items(), theta.split(sizes), strict=True)
        return functional_call(model, {name: part.view_as(p) for (name, p), part in parts}, (X,))

    return outputs, torch.cat([p.detach().flatten() for p in parameters.values()])


def hessian_product(loss: Callable, theta: Tensor, v: Tensor) -> Tensor:
    """H v: the derivative along v of the gradient of loss(theta)."""
    return jvp(grad(loss), (theta,), (v,))[1]


def gauss_newton_product(outputs: Callable, cost: Callable, theta: Tensor, v: Tensor) -> Tensor:
    """J^T H_out J v, with J the Jacobian of outputs(theta) and H_out the Hessian of cost(outputs)."""
    f, pull_back = vjp(outputs, theta)
    pushed = jvp(outputs, (theta,), (v,))[1]
    return pull_back(hessian_product(cost, f, pushed))[0]


def kernel_product(outputs: Callable, theta: Tensor, u: Tensor) -> Tensor:
    """J J^T u / m, with u flat over the m samples and their outputs."""
    f, pull_back = vjp(outputs, theta)
    (pulled,) = pull_back(u.view_as(f))
    return jvp(outputs, (theta,), (pulled,))[1].reshape(u.shape) / len(f)


def top(products: Callable, n: int, which: str, thetas: Tensor, before: cf.EigenResult | None) -> cf.EigenResult:
    """Extreme eigenvalues at every row of ``thetas``, all advanced together.

    ``products(thetas, v)`` gets v of shape (batch, n) and returns its products in that shape. Library and dtype
    of v are those of ``start``: the vectors found before, or zeros, which say no more than that.
    """
    cold = thetas.new_zeros((n, 2) if which == "both" else n)
    start = cold if before is None else torch.from_numpy(before.eigenvectors).to(thetas)
    return cf.top_eig(partial(products, thetas), n=n, batch=(len(thetas),), which=which, start=start)


def squared_error(Y: Tensor, f: Tensor) -> Tensor:
    """1/(2m) sum |f - y|^2, for which Gauss-Newton is J^T J/m and has the largest eigenvalue of the kernel."""
    return ((f - Y) ** 2).sum() / (2 * len(Y))


def load_images(samples: int) -> tuple[Tensor, Tensor]:
    """Images of three classes as 7 x 7 averages, which keep full matrices small."""
    data = cf.load_dataset("fashion-mnist-mini", classes=(0, 1, 2), n_train=samples)
    return torch.tensor(data.X.reshape(-1, 7, 4, 7, 4).mean(axis=(2, 4)).reshape(-1, 49)), torch.tensor(data.Y)


def make_network(width: int, seed: int) -> torch.nn.Module:
    """Two layers, weights N(0, 1/inputs)."""
    torch.manual_seed(seed)
    first, last = torch.nn.Linear(49, width, bias=False), torch.nn.Linear(width, 3, bias=False)
    for layer in (first, last):
        torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    return torch.nn.Sequential(first, torch.nn.Tanh(), last).double()


def print_rows(step: int, losses: Tensor, rate: Tensor, found: dict[str, cf.EigenResult]) -> None:
    """Print one row for each seed."""
    hess, newton, kernel = found.values()
    for i, loss in enumerate(losses.tolist()):
        low, high = hess.eigenvalues[i]
        lower, upper = hess.lower_bounds[i, 1] - high, hess.upper_bounds[i, 1] - high
        print(
            f"{step:4} {i:4} {loss:8.4f} {low:9.4f} {high:9.4f} {float(rate[i]) * high:9.3f}"
            f" {hess.residuals[i, 1]:9.1e} {lower:+9.1e} {upper:+9.1e}"
            f" {newton.eigenvalues[i]:9.4f} {kernel.eigenvalues[i]:9.4f} "
            + "+".join(str(result.iterations[i]) for result in found.values()).rjust(9)
        )


def compare(outputs: Callable, loss: Callable, thetas: Tensor, found: dict[str, cf.EigenResult]) -> None:
    """Compare with the spectra of the matrices themselves; leave with an error where they differ."""
    spectra = []
    for theta in thetas:
        J = jacrev(outputs)(theta)  # samples, outputs, parameters
        m, J = len(J), J.flatten(0, 1)
        matrices = hessian(loss)(theta), J.T @ J / m, J @ J.T / m
        spectra.append([torch.linalg.eigvalsh(matrix)[[0, -1]].tolist() for matrix in matrices])
    for (name, result), true in zip(found.items(), np.swapaxes(spectra, 0, 1), strict=True):
        lam = result.eigenvalues.reshape(len(true), -1)
        difference = np.max(np.abs(lam - true[:, -lam.shape[1] :]) / np.abs(true).max(axis=1, keepdims=True))
        print(f"{name:12} {difference:.1e}")
        if not difference <= 1e-8:
            raise SystemExit(f"{name}: top_eig and the dense matrix differ by {difference:.1e} of the norm")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, print the table, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 24), ("samples", 30), ("seeds", 2), ("steps", 20)):
        parser.add_argument(f"--{name}", default=default, type=int)
    parser.add_argument("--rate", default=3.0, type=float, help="learning rate times the sharpness of the start")
    given = parser.parse_args(arguments)
    X, Y = load_images(given.samples)
    flat = [flat_model(make_network(given.width, seed), X) for seed in range(given.seeds)]
    outputs, thetas = flat[0][0], torch.stack([theta for _, theta in flat])
    cost = partial(squared_error, Y)

    def loss(theta: Tensor) -> Tensor:
        return cost(outputs(theta))

    n = thetas.shape[1]
    operators = {
        "Hessian": partial(top, vmap(partial(hessian_product, loss)), n, "both"),
        "Gauss-Newton": partial(top, vmap(partial(gauss_newton_product, outputs, cost)), n, "largest"),
        "NTK": partial(top, vmap(partial(kernel_product, outputs)), Y.numel(), "largest"),
    }
    print(f"{n} parameters, {given.samples} samples;\n{LEGEND}")
    found = {}
    for step in range(given.steps + 1):
        losses = vmap(loss)(thetas)
        if not losses.isfinite().all():
            raise SystemExit(f"training diverged at step {step}: take a smaller --rate")
        if step in CHECKPOINTS or step == given.steps:
            found = {name: solve(thetas, found.get(name)) for name, solve in operators.items()}
            if step == 0:
                rate = given.rate / torch.from_numpy(found["Hessian"].eigenvalues[:, 1:])
            print_rows(step, losses, rate, found)
        if step < given.steps:
            thetas = thetas - rate * vmap(grad(loss))(thetas)
    print("The last rows without starts:")
    print_rows(step, losses, rate, {name: solve(thetas, None) for name, solve in operators.items()})
    if n <= 1500:  # full matrices of more parameters take long
        print("\nLargest difference from a dense eigensolver, relative to the norm:")
        compare(outputs, loss, thetas, found)


if __name__ == "__main__":
    main()
