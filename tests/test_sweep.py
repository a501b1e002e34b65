"""Descriptions of a sweep: what they accept, what they say of the rest, and their digest."""

import copy
import dataclasses
import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import catapult_fast as cf
from catapult_fast.sweep import ALSO

X = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0], [-2.0, 1.0, 1.0], [4.0, -1.0, 0.25]])
Y = np.array([1.0, -1.0, -1.0, 1.0])
DATA = cf.Dataset(X, Y, X[:2] + 1.0, Y[:2])
ONE_HOT = cf.Dataset(X, np.eye(2)[[0, 1, 1, 0]])
NET = cf.TwoLayerLinear(64)
V, U = np.arange(5.0), np.arange(15.0).reshape(5, 3)


def sweep(**changes):
    return cf.Sweep(**({"data": DATA, "net": NET, "eta": [0.5, 1.0]} | changes))


# --- what is refused ---------------------------------------------------------------------------

RATES = "exactly one of eta, kappa and c"
REFUSED = [
    # arguments, error, what the sentence has to say
    ({"eta": None}, cf.ConfigError, [RATES, "none"]),
    ({"kappa": [1.0]}, cf.ConfigError, [RATES, "eta and kappa"]),
    ({"kappa": [1.0], "c": [1.0]}, cf.ConfigError, [RATES, "eta and kappa and c"]),
    ({"eta": []}, cf.ConfigError, ["eta", "(0,)"]),
    ({"eta": 0.5}, cf.ConfigError, ["eta", "()"]),
    ({"eta": [[0.5]]}, cf.ConfigError, ["eta", "(1, 1)"]),
    ({"eta": [[0.5], [1.0, 2.0]]}, cf.ConfigError, ["eta"]),
    ({"eta": [0.5, -0.25]}, cf.ConfigError, ["eta[1]", "-0.25", "at least 0"]),
    ({"eta": [0.5, np.nan]}, cf.ConfigError, ["eta[1]", "nan", "finite"]),
    ({"eta": None, "kappa": [np.inf]}, cf.ConfigError, ["kappa[0]", "inf", "finite"]),
    ({"eta": "fast"}, TypeError, ["eta", "str"]),
    ({"eta": [1j]}, TypeError, ["eta", "complex"]),
    ({"eta": [None]}, TypeError, ["eta"]),
    ({"data": cf.Dataset(0 * X, Y), "eta": None, "kappa": [1.0]}, cf.DataError, ["kappa", "all inputs are zero"]),
    ({"data": (X, Y)}, TypeError, ["data", "Dataset", "tuple"]),
    ({"net": 64}, TypeError, ["net", "TwoLayerLinear", "int"]),
    ({"training": 0.9}, TypeError, ["training", "GradientDescent", "float"]),
    ({"record": 10}, TypeError, ["record", "Record", "int"]),
    ({"stop": None}, TypeError, ["stop", "Stop", "NoneType"]),
    ({"width": 0}, cf.ConfigError, ["width = 0", "at least 1"]),
    ({"width": [8, -3]}, cf.ConfigError, ["width = -3", "at least 1"]),
    ({"width": [8, 10**15 + 1]}, cf.ConfigError, [f"width = {10**15 + 1}", str(10**15)]),
    ({"width": 2.0}, TypeError, ["width", "2.0", "float"]),
    ({"width": [True]}, TypeError, ["width", "True", "bool"]),
    ({"width": "64"}, TypeError, ["width", "'64'", "str"]),
    ({"width": []}, cf.ConfigError, ["width", "[]"]),
    ({"width": [[8, 16]]}, cf.ConfigError, ["width", "[[8, 16]]"]),
    ({"width": [[8], [16, 32]]}, cf.ConfigError, ["width", "[[8], [16, 32]]"]),
    ({"depth": 2}, cf.ConfigError, ["depth = 2", "TwoLayerLinear"]),
    ({"seeds": 0}, cf.ConfigError, ["seeds = 0", "at least 1"]),
    ({"seeds": [3, -1]}, cf.ConfigError, ["seeds = -1", "at least 0"]),
    ({"seeds": 2.0}, TypeError, ["seeds", "2.0", "float"]),
    ({"seeds": True}, TypeError, ["seeds", "True", "bool"]),
    ({"seeds": []}, cf.ConfigError, ["seeds", "[]"]),
    ({"seeds": [[1], [2, 3]]}, cf.ConfigError, ["seeds", "[[1], [2, 3]]"]),
    ({"steps": -1}, cf.ConfigError, ["steps = -1", "at least 0"]),
    ({"steps": 10.0}, TypeError, ["steps", "10.0", "float"]),
    ({"loss": "mae"}, cf.ConfigError, ["loss = 'mae'", "'mse'", "'cross_entropy'"]),
    ({"loss": None}, TypeError, ["loss", "None"]),
    ({"loss_normalization": "output"}, cf.ConfigError, ["loss_normalization = 'output'", "'sample_output'"]),
    ({"dtype": "float16"}, cf.ConfigError, ["dtype = 'float16'", "'float32'"]),
    ({"dtype": int}, cf.ConfigError, ["dtype = 'int64'", "'float32'"]),
    ({"dtype": 3}, TypeError, ["dtype", "3"]),
    ({"dtype": None}, TypeError, ["dtype", "None"]),
    ({"weights": (V, U), "width": 5}, cf.ConfigError, ["weights", "width"]),
    ({"weights": (V, U), "seeds": [0]}, cf.ConfigError, ["weights", "seeds"]),
    ({"weights": (V, U), "seeds": 2}, cf.ConfigError, ["weights", "seeds"]),
    ({"weights": V}, TypeError, ["weights", "(V, U)", "ndarray"]),
    ({"weights": (V, U, U)}, TypeError, ["weights", "(V, U)"]),
    ({"weights": (V[:4], U)}, cf.ConfigError, ["weights", "(4, 1)", "(5, 3)"]),
    ({"weights": (V, U[:, :2])}, cf.ConfigError, ["weights", "2 inputs", "3"]),
    ({"weights": (np.ones((5, 2)), U)}, cf.ConfigError, ["weights", "2 outputs", "1"]),
    ({"weights": (V, V)}, cf.ConfigError, ["weights", "(5,)"]),
    ({"weights": (V[:0], U[:0])}, cf.ConfigError, ["weights", "(0, 1)"]),
    ({"weights": (V * np.nan, U)}, (cf.DataError, cf.ConfigError), ["weights[0]", "nan", "finite"]),
    ({"weights": (V, U * 1j)}, TypeError, ["weights[1]", "complex"]),
    ({"training": cf.GradientDescent(batch_size=5)}, cf.ConfigError, ["batch_size = 5", "4"]),
    ({"training": cf.GradientDescent(schedule=[1.0]), "steps": 3}, cf.ConfigError, ["schedule", "1 ", "3"]),
    ({"loss": "cross_entropy"}, cf.DataError, ["cross_entropy", "two outputs"]),
    ({"loss": "cross_entropy", "data": cf.Dataset(X, X[:, :2])}, cf.DataError, ["cross_entropy", "one-hot", "Y "]),
    (
        {"loss": "cross_entropy", "data": cf.Dataset(X, np.eye(2)[[0, 1, 1, 0]], X, np.ones((4, 2)))},
        cf.DataError,
        ["cross_entropy", "one-hot", "Y_test"],
    ),
    (
        {"loss": "cross_entropy", "data": ONE_HOT, "loss_normalization": "sample_output"},
        cf.ConfigError,
        ["loss_normalization", "sample_output", "cross_entropy"],
    ),
    ({"data": cf.Dataset(X, Y), "record": cf.Record(test=True)}, cf.ConfigError, ["test", "X_test"]),
    ({"data": cf.Dataset(X, Y), "record": cf.Record(also=("test_accuracy",))}, cf.ConfigError, ["test", "X_test"]),
    ({"data": cf.Dataset(X, 2 * Y), "record": cf.Record(also=("accuracy",))}, cf.ConfigError, ["accuracy", "-1, +1"]),
]


