"""Sweeps as TOML: what is written is read back to the same sweep, and every fault is said."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import catapult_fast as cf
from catapult_fast import sweep_toml

X = np.array([[1.0, 2.0], [0.5, 0.0], [-2.0, 1.0]])
SHORTEST = """
schema = 1
[data]
name = "one-sample"
dim = 2
[network]
type = "TwoLayerLinear"
[sweep]
kappa = [0.5]
"""
# The document of the reference, with data that are drawn.
FULL = """
schema = 1
[data]
name = "gaussian"
n_train = 12
n_test = 4
dim = 3
seed = 5
preprocess = ["center", "unit-norm"]
[network]
type = "TwoLayerLinear"
p = 0.5
sigma_w = 2.0
[sweep]
kappa = { start = 0.1, stop = 5.0, num = 7, spacing = "linear" }
width = [1024, 1048576, 1099511627776]
seeds = 8
steps = 30
loss = "mse"
loss_normalization = "sample"
dtype = "float32"
[training]
momentum = 0.5
weight_decay = 0.25
batch_size = 4
[record]
every = 10
ntk = false
test = true
also = ["weight_norm"]
[stop]
diverged = 1e6
converged = false
"""


def edit(text, old, new):
    assert text.count(old) == 1
    return text.replace(old, new)


def fault(text, **options):
    with pytest.raises(cf.ConfigError) as caught:
        cf.Sweep.from_toml(text, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


# --- reading -----------------------------------------------------------------------------------


def test_shortest_document_has_the_defaults():
    described = cf.Sweep.from_toml(SHORTEST)
    assert described == cf.Sweep(cf.load_dataset("one-sample", dim=2), cf.TwoLayerLinear(), kappa=[0.5])


def test_full_document():
    expected = cf.Sweep(
        cf.load_dataset("gaussian", n_train=12, n_test=4, dim=3, seed=5, preprocess=("center", "unit-norm")),
        cf.TwoLayerLinear(p=0.5, sigma_w=2.0),
        kappa=np.linspace(0.1, 5.0, 7),
        width=[2**10, 2**20, 2**40],
        seeds=8,
        steps=30,
        dtype="float32",
        training=cf.GradientDescent(0.5, 0.25, 4),
        record=cf.Record(10, ntk=False, test=True, also=("weight_norm",)),
        stop=cf.Stop(1e6, None),
    )
    assert cf.Sweep.from_toml(FULL) == expected


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("kappa = { start = 0.25, stop = 4.0, num = 5 }", np.linspace(0.25, 4.0, 5)),
        ('kappa = { start = 0.01, stop = 10, num = 4, spacing = "log" }', np.geomspace(0.01, 10, 4)),
        ("kappa = { start = 3.0, stop = 1.0, num = 3 }", [3.0, 2.0, 1.0]),
        ("kappa = { start = 2.0, stop = 9.0, num = 1 }", [2.0]),
        ("eta = [1, 0.5, 1, 0]", [1.0, 0.5, 1.0, 0.0]),
    ],
)
def test_grids(written, values):
    described = cf.Sweep.from_toml(edit(SHORTEST, "kappa = [0.5]", written))
    assert described.axis == written.split()[0]
    assert described.rates.tolist() == list(values)


@pytest.mark.parametrize(("written", "widths"), [("7", [7]), ("[7, 8]", [7, 8]), ("1_000_000_000_000_000", [10**15])])
def test_widths(written, widths):
    assert cf.Sweep.from_toml(SHORTEST + f"width = {written}").width.tolist() == widths
    if len(widths) == 1:
        text = edit(SHORTEST, "[sweep]", f"width = {written}\n[sweep]")
        assert cf.Sweep.from_toml(text).width.tolist() == widths


@pytest.mark.parametrize(("written", "seeds"), [("3", [0, 1, 2]), ("[3]", [3]), ("[5, 2]", [5, 2])])
def test_seeds(written, seeds):
    assert cf.Sweep.from_toml(SHORTEST + f"seeds = {written}").seeds.tolist() == seeds


def test_stop_false_is_none_and_zero_is_zero():
    assert cf.Sweep.from_toml(SHORTEST + "[stop]\ndiverged = false\nconverged = 0").stop == cf.Stop(None, 0.0)
    assert cf.Sweep.from_toml(SHORTEST + "[stop]\nconverged = 0.0").stop == cf.Stop(converged=0.0)
    assert "diverged = 0.0" in fault(SHORTEST + "[stop]\ndiverged = 0")


def test_text_or_path(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text(FULL)
    assert cf.Sweep.from_toml(file) == cf.Sweep.from_toml(FULL)
    assert "cannot be read" in fault(tmp_path / "missing.toml")
    assert str(tmp_path) in fault(tmp_path)
    file.write_bytes(b"schema = 1 # \xff")
    assert "TOML" in fault(file)
    assert "TOML" in fault("sweep.toml")


def test_relative_paths_start_at_the_file(tmp_path, monkeypatch):
    np.savez(tmp_path / "train.npz", X=X, Y=X[:, 0])
    np.save(tmp_path / "schedule.npy", np.array([1.0, 0.5, 0.25]))
    text = edit(SHORTEST, 'name = "one-sample"\ndim = 2', 'name = "npz"\npath = "train.npz"')
    text += 'steps = 3\n[training]\nschedule = { file = "schedule.npy" }\n'
    (tmp_path / "sweep.toml").write_text(text)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for path in (tmp_path / "sweep.toml", Path("..") / "sweep.toml"):
        described = cf.Sweep.from_toml(path)
        assert described.data == cf.Dataset(X, X[:, 0])
        assert described.training.schedule.tolist() == [1.0, 0.5, 0.25]
        assert cf.Sweep.from_toml(described.to_toml()) == described
    sentence = fault(text)  # a text has no folder: the current one counts
    assert "train.npz" in sentence
    assert "schedule.npy" in sentence


@pytest.mark.parametrize("content", [b"not an array", b""])
def test_broken_schedule_file(tmp_path, content):
    file = tmp_path / "schedule.npy"
    file.write_bytes(content)
    said = fault(SHORTEST + f'[training]\nschedule = {{ file = "{file}" }}')
    assert "schedule.npy" in said


def test_schedule_file_is_never_unpickled(tmp_path):
    file = tmp_path / "schedule.npy"
    np.save(file, np.array([1.0, None]), allow_pickle=True)
    assert "schedule.npy" in fault(SHORTEST + f'[training]\nschedule = {{ file = "{file}" }}')


def test_data_that_changed_are_refused(tmp_path):
    np.savez(tmp_path / "train.npz", X=X, Y=X[:, 0])
    data = cf.load_dataset("npz", path=tmp_path / "train.npz")
    text = cf.Sweep(data, cf.TwoLayerLinear(), kappa=[1.0]).to_toml()
    assert cf.Sweep.from_toml(text).data == data
    np.savez(tmp_path / "train.npz", X=X + 1.0, Y=X[:, 0])
    assert "SHA-256" in fault(text)


# --- faults ------------------------------------------------------------------------------------

TABLES = ("", "[data]", "[network]", "[sweep]", "[training]", "[record]", "[stop]")


@pytest.mark.parametrize("table", TABLES)
def test_unknown_keys_are_refused(table):
    key = f"{table[1:-1]}.colour" if table else "colour"
    text = edit(FULL, table, f"{table}\ncolour = 3") if table else "colour = 3\n" + FULL
    assert f"{key}: unknown key" in fault(text)


def test_unknown_keys_of_a_grid_and_unknown_tables():
    assert "sweep.kappa" in fault(edit(FULL, 'spacing = "linear"', "step = 0.1"))
    assert "optimizer: unknown key" in fault(FULL + "[optimizer]\nname = 1")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("schema = 1", "", ["schema", "missing"]),
        ("schema = 1", "schema = 2", ["schema", "2"]),
        ('type = "TwoLayerLinear"', "", ["network.type", "missing"]),
        ('type = "TwoLayerLinear"', 'type = "MLP"', ["network.type", "MLP"]),
        ('name = "one-sample"', "", ["data", "name is missing"]),
        ('name = "one-sample"', 'name = "two-sample"', ["data", "two-sample", "one-sample"]),
        ('name = "one-sample"', "name = 3", ["data.name", "3"]),
        ("dim = 2", "dim = 2.0", ["data.dim", "2.0"]),
        ("dim = 2", "dim = 2\nclasses = [0, 1]", ["data", "classes"]),
        ("kappa = [0.5]", "", ["sweep", "exactly one of eta, kappa and c"]),
        ("kappa = [0.5]", "kappa = [0.5]\neta = [1.0]", ["sweep", "exactly one"]),
        ("kappa = [0.5]", "c = [-0.5]", ["sweep", "c[0]", "-0.5"]),
        ("kappa = [0.5]", "kappa = 0.5", ["sweep.kappa", "0.5"]),
        ("kappa = [0.5]", 'kappa = ["0.5"]', ["sweep.kappa"]),
        ("kappa = [0.5]", "kappa = [true]", ["sweep.kappa"]),
        ("kappa = [0.5]", "kappa = []", ["sweep", "kappa", "(0,)"]),
        ("kappa = [0.5]", "kappa = [nan]", ["sweep", "kappa[0]", "nan"]),
        ("kappa = [0.5]", "kappa = [0.5, -1]", ["sweep", "kappa[1]", "-1"]),
        ("kappa = [0.5]", "kappa = { start = 0.1, stop = 1.0 }", ["sweep.kappa"]),
        ("kappa = [0.5]", "kappa = { start = 0.1, stop = 1.0, num = 0 }", ["sweep.kappa"]),
        ("kappa = [0.5]", "kappa = { start = 0.1, stop = 1.0, num = 2.5 }", ["sweep.kappa"]),
        ("kappa = [0.5]", "kappa = { start = 0.0, stop = inf, num = 3 }", ["sweep", "kappa", "finite"]),
        ("kappa = [0.5]", "kappa = { start = -1.0, stop = 1.0, num = 3 }", ["sweep", "kappa[0]", "-1"]),
        ("kappa = [0.5]", 'kappa = { start = 0.0, stop = 1.0, num = 3, spacing = "log" }', ["kappa", "log", "0.0"]),
        ("kappa = [0.5]", 'kappa = { start = 0.1, stop = 1.0, num = 3, spacing = "cubic" }', ["sweep.kappa"]),
        ("kappa = [0.5]", 'kappa = { inputs = true, sha256 = "0" }', ["kappa", "results file"]),
        ("kappa = [0.5]", "kappa = [0.5]\nseeds = true", ["sweep.seeds", "True"]),
        ("kappa = [0.5]", "kappa = [0.5]\nseeds = 0", ["sweep", "seeds = 0"]),
        ("kappa = [0.5]", "kappa = [0.5]\nwidth = 1.5", ["sweep.width", "1.5"]),
        ("kappa = [0.5]", "kappa = [0.5]\ndepth = 2", ["sweep", "depth"]),
        ("kappa = [0.5]", 'kappa = [0.5]\nsteps = "3"', ["sweep.steps", "'3'"]),
        ("kappa = [0.5]", 'kappa = [0.5]\nloss = "hinge"', ["sweep", "loss = 'hinge'"]),
        ("kappa = [0.5]", "kappa = [0.5]\n[record]\nsharpness = 1", ["record.sharpness"]),
        ("kappa = [0.5]", 'kappa = [0.5]\n[record]\nalso = ["f"]', ["record", "also", "'f'"]),
        ("kappa = [0.5]", "kappa = [0.5]\n[stop]\ndiverged = true", ["stop.diverged", "True"]),
        ("kappa = [0.5]", "kappa = [0.5]\n[training]\nmomentum = 1", ["training", "momentum = 1.0"]),
        ("kappa = [0.5]", "kappa = [0.5]\n[training]\nschedule = []", ["training", "schedule"]),
        ("kappa = [0.5]", "kappa = [0.5", ["TOML"]),
        ("[data]", "data = 1\n[datum]", ["data"]),
    ],
)
def test_faults_name_their_place(old, new, words):
    sentence = fault(edit(SHORTEST, old, new))
    for word in words:
        assert word in sentence


def test_all_faults_of_the_form_at_once():
    text = edit(SHORTEST, "schema = 1", "") + 'steps = "many"\ncolour = 1\n[record]\nevery = 0.5\n[extra]\na = 1'
    sentence = fault(text)
    for word in ("schema: missing", "sweep.colour: unknown key", "sweep.steps", "record.every", "extra: unknown key"):
        assert sentence.count(word) == 1


def test_all_faults_of_the_values_at_once():
    text = edit(SHORTEST, 'type = "TwoLayerLinear"', 'type = "TwoLayerLinear"\np = 7.0')
    text = edit(text, "dim = 2", "dim = 0")
    text += "[training]\nmomentum = 3.0\n[record]\nevery = -1\n[stop]\nconverged = -2.0"
    sentence = fault(text)
    for word in ("network: p = 7.0", "data: dim = 0", "momentum = 3.0", "every = -1", "converged = -2.0"):
        assert sentence.count(word) == 1


# --- changes -----------------------------------------------------------------------------------


def test_changes():
    changed = cf.Sweep.from_toml(
        FULL, changes={"sweep.steps": 7, "record.every": 2, "stop.diverged": False, "network.p": 1.0, "data.seed": 6}
    )
    assert (changed.steps, changed.record.every, changed.stop.diverged, changed.net.p) == (7, 2, None, 1.0)
    assert changed.data.source["seed"] == 6
    assert cf.Sweep.from_toml(FULL, changes={}) == cf.Sweep.from_toml(FULL)


def test_a_changed_rate_replaces_the_other_rates():
    for name, grid in (("eta", [0.1]), ("kappa", {"start": 1.0, "stop": 2.0, "num": 2})):
        changed = cf.Sweep.from_toml(FULL, changes={f"sweep.{name}": grid})
        assert changed.axis == name
    assert changed.rates.tolist() == [1.0, 2.0]


def test_changes_make_missing_tables():
    changed = cf.Sweep.from_toml(SHORTEST, changes={"training.momentum": 0.5, "stop.converged": False})
    assert (changed.training.momentum, changed.stop.converged) == (0.5, None)


@pytest.mark.parametrize("key", ["steps", "sweep.", "schema.x", "", "."])
def test_keys_of_changes(key):
    assert "table.key" in fault(FULL, changes={key: 1})


def test_faults_of_changes():
    assert "sweep.colour: unknown key" in fault(FULL, changes={"sweep.colour": 1})
    assert "paint" in fault(FULL, changes={"paint.colour": 1})
    assert "sweep.steps" in fault(FULL, changes={"sweep.steps": "few"})
    assert "steps must be a whole number, got None" in fault(FULL, changes={"sweep.steps": None})


# --- round trip --------------------------------------------------------------------------------


def from_store(described):
    """Write the form of a results file and read it with the arrays that lie beside it."""
    arrays = sweep_toml.stored_inputs(described)
    text = sweep_toml.write(described, stored=True)
    # An attribute of an HDF5 file may hold 64 KiB.
    assert len(text.encode()) < 64_000
    return sweep_toml.read_stored(text, lambda name: arrays[name.removeprefix("inputs/")])


def assert_same_inputs(again, described):
    """More than equality, which is that of digests."""
    assert again == described
    assert again.describe() == described.describe()
    assert again.net.p == described.net.p
    assert again.rates.tobytes() == described.rates.tobytes()
    assert (again.width.tolist(), again.seeds.tolist()) == (described.width.tolist(), described.seeds.tolist())
    assert (again.record, again.stop, again.training) == (described.record, described.stop, described.training)
    assert again.data.name == described.data.name
    assert again.to_toml() == described.to_toml()


@pytest.fixture
def npz(tmp_path):
    file = tmp_path / "some.npz"
    np.savez(file, X=X, Y=np.eye(2)[[0, 1, 1]], X_test=X, Y_test=np.eye(2)[[1, 1, 0]])
    return file


BY_NAME = {
    "bundled": {"name": "fashion-mnist-mini", "classes": [3, 1], "n_train": 4, "n_test": 2, "preprocess": ["scale"]},
    "ten classes": {"name": "fashion-mnist-mini", "n_train": 12},
    "npz": {"name": "npz", "n_train": 2},
    "npz without test data": {"name": "npz", "n_test": 0},
    "gaussian": {"name": "gaussian", "n_train": 3, "n_test": 1, "dim": 2, "seed": 2**63 - 1},
    "sphere": {"name": "sphere", "n_train": 3, "dim": 2, "preprocess": ["center"]},
    "teacher": {"name": "teacher", "n_train": 3, "dim": 2, "preprocess": []},
    "one-sample": {"name": "one-sample", "dim": 1},
}


@pytest.mark.parametrize("kind", BY_NAME)
def test_round_trip_of_data_by_name(npz, kind):
    path = {"path": npz} if BY_NAME[kind]["name"] == "npz" else {}
    described = cf.Sweep(cf.load_dataset(**BY_NAME[kind], **path), cf.TwoLayerLinear(5), kappa=[0.1, 0.7])
    assert_same_inputs(cf.Sweep.from_toml(described.to_toml()), described)
    assert_same_inputs(from_store(described), described)
    assert not sweep_toml.stored_inputs(described)


def test_stored_paths_hold_in_every_folder(npz, tmp_path, monkeypatch):
    """A results file is opened from other folders than the one it was made in."""
    monkeypatch.chdir(tmp_path)
    described = cf.Sweep(cf.load_dataset("npz", path="some.npz"), cf.TwoLayerLinear(5), kappa=[0.1])
    text = sweep_toml.write(described, stored=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert sweep_toml.read_stored(text, None) == described


@pytest.mark.parametrize("test_data", [False, True])
@pytest.mark.parametrize("name", [None, "mine"])
def test_round_trip_of_arrays(test_data, name):
    more = (X + 1.0, X[:, 1]) if test_data else ()
    described = cf.Sweep(cf.Dataset(X, X[:, 0], *more, name=name), cf.TwoLayerLinear(5), eta=[0.3])
    assert_same_inputs(from_store(described), described)
    table = tomllib.loads(described.to_toml())["data"]
    assert table["inputs"] is True
    assert table["sha256"] == described.data.digest
    assert "results file" in fault(described.to_toml())


@pytest.mark.parametrize("by_name", [False, True])
def test_round_trip_of_given_weights(npz, by_name):
    V, U = np.linspace(-1, 1, 8).reshape(4, 2), np.geomspace(1e-300, 1e300, 8).reshape(4, 2)
    data = cf.load_dataset("npz", path=npz) if by_name else cf.Dataset(X, X)
    described = cf.Sweep(data, cf.TwoLayerLinear(p=0.25), kappa=[0.3], weights=(V, U), steps=3)
    again = from_store(described)
    assert_same_inputs(again, described)
    assert [w.tobytes() for w in again.weights] == [V.tobytes(), U.tobytes()]
    assert len(tomllib.loads(described.to_toml())["data"]["weights_sha256"]) == 2
    assert "results file" in fault(described.to_toml())


ONE_SAMPLE = cf.load_dataset("one-sample", dim=1)


def uneven(count):
    """Floats with seventeen digits and a long exponent, on no grid."""
    return np.random.default_rng(count).uniform(1e-101, 9e-101, count)


@pytest.mark.parametrize("count", [512, 513, 3000])
def test_long_lists(count):
    described = cf.Sweep(
        ONE_SAMPLE,
        cf.TwoLayerLinear(),
        eta=uneven(count),
        width=10**15 - np.arange(count) ** 2,
        seeds=2**63 - 1 - np.arange(count) ** 2,
        steps=count,
        training=cf.GradientDescent(schedule=uneven(count)),
    )
    lists = {"eta", "width", "seeds", "schedule"}
    assert set(sweep_toml.stored_inputs(described)) == (lists if count > 512 else set())
    assert_same_inputs(from_store(described), described)
    assert_same_inputs(cf.Sweep.from_toml(described.to_toml()), described)


def test_long_grids_stay_short():
    for rates in (np.linspace(0.1, 5.0, 20_000), np.geomspace(0.1, 5.0, 20_000), np.full(20_000, 0.3)):
        described = cf.Sweep(ONE_SAMPLE, cf.TwoLayerLinear(), kappa=rates, seeds=100_000)
        assert not sweep_toml.stored_inputs(described)
        assert len(described.to_toml()) < 1000
        assert_same_inputs(cf.Sweep.from_toml(described.to_toml()), described)


rate = st.floats(0, allow_nan=False, allow_infinity=False)
grid = st.builds(
    lambda make, a, b, n: make(a, b, n),
    st.sampled_from([np.linspace, np.geomspace]),
    st.floats(1e-12, 1e12),
    st.floats(1e-12, 1e12),
    st.integers(1, 12),
)
rates = st.one_of(st.lists(rate, min_size=1, max_size=5), grid)


NAMED = cf.load_dataset("gaussian", n_train=3, n_test=2, dim=2)
IMAGES = cf.load_dataset("fashion-mnist-mini", classes=[0, 1, 2], n_train=6, n_test=6)
GIVEN = cf.Dataset(X, np.eye(2)[[0, 1, 1]], X, np.eye(2)[[1, 1, 0]], name="mine")


@st.composite
def sweeps(draw):
    data, steps = draw(st.sampled_from([NAMED, NAMED, GIVEN, GIVEN, IMAGES])), draw(st.integers(0, 4))
    cross_entropy = data.k > 1 and draw(st.booleans())
    names = st.sampled_from(["accuracy", "test_accuracy", "weight_norm"])
    return cf.Sweep(
        data,
        cf.TwoLayerLinear(draw(st.integers(1, 10**15)), p=draw(st.floats(0, 1)), sigma_w=draw(st.floats(1e-3, 1e3))),
        **{draw(st.sampled_from(["eta", "kappa"])): draw(rates)},
        width=draw(st.none() | st.lists(st.integers(1, 10**15), min_size=1, max_size=3)),
        seeds=draw(st.integers(1, 4) | st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3)),
        steps=steps,
        training=cf.GradientDescent(
            momentum=draw(st.floats(0, 1, exclude_max=True)),
            weight_decay=draw(st.floats(0, 1e3)),
            batch_size=draw(st.none() | st.integers(1, 3)),
            schedule=draw(st.none() | st.lists(rate, min_size=steps, max_size=steps)) or None,
        ),
        record=cf.Record(
            every=draw(st.integers(0, 9)),
            ntk=draw(st.booleans()),
            test=draw(st.booleans()),
            also=draw(st.lists(names, unique=True)),
        ),
        stop=cf.Stop(draw(st.none() | st.floats(1, 1e300)), draw(st.none() | st.floats(0, 1e300))),
        loss="cross_entropy" if cross_entropy else "mse",
        loss_normalization="sample" if cross_entropy else draw(st.sampled_from(["sample", "sample_output"])),
        dtype=draw(st.sampled_from(["float32", "float64"])),
    )


@given(sweeps())
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_round_trip_of_any_sweep(described):
    assert_same_inputs(from_store(described), described)
    if described.data.source is not None:
        assert_same_inputs(cf.Sweep.from_toml(described.to_toml()), described)
