"""The recipes for PyTorch and JAX: products against dense matrices, and `top_eig` on them."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

# torch's forward mode scripts its own rules when it is first used
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

EXAMPLES = Path(__file__).parents[1] / "examples"
OPERATORS = ("hessian", "newton", "kernel")
TINY = ("--width", "5", "--samples", "6", "--seeds", "2", "--steps", "3")
RNG = np.random.default_rng(5)
X, Y = RNG.standard_normal((7, 5)), RNG.standard_normal((7, 2))
SHAPES = ((6, 5), (6,), (4, 6), (4,), (2, 4), (2,))
PARAMETERS = [[RNG.standard_normal(shape) / 2 for shape in SHAPES] for _ in range(3)]


@dataclass(frozen=True, eq=False)
class Recipe:
    """A script, and what the tests need of its library."""

    script: ModuleType
    array: Callable
    networks: Callable  # dtype to outputs(theta) and the parameters of three networks
    many: Callable
    hessian: Callable
    jacobian: Callable
    truth: Any  # outputs of the last network
    log_sum_exp: Callable


def load(library):
    name = f"curvature_with_{library}"
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def torch_recipe():
    torch = pytest.importorskip("torch")
    script, nn = load("torch"), torch.nn

    def array(numbers, dtype="float64"):
        return torch.tensor(numbers, dtype=getattr(torch, dtype))

    def model(parameters, dtype):
        layers = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
        for there, here in zip(layers.parameters(), parameters, strict=True):
            there.data = array(here, dtype)
        return layers

    def networks(dtype="float64"):
        flat = [script.flat_model(model(parameters, dtype), array(X, dtype)) for parameters in PARAMETERS]
        return flat[0][0], torch.stack([theta for _, theta in flat])

    yield Recipe(
        script=script, array=array, networks=networks, many=torch.func.vmap,
        hessian=torch.autograd.functional.hessian, jacobian=torch.autograd.functional.jacobian,
        truth=model(PARAMETERS[-1], "float64")(array(X)).detach(), log_sum_exp=lambda f: torch.logsumexp(f, 1).sum(),
    )  # fmt: skip


def jax_recipe():
    jax = pytest.importorskip("jax")
    before = {name: jax.config.read(name) for name in ("jax_enable_x64", "jax_disable_most_optimizations")}
    jax.config.update("jax_disable_most_optimizations", True)  # compiling takes most of the time
    script, jnp = load("jax"), jax.numpy  # the script asks for float64

    def model(parameters, inputs):
        a, b, c, d, e, f = parameters
        hidden = jnp.tanh(jax.nn.gelu(inputs @ a.T + b, approximate=False) @ c.T + d)
        return hidden @ e.T + f

    def networks(dtype="float64"):
        flat = []
        for parameters in PARAMETERS:
            arrays = [jnp.asarray(p, dtype) for p in parameters]
            flat.append(script.flat_model(model, arrays, jnp.asarray(X, dtype)))
        return flat[0][0], jnp.stack([theta for _, theta in flat])

    yield Recipe(
        script=script, array=jnp.asarray, networks=networks, many=lambda f: jax.jit(jax.vmap(f)),
        hessian=lambda f, x: jax.jit(jax.jacrev(jax.grad(f)))(x), jacobian=lambda f, x: jax.jit(jax.jacrev(f))(x),
        truth=model(PARAMETERS[-1], X), log_sum_exp=lambda f: jax.scipy.special.logsumexp(f, axis=1).sum(),
    )  # fmt: skip
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module", params=["torch", "jax"])
def recipe(request):
    yield from {"torch": torch_recipe, "jax": jax_recipe}[request.param]()


@cache
def operator(recipe, name, dtype="float64"):
    """Function (thetas, v) to products, the size of the operator, and the parameters of three networks."""
    outputs, thetas = recipe.networks(dtype)
    script, cost = recipe.script, partial(recipe.script.squared_error, recipe.array(Y, dtype))
    product, n = {
        "hessian": (partial(script.hessian_product, lambda theta: cost(outputs(theta))), thetas.shape[1]),
        "newton": (partial(script.gauss_newton_product, outputs, cost), thetas.shape[1]),
        "kernel": (partial(script.kernel_product, outputs), Y.size),
    }[name]
    return recipe.many(product), n, thetas


@cache
def dense(recipe, name):
    """The matrices of three networks, by reverse mode alone and by their formula."""
    outputs, thetas = recipe.networks()
    if name == "hessian":
        targets = recipe.array(Y)
        return [
            np.asarray(recipe.hessian(lambda theta: ((outputs(theta) - targets) ** 2).sum() / (2 * len(X)), theta))
            for theta in thetas
        ]
    jacobians = [np.asarray(recipe.jacobian(outputs, theta)).reshape(Y.size, -1) for theta in thetas]
    return [(J.T @ J if name == "newton" else J @ J.T) / len(X) for J in jacobians]


def top(recipe, name, *, members=slice(None), moved=1.0, before=None, which="largest", dtype="float64"):
    products, n, thetas = operator(recipe, name, dtype)
    return recipe.script.top(products, n, which, thetas[members] * moved, before)


def assert_close(given, wanted, rtol):
    np.testing.assert_allclose(np.asarray(given), wanted, rtol=0, atol=rtol * np.linalg.norm(wanted))


def assert_within(found, true):
    assert found.converged.all()
    assert (found.bound == 1).all()
    assert (found.lower_bounds <= true).all()
    assert (true <= found.upper_bounds).all()


def test_the_flat_model_is_the_model(recipe):
    outputs, thetas = recipe.networks()
    assert_close(outputs(thetas[-1]), np.asarray(recipe.truth), 1e-15)


@pytest.mark.parametrize("name", OPERATORS)
def test_products(recipe, name):
    products, n, thetas = operator(recipe, name)
    columns = [np.asarray(products(thetas, recipe.array(np.tile(v, (3, 1))))) for v in np.eye(n)]
    for i, matrix in enumerate(dense(recipe, name)):
        assert_close([column[i] for column in columns], matrix, 1e-12)


def test_gauss_newton_of_another_cost(recipe):
    outputs, thetas = recipe.networks()
    J = np.asarray(recipe.jacobian(outputs, thetas[0])).reshape(Y.size, -1)
    curved = np.asarray(recipe.hessian(recipe.log_sum_exp, outputs(thetas[0]))).reshape(Y.size, Y.size)
    v = np.random.default_rng(1).standard_normal((1, J.shape[1]))
    products = recipe.many(partial(recipe.script.gauss_newton_product, outputs, recipe.log_sum_exp))
    assert_close(products(thetas[:1], recipe.array(v)), v @ J.T @ curved @ J, 1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_largest_eigenvalue(recipe, name):
    found = top(recipe, name)
    true = np.linalg.eigvalsh(dense(recipe, name))[:, -1]
    np.testing.assert_allclose(found.eigenvalues, true, rtol=1e-9)
    assert_within(found, true)


def test_both_ends_of_the_hessian(recipe):
    found = top(recipe, "hessian", which="both")
    true = np.linalg.eigvalsh(dense(recipe, "hessian"))[:, [0, -1]]
    np.testing.assert_allclose(found.eigenvalues, true, rtol=1e-9)
    assert_within(found, true)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_batch_is_its_members(recipe, name):
    together = top(recipe, name)
    alone = [float(top(recipe, name, members=slice(i, i + 1)).eigenvalues[0]) for i in range(3)]
    np.testing.assert_allclose(together.eigenvalues, alone, rtol=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_start_saves_products(recipe, name):
    which = "both" if name == "hessian" else "largest"
    before = top(recipe, name, which=which)
    cold = top(recipe, name, which=which, moved=1.0001)
    warm = top(recipe, name, which=which, moved=1.0001, before=before)
    assert warm.iterations.sum() < cold.iterations.sum()
    assert (warm.iterations <= cold.iterations).all()
    np.testing.assert_allclose(warm.eigenvalues, cold.eigenvalues, rtol=1e-12)


def test_kernel_and_gauss_newton_share_the_top(recipe):
    np.testing.assert_allclose(top(recipe, "newton").eigenvalues, top(recipe, "kernel").eigenvalues, rtol=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_float32(recipe, name):
    found = top(recipe, name, dtype="float32")
    true = np.linalg.eigvalsh(dense(recipe, name))[:, -1]
    np.testing.assert_allclose(found.eigenvalues, true, rtol=1e-5)
    assert np.abs(found.eigenvalues / true - 1).max() > 1e-12  # it was not float64
    assert_within(found, true)


def test_the_script(recipe, capsys):
    recipe.script.main(TINY)
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line[:4].strip().isdigit() and len(line.split()) == 12]
    assert [row[:2] for row in rows] == [[str(step), str(seed)] for step in (0, 1, 2, 3, 3) for seed in (0, 1)]
    assert {row[5] for row in rows[:2]} == {"3.000"}
    differences = {line.split()[0]: float(line.split()[-1]) for line in lines[-3:]}
    assert list(differences) == ["Hessian", "Gauss-Newton", "NTK"]
    assert max(differences.values()) < 1e-13


def test_the_script_sees_a_wrong_product(recipe, monkeypatch):
    script = recipe.script
    monkeypatch.setattr(script, "hessian_product", lambda loss, theta, v: 1.0000001 * v)
    with pytest.raises(SystemExit, match="Hessian: top_eig and the dense matrix differ"):
        script.main([*TINY[:-1], "0"])


def test_the_script_says_that_training_diverged(recipe):
    with pytest.raises(SystemExit, match="training diverged at step"):
        recipe.script.main([*TINY[:-1], "200", "--rate", "1e100"])
