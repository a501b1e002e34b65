"""Results on disk: layout, what happens to files of others, interruption, and reading back."""

import dataclasses
import json
import sys

import h5py
import numpy as np
import pytest
import xarray
from numpy.testing import assert_array_equal

import catapult_fast as cf
from catapult_fast import engines, store
from catapult_fast.hdf5 import attributes
from catapult_fast.kernels.outcome import CONVERGED, NOT_RUN
from catapult_fast.shards import parts_folder
from faults import contents

run_module = sys.modules[cf.run.__module__]

X = np.random.default_rng(0).standard_normal((4, 3))
Y = np.array([1.0, -1.0, -1.0, 1.0])
DATA = cf.Dataset(X, Y, X[:2] + 1.0, Y[:2], name="four points")
SWEEP = cf.Sweep(
    DATA, cf.TwoLayerLinear(p=0.25), kappa=[0.25, 1.0, 0.5, 2.2, 3.1, 9.0], width=[8, 10**12], seeds=[3, 1], steps=40,
    record=cf.Record(every=3, test=True, also=("accuracy", "weight_norm")),
)  # fmt: skip
ONE_SAMPLE = cf.Sweep(cf.load_dataset("one-sample", dim=2), cf.TwoLayerLinear(), eta=np.linspace(0.1, 2.5, 24), seeds=2)
OTHER = dataclasses.replace(SWEEP, steps=41)


def run(sweep, path=None, **options):
    return cf.run(sweep, path, progress=False, **options)


def forbid_computing(monkeypatch):
    def fail(*_):
        pytest.fail("something was computed")

    monkeypatch.setattr(run_module, "compute_shard", fail)


def assert_same_results(one, other):
    assert one.dims == other.dims
    for name in one.dims:
        a, b = getattr(one, name), getattr(other, name)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name


@pytest.fixture(scope="module")
def memory():
    return run(SWEEP)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "out.h5"
    run(SWEEP, path)
    return path


def snapshot(folder):
    """Names and bytes of everything in a folder."""
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


# --- the file ----------------------------------------------------------------------------------


def test_only_the_file_is_left(finished):
    assert [entry.name for entry in finished.parent.iterdir()] == ["out.h5"]


def test_attributes(finished):
    with h5py.File(finished) as file:
        attrs = dict(file.attrs)
    provenance = json.loads(attrs.pop("provenance_json"))
    assert set(json.loads(attrs.pop("integrity_json"))) == {"datasets", "description"}
    assert attrs.pop("sweep_toml") == attributes(SWEEP, "cpu", {})["sweep_toml"]
    assert attrs == {
        "Conventions": "CF-1.11",
        "title": "Learning-rate sweep of TwoLayerLinear on four points",
        "schema_name": "catapult_fast.sweep",
        "schema_version": "1.1",
        "sweep_digest": SWEEP.digest,
        "loss_normalization": "sample",
        "parametrization": "ntk, p = 0.25",
        "backend": "cpu",
    }
    assert {"versions", "seconds", "workers", "platform", "blas"} <= set(provenance)
    assert provenance["versions"]["catapult_fast"] == cf.__version__


def test_axes_are_dimension_scales(finished):
    with h5py.File(finished) as file:
        scales = {name for name, item in file.items() if isinstance(item, h5py.Dataset) and item.is_scale}
        assert scales == {"width", "seed", "kappa", "step"}
        for name, item in file.items():
            if name == "inputs":
                continue
            assert item.attrs["units"] == "1", name
            assert item.attrs["long_name"], name
            if name not in scales:
                for i, dim in enumerate(item.dims):
                    assert len(dim) == 1
                    assert dim[0].shape == item.shape[i : i + 1]
        assert [dim[0].name for dim in file["loss"].dims] == ["/width", "/seed", "/kappa", "/step"]
        assert [dim[0].name for dim in file["initial_loss"].dims] == ["/width", "/seed"]
        assert [dim[0].name for dim in file["status"].dims] == ["/width", "/seed", "/kappa"]
        assert_array_equal(file["width"], [8, 10**12])
        assert_array_equal(file["seed"], [3, 1])
        assert_array_equal(file["step"], np.arange(0, 41, 3))
        assert file["width"].dtype == file["seed"].dtype == file["step"].dtype == np.int64