@pytest.mark.parametrize(("changes", "error", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused(changes, error, words):
    with pytest.raises(error) as caught:
        sweep(**changes)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


PARTS = [
    (lambda: cf.Record(every=-1), cf.ConfigError, ["every = -1", "at least 0"]),
    (lambda: cf.Record(every=1.0), TypeError, ["every", "1.0"]),
    (lambda: cf.Record(ntk=1), TypeError, ["ntk", "1"]),
    (lambda: cf.Record(test="yes"), TypeError, ["test", "'yes'"]),
    (lambda: cf.Record(sharpness=1), TypeError, ["sharpness", "1"]),
    (lambda: cf.Record(also="accuracy"), TypeError, ["also", "'accuracy'"]),
    (lambda: cf.Record(also=None), TypeError, ["also", "None"]),
    (lambda: cf.Record(also=("loss",)), cf.ConfigError, ["also = 'loss'", *ALSO]),
    (lambda: cf.Record(also=(3,)), TypeError, ["also", "3"]),
    (lambda: cf.Stop(diverged=0.5), cf.ConfigError, ["diverged = 0.5", "1"]),
    (lambda: cf.Stop(diverged=np.inf), cf.ConfigError, ["diverged = inf", "finite"]),
    (lambda: cf.Stop(diverged=False), TypeError, ["diverged", "False"]),
    (lambda: cf.Stop(converged=-1e-9), cf.ConfigError, ["converged = -1e-09", "0"]),
    (lambda: cf.Stop(converged=np.nan), cf.ConfigError, ["converged = nan", "finite"]),
    (lambda: cf.Stop(converged="1e-9"), TypeError, ["converged", "'1e-9'"]),
    (lambda: cf.TwoLayerLinear(0), cf.ConfigError, ["width = 0", "at least 1"]),
    (lambda: cf.TwoLayerLinear(10**15 + 1), cf.ConfigError, [f"width = {10**15 + 1}", f"at most {10**15}"]),
    (lambda: cf.TwoLayerLinear(1e3), TypeError, ["width", "1000.0"]),
    (lambda: cf.TwoLayerLinear(p=-0.1), cf.ConfigError, ["p = -0.1", "at least 0"]),
    (lambda: cf.TwoLayerLinear(p=1.5), cf.ConfigError, ["p = 1.5", "at most 1"]),
    (lambda: cf.TwoLayerLinear(sigma_w=0.0), cf.ConfigError, ["sigma_w = 0.0", "above 0"]),
    (lambda: cf.TwoLayerLinear(sigma_w=np.inf), cf.ConfigError, ["sigma_w = inf", "finite"]),
    (lambda: cf.TwoLayerLinear(sigma_w=None), TypeError, ["sigma_w", "None"]),
    (lambda: cf.GradientDescent(momentum=1.0), cf.ConfigError, ["momentum = 1.0", "below 1"]),
    (lambda: cf.GradientDescent(momentum=-0.5), cf.ConfigError, ["momentum = -0.5", "at least 0"]),
    (lambda: cf.GradientDescent(momentum=np.nan), cf.ConfigError, ["momentum = nan", "finite"]),
    (lambda: cf.GradientDescent(momentum="0.9"), TypeError, ["momentum", "'0.9'"]),
    (lambda: cf.GradientDescent(weight_decay=-1e-3), cf.ConfigError, ["weight_decay = -0.001", "at least 0"]),
    (lambda: cf.GradientDescent(weight_decay=True), TypeError, ["weight_decay", "True"]),
    (lambda: cf.GradientDescent(batch_size=0), cf.ConfigError, ["batch_size = 0", "at least 1"]),
    (lambda: cf.GradientDescent(batch_size=2.0), TypeError, ["batch_size", "2.0"]),
    (lambda: cf.GradientDescent(schedule=1.0), cf.ConfigError, ["schedule", "()"]),
    (lambda: cf.GradientDescent(schedule=[]), cf.ConfigError, ["schedule", "(0,)"]),
    (lambda: cf.GradientDescent(schedule=[[1.0]]), cf.ConfigError, ["schedule", "(1, 1)"]),
    (lambda: cf.GradientDescent(schedule=[1.0, -2.0]), cf.ConfigError, ["schedule[1] = -2.0", "at least 0"]),
    (lambda: cf.GradientDescent(schedule=[1.0, np.nan]), cf.ConfigError, ["schedule[1] = nan", "finite"]),
    (lambda: cf.GradientDescent(schedule="cosine"), TypeError, ["schedule", "str"]),
]


@pytest.mark.parametrize(("make", "error", "words"), PARTS)
def test_refused_in_parts(make, error, words):
    with pytest.raises(error) as caught:
        make()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "schedule",
    [
        ["1", "2"],
        [1j, 2j],
        np.array([1j]),
    ],
)
def test_schedule_of_no_real_numbers(schedule):
    with pytest.raises(TypeError, match="schedule"):
        cf.GradientDescent(schedule=schedule)


def test_errors_are_of_the_promised_kinds():
    for kind, base in ((cf.ConfigError, ValueError), (cf.DataError, ValueError), (cf.StorageError, OSError)):
        assert issubclass(kind, base)
        assert issubclass(kind, cf.CatapultError)
    for kind in (cf.CorruptFileError, cf.SweepMismatch, cf.TargetLocked):
        assert issubclass(kind, cf.StorageError)
    for kind in (cf.BackendUnavailable, cf.DeviceError):
        assert issubclass(kind, RuntimeError)


# --- what is accepted --------------------------------------------------------------------------


def test_rates_are_kept_in_order_with_duplicates():
    rates = [3.0, 0.0, 1.0, 3.0]
    assert sweep(eta=rates).rates.tolist() == rates
    assert sweep(eta=None, kappa=tuple(rates)).kappa.tolist() == rates
    assert sweep(eta=np.array(rates)).axis == "eta"
    assert sweep(eta=None, kappa=rates).axis == "kappa"


def test_arrays_are_private_and_read_only():
    rates, schedule, readout, inner = np.array([1.0, 2.0]), np.ones(3), V.copy(), U.copy()
    described = sweep(eta=rates, weights=(readout, inner), steps=3, training=cf.GradientDescent(schedule=schedule))
    for given in (rates, schedule, readout, inner):
        given[...] = 99.0
    kept = (described.eta, described.training.schedule, *described.weights, described.width, described.seeds)
    for array in kept:
        assert 99.0 not in array
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_frozen():
    for description, name in ((sweep(), "steps"), (NET, "width"), (cf.Record(), "every"), (cf.Stop(), "diverged")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(description, name, 1)


def test_axes():
    assert sweep().width.tolist() == [64]
    assert sweep(width=[3, 10**15, 3]).width.tolist() == [3, 10**15, 3]
    assert sweep(seeds=3).seeds.tolist() == [0, 1, 2]
    assert sweep(seeds=np.int64(2)).seeds.tolist() == [0, 1]
    assert sweep(seeds=[7, 2**63 - 1]).seeds.tolist() == [7, 2**63 - 1]
    given = sweep(weights=(V, U))
    assert (given.width.tolist(), given.seeds.tolist()) == ([5], [-1])
    assert (given.weights[0].shape, given.weights[1].shape) == ((5, 1), (5, 3))


def test_member_numbers():
    """Rates run fastest, then seeds, then widths; the numbers and the coordinates are inverse to each other."""
    described = sweep(width=[8, 16], seeds=3, eta=[1.0, 2.0, 3.0, 4.0])
    assert described.dims == ("width", "seed", "eta")
    assert described.shape == (2, 3, 4)
    assert described.n_members == 24
    coordinates = list(zip(*(axis.tolist() for axis in described.coordinates(np.arange(24))), strict=True))
    assert coordinates == list(itertools.product(range(2), range(3), range(4)))
    assert [axis.tolist() for axis in described.coordinates(np.array([17]))] == [[1], [1], [1]]


def test_record_steps():
    def steps(every, total):
        return sweep(record=cf.Record(every=every), steps=total).record_steps.tolist()

    assert steps(1, 3) == [0, 1, 2, 3]
    assert steps(4, 10) == [0, 4, 8]
    assert steps(5, 10) == [0, 5, 10]
    assert steps(11, 10) == [0]
    assert steps(1, 0) == [0]
    assert steps(0, 10) == []


def test_single_values_of_numpy_are_numbers():
    described = sweep(steps=np.int32(7), width=np.int16(9), dtype=np.float32)
    assert (described.steps, described.width.tolist(), described.dtype) == (7, [9], "float32")
    assert type(described.steps) is int
    training = cf.GradientDescent(momentum=np.float32(0.5), batch_size=np.int64(2))
    assert (training.momentum, training.batch_size) == (0.5, 2)


# --- equality and digest -----------------------------------------------------------------------

OTHER = [
    # Every input that may change a number; the name of the field comes first.
    ("data", {"data": cf.Dataset(X, Y)}),
    ("data", {"data": cf.Dataset(X, Y, X[:2], Y[:2])}),
    ("data", {"data": cf.Dataset(np.nextafter(X, 9.0), Y, X[:2] + 1.0, Y[:2])}),
    ("data", {"data": cf.Dataset(X, -Y, X[:2] + 1.0, Y[:2])}),
    ("data", {"data": cf.Dataset(X[::-1], Y[::-1], X[:2] + 1.0, Y[:2])}),
    ("net.width", {"net": cf.TwoLayerLinear(65)}),
    ("net.p", {"net": cf.TwoLayerLinear(64, p=0.5)}),
    ("net.sigma_w", {"net": cf.TwoLayerLinear(64, sigma_w=2.0)}),
    ("eta", {"eta": [0.5, np.nextafter(1.0, 2.0)]}),
    ("eta", {"eta": [1.0, 0.5]}),
    ("c", {"eta": None, "c": [0.5, 1.0]}),
    ("record.sharpness", {"record": cf.Record(sharpness=True)}),
    ("eta", {"eta": [0.5, 1.0, 1.0]}),
    ("kappa", {"eta": None, "kappa": [0.5, 1.0]}),
    ("width", {"width": [64, 64]}),
    ("width", {"width": 63}),
    ("seeds", {"seeds": 2}),
    ("seeds", {"seeds": [1]}),
    ("weights", {"weights": (V, U)}),
    ("weights", {"weights": (V + 1, U)}),
    ("weights", {"weights": (V, U + 1)}),
    ("steps", {"steps": 301}),
    ("training.momentum", {"training": cf.GradientDescent(momentum=0.1)}),
    ("training.weight_decay", {"training": cf.GradientDescent(weight_decay=0.1)}),
    ("training.batch_size", {"training": cf.GradientDescent(batch_size=2)}),
    ("training.batch_size", {"training": cf.GradientDescent(batch_size=4)}),
    ("training.schedule", {"training": cf.GradientDescent(schedule=np.ones(300))}),
    ("training.schedule", {"training": cf.GradientDescent(schedule=np.r_[0.5, np.ones(299)])}),
    ("record.every", {"record": cf.Record(every=2)}),
    ("record.ntk", {"record": cf.Record(ntk=False)}),
    ("record.test", {"record": cf.Record(test=True)}),
    ("record.also", {"record": cf.Record(also=("accuracy",))}),
    ("record.also", {"record": cf.Record(also=("accuracy", "weight_norm"))}),
    ("stop.diverged", {"stop": cf.Stop(diverged=1e9)}),
    ("stop.diverged", {"stop": cf.Stop(diverged=None)}),
    ("stop.converged", {"stop": cf.Stop(converged=1e-8)}),
    ("stop.converged", {"stop": cf.Stop(converged=None)}),
    ("stop.converged", {"stop": cf.Stop(converged=0.0)}),
    ("loss", {"data": ONE_HOT}),
    ("loss", {"data": ONE_HOT, "loss": "cross_entropy"}),
    ("loss_normalization", {"data": ONE_HOT, "loss_normalization": "sample_output"}),
    ("dtype", {"dtype": "float32"}),
]
# These have one allowed value in this version.
SETTLED = {"depth"}


def test_digest_changes_with_every_input():
    sweeps = [sweep(), *(sweep(**changes) for _, changes in OTHER)]
    digests = [described.digest for described in sweeps]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)
    for a, b in itertools.combinations(sweeps, 2):
        assert a != b


def test_no_input_is_missing_above():
    parts = {"net": NET, "training": cf.GradientDescent(), "record": cf.Record(), "stop": cf.Stop()}
    names = {field.name for field in dataclasses.fields(cf.Sweep)} - set(parts)
    for part, description in parts.items():
        names |= {f"{part}.{field.name}" for field in dataclasses.fields(description)}
    assert names == {name for name, _ in OTHER} | SETTLED


SAME = [
    {"eta": np.array([0.5, 1.0], np.float32)},
    {"eta": (0.5, 1)},
    {"data": cf.Dataset(np.asfortranarray(X), Y.astype(int), X[:2] + 1.0, Y[:2], name="with a name")},
    {"net": cf.TwoLayerLinear(3), "width": 64},
    {"net": cf.TwoLayerLinear(3, p=0, sigma_w=1), "width": np.array([64], np.int16)},
    {"seeds": 1},
    {"seeds": [0]},
    {"steps": 300, "training": cf.GradientDescent(0, 0, None, None)},
    {"record": cf.Record(1, True, False, False, [])},
    {"stop": cf.Stop(10**8, 1e-9)},
    {"dtype": np.float64},
    {"dtype": np.dtype("float64")},
    {"loss": "mse", "loss_normalization": "sample"},
]


@pytest.mark.parametrize("changes", SAME, ids=str)
def test_digest_changes_with_nothing_else(changes):
    assert sweep(**changes).digest == sweep().digest
    assert sweep(**changes) == sweep()
    assert hash(sweep(**changes)) == hash(sweep())


def test_digest_of_equal_numbers():
    assert sweep(eta=[-0.0, 1.0]).digest == sweep(eta=[0.0, 1.0]).digest
    assert sweep(weights=(V, U)).digest == sweep(weights=[V[:, None].tolist(), np.asfortranarray(U)]).digest


def test_digest_is_the_same_in_another_process():
    code = (
        "import numpy as np, catapult_fast as cf; X = np.arange(6.0).reshape(3, 2);"
        "print(cf.Sweep(cf.Dataset(X, X[:, 0]), cf.TwoLayerLinear(7), kappa=[0.1, 0.7], seeds=2).digest)"
    )
    X = np.arange(6.0).reshape(3, 2)
    here = cf.Sweep(cf.Dataset(X, X[:, 0]), cf.TwoLayerLinear(7), kappa=[0.1, 0.7], seeds=2).digest
    folder = str(Path(cf.__file__).parent.parent)
    for hash_seed in ("1", "2"):
        said = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": folder, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout.strip() == here


def test_other_objects_are_not_equal():
    assert sweep() != 3
    assert cf.GradientDescent() != 0.9
    assert cf.GradientDescent(schedule=[1.0, 0.5]) == cf.GradientDescent(schedule=(1, 0.5))
    assert hash(cf.GradientDescent(schedule=[1.0, 0.5])) == hash(cf.GradientDescent(schedule=(1, 0.5)))


@pytest.mark.parametrize("described", [sweep(seeds=2), sweep(weights=(V, U))], ids=["drawn", "given weights"])
def test_copies(described):
    for twin in (copy.deepcopy(described), pickle.loads(pickle.dumps(described)), dataclasses.replace(described)):
        assert twin == described
        assert twin.shape == described.shape
    assert dataclasses.replace(described, steps=5).steps == 5
    assert dataclasses.replace(described, steps=5) != described
    changed = dataclasses.replace(described, eta=None, kappa=[1.0])
    assert (changed.axis, changed.width.tolist()) == ("kappa", described.width.tolist())


def test_repr_says_what_it_is():
    assert repr(sweep(seeds=3, width=[4, 5])) == (
        "<Sweep of TwoLayerLinear on given data: 2 eta x 3 seeds x 2 widths, 300 steps>"
    )