def test_the_table_of_variables_is_complete(finished):
    trajectories = {"loss", "ntk_lambda_max", "ntk_residual", "test_loss", "accuracy", "weight_norm"}
    members = {"eta", "final_loss", "final_ntk_lambda_max", "final_test_loss", "max_loss", "late_max_loss"}
    members |= {"max_loss_step", "n_steps", "status", "phase"}
    starts = {"initial_loss", "initial_ntk_lambda_max", "initial_sharpness"}
    with h5py.File(finished) as file:
        assert set(file) == trajectories | members | starts | {"width", "seed", "kappa", "step", "inputs"}
        for name in trajectories:
            assert file[name].shape == (2, 2, 6, 14)
        for name in members:
            assert file[name].shape == (2, 2, 6)
        for name in starts:
            assert file[name].shape == (2, 2)


def test_flags(finished):
    meanings = {
        "status": "not_run all_steps_done converged over_the_bound not_finite shard_failed no_rate",
        "phase": "undecided lazy catapult divergent marginal",
    }
    with h5py.File(finished) as file:
        for name, words in meanings.items():
            assert file[name].dtype == np.int8
            assert file[name].attrs["flag_meanings"] == words
            assert_array_equal(file[name].attrs["flag_values"], np.arange(len(words.split())))
            assert file[name].attrs["flag_values"].dtype == np.int8


def test_every_dataset_has_checksums(finished):
    with h5py.File(finished) as file:
        names = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        assert {"inputs/X", "inputs/Y", "inputs/X_test", "inputs/Y_test"} <= set(names)
        assert all(file[name].fletcher32 for name in names)


def test_a_flipped_bit_is_found(finished, tmp_path):
    """In every dataset: reading it says so, and nothing is passed on."""
    with h5py.File(finished) as file:
        places = {
            name: item.id.get_chunk_info(0).byte_offset
            for name, item in file.items()
            if isinstance(item, h5py.Dataset) and item.chunks
        }
    whole = finished.read_bytes()
    for name, at in places.items():
        broken = bytearray(whole)
        broken[at + 1] ^= 1
        copy = tmp_path / "broken.h5"
        copy.write_bytes(broken)
        with pytest.raises(cf.CorruptFileError, match=r"broken\.h5"):
            cf.open_results(copy)._array(name)


def test_xarray_opens_it(finished, memory):
    with xarray.open_dataset(finished, engine="h5netcdf") as data:
        assert data.sizes == {"width": 2, "seed": 2, "kappa": 6, "step": 14}
        assert data.loss.dims == ("width", "seed", "kappa", "step")
        nearest = data.loss.sortby("kappa").sel(kappa=2.0, width=9e11, method="nearest")
        assert_array_equal(nearest, memory.loss[1, :, 3])
        assert float(nearest.kappa) == 2.2
        for name in memory.dims:
            assert_array_equal(data[name].values, memory.rates if name == memory.axis else getattr(memory, name))
        assert data.attrs["sweep_digest"] == SWEEP.digest


def test_xarray_picks_what_the_results_hold(tmp_path):
    path = tmp_path / "out.h5"
    results = run(ONE_SAMPLE, path)
    with xarray.open_dataset(path, engine="h5netcdf") as data:
        for eta in (0.1, 0.73, 2.5):
            r = np.abs(results.rates - eta).argmin()
            picked = data.loss.sel(eta=eta, width=1000, method="nearest")
            assert_array_equal(picked, results.loss[0, :, r])


def test_eta_is_the_coordinate_where_it_is_the_axis(tmp_path):
    results = run(ONE_SAMPLE, tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["eta"].shape == (24,)
        assert file["eta"].is_scale
        assert "kappa" not in file
    assert results.eta.shape == results.kappa.shape == results.c.shape == (1, 2, 24)
    assert_array_equal(results.eta[0, 1], ONE_SAMPLE.eta)
    assert_array_equal(results.kappa, results.eta * results.initial_ntk_lambda_max[..., None])


def test_file_equals_memory(finished, memory):
    results = cf.open_results(finished)
    assert_same_results(results, memory)
    assert results.axis == memory.axis == "kappa"
    assert results.sweep == memory.sweep == SWEEP
    assert repr(results) == repr(memory) == "<Results of 24 members: 2 width, 2 seed, 6 kappa>"
    for name in ("kappa", "eta", "c", "rates"):
        assert_array_equal(getattr(results, name), getattr(memory, name))
    different = {k for k in memory.attrs if results.attrs[k] != memory.attrs[k]}
    assert different <= {"provenance_json"}
    assert set(results.dims) <= set(dir(results))


@pytest.mark.parametrize("sweep", [SWEEP, ONE_SAMPLE], ids=["linear", "scalar"])
@pytest.mark.parametrize("shard_members", [1, 5, 7, 1000])
def test_files_do_not_depend_on_shards(tmp_path, sweep, shard_members):
    run(sweep, tmp_path / "one.h5")
    run(sweep, tmp_path / "other.h5", shard_members=shard_members, workers=2)
    assert contents(tmp_path / "one.h5") == contents(tmp_path / "other.h5")


def test_no_trajectory_and_no_extras(tmp_path):
    sweep = dataclasses.replace(SWEEP, record=cf.Record(every=0, ntk=False))
    results = run(sweep, tmp_path / "out.h5")
    assert_same_results(results, run(sweep))
    with h5py.File(tmp_path / "out.h5") as file:
        assert "step" not in file
        assert "loss" not in file


def test_arrays_are_read_only(finished, memory):
    for results in (cf.open_results(finished), memory):
        for name in ("loss", "status", "kappa", "eta", "width"):
            with pytest.raises(ValueError, match="read-only"):
                getattr(results, name)[...] = 0


def test_unknown_names(finished):
    with pytest.raises(AttributeError, match=r"no 'sharpness'; recorded are .*loss"):
        cf.open_results(finished).sharpness  # noqa: B018
    assert not hasattr(cf.open_results(finished), "__array__")


# --- inputs come back --------------------------------------------------------------------------

STORED = {
    "given data": SWEEP,
    "data by name": ONE_SAMPLE,
    "images by name": cf.Sweep(
        cf.load_dataset("fashion-mnist-mini", classes=[2, 0], n_train=4, n_test=2, preprocess=["scale", "center"]),
        cf.TwoLayerLinear(16), kappa=[1.0], steps=2, record=cf.Record(test=True),
    ),
    "given weights": cf.Sweep(
        DATA, cf.TwoLayerLinear(), eta=[0.1, 0.2], steps=2,
        weights=(np.linspace(-1, 1, 5), np.geomspace(1e-3, 1, 15).reshape(5, 3)),
    ),
    "given weights, data by name": cf.Sweep(
        cf.load_dataset("gaussian", n_train=3, dim=2, seed=4), cf.TwoLayerLinear(), kappa=[0.1], steps=2,
        weights=(np.ones(2), np.eye(2)),
    ),
    "long lists": cf.Sweep(
        cf.load_dataset("one-sample", dim=1), cf.TwoLayerLinear(),
        eta=np.random.default_rng(0).random(600), seeds=[7], steps=600, record=cf.Record(every=0),
        training=cf.GradientDescent(schedule=np.random.default_rng(1).random(600)),
    ),
    "everything": cf.Sweep(
        cf.Dataset(X, np.eye(2)[[0, 1, 1, 0]], X, np.eye(2)[[1, 1, 0, 0]]), cf.TwoLayerLinear(7, p=0.5, sigma_w=2.0),
        kappa=np.geomspace(0.1, 3, 5), width=[5, 6], seeds=2, steps=6,
        training=cf.GradientDescent(0.5, 0.01, 2, np.linspace(1, 0.5, 6)),
        record=cf.Record(4, ntk=False, test=True, also=("test_accuracy",)),
        stop=cf.Stop(None, 1e-3), loss="cross_entropy", dtype="float32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STORED)
def test_inputs_come_back(tmp_path, monkeypatch, name):
    sweep, path = STORED[name], tmp_path / "out.h5"
    run(sweep, path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = cf.open_results(path).sweep
    assert again == sweep
    assert again.describe() == sweep.describe()
    assert again.data.name == sweep.data.name
    assert again.net.p == sweep.net.p
    if sweep.weights is not None:
        assert [w.tobytes() for w in again.weights] == [w.tobytes() for w in sweep.weights]
        assert cf.open_results(path).seed.tolist() == [-1]
    forbid_computing(monkeypatch)
    assert_same_results(run(again, path), cf.open_results(path))


def test_data_of_a_path(tmp_path, monkeypatch):
    """A relative path is found from every folder; without the file the numbers are still there."""
    np.savez(tmp_path / "train.npz", X=X, Y=Y)
    monkeypatch.chdir(tmp_path)
    sweep = cf.Sweep(cf.load_dataset("npz", path="train.npz"), cf.TwoLayerLinear(9), kappa=[0.5, 9.0], steps=30)
    run(sweep, "out.h5")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    results = cf.open_results("../out.h5")
    assert results.sweep == sweep
    (tmp_path / "train.npz").unlink()
    results = cf.open_results("../out.h5")
    assert results.loss.shape == (1, 1, 2, 31)
    assert results.thresholds()["kappa_max"].lower == 0.5
    with pytest.raises(cf.CatapultError, match=r"train\.npz"):
        results.sweep  # noqa: B018


# --- the target --------------------------------------------------------------------------------


def test_a_finished_sweep_is_not_computed_again(finished, monkeypatch, memory):
    forbid_computing(monkeypatch)
    before = (finished.read_bytes(), finished.stat().st_mtime_ns)
    for same in (SWEEP, dataclasses.replace(SWEEP, net=cf.TwoLayerLinear(5, p=0.25))):
        assert_same_results(run(same, finished), memory)
        assert_same_results(run(same, str(finished), workers=1, shard_members=3), memory)
    assert (finished.read_bytes(), finished.stat().st_mtime_ns) == before
    assert [entry.name for entry in finished.parent.iterdir()] == ["out.h5"]


def test_another_sweep_is_left_alone(tmp_path, monkeypatch):
    run(SWEEP, tmp_path / "out.h5")
    before = snapshot(tmp_path)
    forbid_computing(monkeypatch)
    with pytest.raises(cf.SweepMismatch, match=r"out\.h5.*another sweep"):
        run(OTHER, tmp_path / "out.h5")
    assert snapshot(tmp_path) == before


def test_shards_of_another_sweep_are_left_alone(tmp_path, monkeypatch):
    interrupted(SWEEP, tmp_path / "out.h5", monkeypatch)
    before = snapshot(tmp_path)
    forbid_computing(monkeypatch)
    with pytest.raises(cf.SweepMismatch, match=r"out\.h5\.parts.*another sweep"):
        run(OTHER, tmp_path / "out.h5")
    assert snapshot(tmp_path) == before


def foreign_files(folder):
    with h5py.File(folder / "foreign.h5", "w") as file:
        file["loss"] = np.zeros(3)
    with h5py.File(folder / "empty.h5", "w"):
        pass
    (folder / "text.h5").write_text("my notes\n")
    (folder / "nothing.h5").write_bytes(b"")
    run(SWEEP, folder / "whole.h5")
    whole = (folder / "whole.h5").read_bytes()
    (folder / "half.h5").write_bytes(whole[: len(whole) // 2])
    (folder / "newer.h5").write_bytes(whole)
    with h5py.File(folder / "newer.h5", "a") as file:
        file.attrs["schema_version"] = "2.0"
    return ["foreign.h5", "empty.h5", "text.h5", "nothing.h5", "half.h5", "newer.h5"]


def test_foreign_files_are_left_alone(tmp_path, monkeypatch):
    names = foreign_files(tmp_path)
    before = snapshot(tmp_path)
    forbid_computing(monkeypatch)
    for name in names:
        with pytest.raises(cf.CorruptFileError, match=name):
            run(SWEEP, tmp_path / name)
        with pytest.raises(cf.CorruptFileError, match=name):
            cf.open_results(tmp_path / name)
    assert snapshot(tmp_path) == before


def test_a_newer_schema_says_what_to_do(tmp_path):
    foreign_files(tmp_path)
    with pytest.raises(cf.CorruptFileError, match=r"2\.0.*upgrade"):
        cf.open_results(tmp_path / "newer.h5")


def test_places_where_nothing_can_be_written(tmp_path, monkeypatch):
    forbid_computing(monkeypatch)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    before = snapshot(tmp_path)
    for target, words in (
        (tmp_path / "missing" / "out.h5", "missing"),
        (tmp_path / "file" / "out.h5", "file"),
        (tmp_path / "folder", "folder"),
    ):
        with pytest.raises(cf.StorageError, match=words) as caught:
            run(SWEEP, target)
        assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before


def test_a_file_in_the_place_of_the_shards(tmp_path, monkeypatch):
    forbid_computing(monkeypatch)
    (tmp_path / "out.h5.parts").write_text("mine")
    with pytest.raises(cf.StorageError, match=r"out\.h5\.parts"):
        run(SWEEP, tmp_path / "out.h5")
    assert (tmp_path / "out.h5.parts").read_text() == "mine"


def test_a_folder_of_others_in_the_place_of_the_shards(tmp_path, monkeypatch):
    """Its content is not ours to remove."""
    folder = tmp_path / "out.h5.parts"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    forbid_computing(monkeypatch)
    with pytest.raises(cf.StorageError, match=r"out\.h5\.parts"):
        run(SWEEP, tmp_path / "out.h5")
    assert (folder / "thesis.tex").read_text() == "mine"
    assert list(folder.iterdir()) == [folder / "thesis.tex"]


def test_the_folder_of_shards_is_no_target(tmp_path, monkeypatch):
    """Its sweep is the same, but it is not finished."""
    interrupted(SWEEP, tmp_path / "out.h5", monkeypatch)
    with pytest.raises(cf.StorageError, match="folder"):
        run(SWEEP, tmp_path / "out.h5.parts")


def test_nothing_there(tmp_path):
    for path in (tmp_path / "out.h5", str(tmp_path / "out.h5"), tmp_path):
        with pytest.raises(cf.StorageError, match=str(tmp_path)):
            cf.open_results(path)


# --- interruption ------------------------------------------------------------------------------


class Interruption(BaseException):
    """As a signal: nothing to try again."""


def interrupted(sweep, path, monkeypatch, *, after=2, shard_members=5):
    """Run until ``after`` shards are stored, then fail; the shards stay."""
    compute, done = run_module.compute_shard, []

    def fail_later(*arguments):
        if len(done) == after:
            raise Interruption
        done.append(arguments[2:4])
        return compute(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "compute_shard", fail_later)
        with pytest.raises(Interruption):
            run(sweep, path, workers=1, shard_members=shard_members)
    assert not path.exists()
    return done


def count_members(monkeypatch):
    """Record the member ranges that are computed."""
    compute, seen = run_module.compute_shard, []

    def record(sweep, engine, low, high, *rest):
        seen.append((low, high))
        return compute(sweep, engine, low, high, *rest)

    monkeypatch.setattr(run_module, "compute_shard", record)
    return seen


def members_of(ranges):
    return sorted(i for low, high in ranges for i in range(low, high))


@pytest.mark.parametrize("sweep", [SWEEP, ONE_SAMPLE, STORED["given weights"]], ids=["linear", "scalar", "weights"])
def test_only_the_missing_shards_are_computed(tmp_path, monkeypatch, sweep):
    size = 5 if sweep.n_members > 5 else 1
    done = interrupted(sweep, tmp_path / "out.h5", monkeypatch, after=1 + (size > 1), shard_members=size)
    seen = count_members(monkeypatch)
    run(sweep, tmp_path / "out.h5", shard_members=7)
    assert members_of(seen) == sorted(set(range(sweep.n_members)) - set(members_of(done)))
    run(sweep, tmp_path / "whole.h5")
    assert contents(tmp_path / "out.h5") == contents(tmp_path / "whole.h5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.h5", "whole.h5"]


def shard_files(path):
    return sorted(parts_folder(path).glob("members-*.h5"))


def truncate(shard):
    shard.write_bytes(shard.read_bytes()[:1000])


def flip(shard):
    with h5py.File(shard) as file:
        at = file["loss"].id.get_chunk_info(0).byte_offset
    broken = bytearray(shard.read_bytes())
    broken[at + 1] ^= 1
    shard.write_bytes(broken)


def empty(shard):
    shard.write_bytes(b"")


def rename(shard):
    shard.rename(shard.with_name("members-000000000010-000000000015.h5"))


def disown(shard):
    with h5py.File(shard, "a") as file:
        file.attrs["sweep_digest"] = OTHER.digest


@pytest.mark.parametrize("damage", [truncate, flip, empty, rename, disown])
def test_a_damaged_shard_is_computed_again(tmp_path, monkeypatch, memory, damage):
    interrupted(SWEEP, tmp_path / "out.h5", monkeypatch)
    damage(shard_files(tmp_path / "out.h5")[0])
    seen = count_members(monkeypatch)
    assert_same_results(run(SWEEP, tmp_path / "out.h5"), memory)
    assert members_of(seen) == [0, 1, 2, 3, 4, *range(10, 24)]


def test_leftovers_are_no_shards(tmp_path, monkeypatch, memory):
    """What a killed writer leaves behind is neither read nor kept."""
    interrupted(SWEEP, tmp_path / "out.h5", monkeypatch)
    first = shard_files(tmp_path / "out.h5")[0]
    first.rename(first.with_name(first.name + ".tmp-123"))
    assert_same_results(run(SWEEP, tmp_path / "out.h5"), memory)
    assert [p.name for p in tmp_path.iterdir()] == ["out.h5"]


def test_overlapping_shards(tmp_path, monkeypatch, memory):
    """Two runs side by side may leave shards of different cuts; they hold the same bits."""
    interrupted(SWEEP, tmp_path / "out.h5", monkeypatch, after=2, shard_members=5)
    interrupted(SWEEP, tmp_path / "other.h5", monkeypatch, after=1, shard_members=16)
    shard_files(tmp_path / "out.h5")[0].unlink()  # members 5 to 9 are left, and lie within the other
    for shard in shard_files(tmp_path / "other.h5"):
        shard.rename(parts_folder(tmp_path / "out.h5") / shard.name)
    seen = count_members(monkeypatch)
    assert_same_results(run(SWEEP, tmp_path / "out.h5"), memory)
    assert members_of(seen) == list(range(16, 24))


def test_all_shards_but_no_file(tmp_path, monkeypatch, memory):
    """Interrupted in the merge: nothing is left to compute."""

    def fail(*_):
        raise Interruption

    with monkeypatch.context() as patch:
        patch.setattr(store, "merge", fail)
        with pytest.raises(Interruption):
            run(SWEEP, tmp_path / "out.h5", shard_members=7)
    forbid_computing(monkeypatch)
    assert_same_results(run(SWEEP, tmp_path / "out.h5"), memory)


def test_interrupted_before_the_shards_were_removed(tmp_path, monkeypatch, memory):
    """The file is whole: the next run gives its results, and the shards go."""
    with monkeypatch.context() as patch:
        patch.setattr("catapult_fast.shards.set_aside", lambda *_: None)
        run(SWEEP, tmp_path / "out.h5", shard_members=7)
    assert parts_folder(tmp_path / "out.h5").is_dir()
    forbid_computing(monkeypatch)
    assert_same_results(run(SWEEP, tmp_path / "out.h5"), memory)
    assert not parts_folder(tmp_path / "out.h5").exists()


def test_a_failed_merge_keeps_everything(tmp_path, monkeypatch, memory):
    """A disk that breaks a byte of the file is found before the shards go."""
    with monkeypatch.context() as patch:
        fill = store.merging.fill_in_child

        def broken(path, folder):
            fill(path, folder)
            raise cf.CorruptFileError("a checksum is wrong")

        patch.setattr(store.merging, "fill_in_child", broken)
        with pytest.raises(cf.CorruptFileError):
            run(SWEEP, tmp_path / "out.h5", shard_members=7)
    assert not (tmp_path / "out.h5").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out.h5.parts"]
    assert len(shard_files(tmp_path / "out.h5")) == 4
    forbid_computing(monkeypatch)
    assert_same_results(run(SWEEP, tmp_path / "out.h5"), memory)


def test_results_of_a_run_in_progress(tmp_path, monkeypatch, memory):
    done = members_of(interrupted(SWEEP, tmp_path / "out.h5", monkeypatch))
    partial = cf.open_results(parts_folder(tmp_path / "out.h5"))
    assert partial.sweep == SWEEP
    assert partial.dims == memory.dims
    is_done = np.isin(np.arange(24), done).reshape(SWEEP.shape)
    for name, dims in memory.dims.items():
        values, whole = getattr(partial, name), getattr(memory, name)
        if dims[:3] == ("width", "seed", "kappa"):
            assert values[is_done].tobytes() == whole[is_done].tobytes(), name
            missing = {"n_steps": -1, "max_loss_step": -1, "status": NOT_RUN, "phase": 0}.get(name, np.nan)
            assert_array_equal(values[~is_done], np.full(values[~is_done].shape, missing, values.dtype))
        elif dims == ("width", "seed"):
            known = is_done.any(-1)
            assert_array_equal(values[known], whole[known])
            assert np.isnan(values[~known]).all()
    assert partial.attrs["sweep_digest"] == SWEEP.digest
    # A picture, a table and a copy with named axes can be made of it.
    assert partial.to_xarray().sizes["kappa"] == 6
    assert partial.thresholds()["kappa_max"].values.shape == (2, 2)


# --- save and named axes -----------------------------------------------------------------------


def test_save(finished, memory, tmp_path):
    memory.save(tmp_path / "saved.h5")
    assert contents(tmp_path / "saved.h5") == contents(finished)
    cf.open_results(finished).save(str(tmp_path / "copy.h5"))
    assert contents(tmp_path / "copy.h5") == contents(finished)
    assert_same_results(cf.open_results(tmp_path / "saved.h5"), memory)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.h5", "saved.h5"]


def test_saved_results_are_a_finished_run(memory, tmp_path, monkeypatch):
    memory.save(tmp_path / "out.h5")
    forbid_computing(monkeypatch)
    assert_same_results(run(SWEEP, tmp_path / "out.h5"), memory)


def test_partial_results_are_not_saved_as_a_finished_run(tmp_path, monkeypatch):
    """A later run of the sweep would take such a file for the whole."""
    interrupted(SWEEP, tmp_path / "out.h5", monkeypatch)
    partial = cf.open_results(tmp_path / "out.h5.parts")
    with pytest.raises(cf.StorageError, match="in progress"):
        partial.save(tmp_path / "saved.h5")
    assert not (tmp_path / "saved.h5").exists()


def test_save_overwrites_nothing(memory, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(cf.StorageError, match=r"mine\.txt exists"):
        memory.save(tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    with pytest.raises(cf.StorageError, match="missing"):
        memory.save(tmp_path / "missing" / "out.h5")


def test_named_axes(finished, memory):
    for results in (memory, cf.open_results(finished)):
        data = results.to_xarray()
        assert data.attrs == results.attrs
        assert set(data.coords) == {"width", "seed", "kappa", "step"}
        assert set(data.data_vars) | set(data.coords) == set(results.dims)
        for name, dims in results.dims.items():
            assert data[name].dims == dims
            assert_array_equal(data[name], results.rates if name == "kappa" else getattr(results, name))
    with xarray.open_dataset(finished, engine="h5netcdf") as opened:
        assert data.drop_attrs().identical(opened.load().drop_attrs())


def test_named_axes_hold_the_last_value():
    sweep = cf.Sweep(
        cf.load_dataset("one-sample", dim=1), cf.TwoLayerLinear(), kappa=[0.0, 0.5, 1.5, 9.0], steps=200,
        record=cf.Record(every=7),
    )  # fmt: skip
    results = run(sweep)
    plain, held = results.to_xarray(), results.to_xarray(fill="hold")
    converged = results.status == CONVERGED
    assert converged[0, 0].tolist() == [False, True, True, False]
    for name in ("loss", "ntk_lambda_max"):
        values, kept = plain[name].values, held[name].values
        known = ~np.isnan(values)
        assert_array_equal(values, getattr(results, name))
        assert_array_equal(kept[known], values[known])
        assert np.isfinite(kept[converged]).all()
        assert_array_equal(np.isnan(kept[~converged]), np.isnan(values[~converged]))
        assert np.isnan(kept[0, 0, 3]).any()
        for r in (1, 2):
            last = int(results.n_steps[0, 0, r]) // 7
            assert (kept[0, 0, r, last:] == values[0, 0, r, last]).all()
    for name in ("final_loss", "status", "eta"):
        assert_array_equal(held[name], plain[name])
    with pytest.raises(cf.ConfigError, match="fill = 'zero'"):
        results.to_xarray(fill="zero")


def test_named_axes_without_trajectories():
    results = run(dataclasses.replace(SWEEP, record=cf.Record(every=0)))
    for fill in ("nan", "hold"):
        assert set(results.to_xarray(fill).dims) == {"width", "seed", "kappa"}


def test_engine_in_use_is_named(finished):
    assert cf.open_results(finished).attrs["backend"] in engines.BACKENDS
