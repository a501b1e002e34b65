"""Broken, foreign, old, new and hostile files: found or harmless, never silently wrong."""

import ast
import json
import os
import shutil
import signal
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

import catapult_fast as cf
from catapult_fast import cli, seal
from catapult_fast.hdf5 import opened
from catapult_fast.layout import SCHEMA_VERSION
from catapult_fast.shards import form_of, parts_folder, read_shard, shards_of, write_shard
from catapult_fast.verify import verify
from faults import SWEEP, contents, python

DATA = Path(__file__).parent / "data"
PACKAGE = Path(cf.__file__).parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "out.h5"
    cf.run(SWEEP, path, progress=False)
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The shards of a run that ended before its merge; tests must not write to it."""
    folder = tmp_path_factory.mktemp("parts") / "out.h5.parts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("catapult_fast.store.merging.fill_in_child", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cf.run(SWEEP, folder.with_suffix(""), shard_members=9, progress=False)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copy(finished, tmp_path / "out.h5"))


# --- flipped bits and missing bytes ------------------------------------------------------------


def of_file(path):
    """All that a reader gets of a finished file."""
    results = cf.open_results(path)
    values = {name: (results.dims[name], results._array(name).tobytes()) for name in results.dims}
    return results.attrs, values, results.sweep.describe()


def of_shard(path):
    form = form_of(SWEEP, len(SWEEP.record_steps))
    return {name: array.tobytes() for name, array in read_shard(path, 0, 9, SWEEP.digest, form).items()}


def first_shard(folder):
    return shards_of(folder)[0][2]


KINDS = {"file": of_file, "shard": of_shard}


def whole_of(kind, finished, parts):
    return finished if kind == "file" else first_shard(parts)


def complaint(read, path, expected):
    """What reading says of a broken file; None if it gives what is expected, nothing if it gives something else."""
    try:
        return None if read(path) == expected else ""
    except cf.CorruptFileError as error:
        return str(error)


def flips(path, folder, read, seed, count):
    """Read copies with one bit flipped; return how many are found and how many are harmless."""
    whole, expected, found = path.read_bytes(), read(path), 0
    rng = np.random.default_rng(seed)
    copy = folder / path.name
    for at, bit in zip(rng.integers(len(whole), size=count), rng.integers(8, size=count), strict=True):
        broken = bytearray(whole)
        broken[at] ^= 1 << bit
        copy.write_bytes(broken)
        said = complaint(read, copy, expected)
        assert said != "", f"bit {bit} of byte {at} of {len(whole)} is silently wrong"
        assert said is None or (str(copy) in said and "\n" not in said)
        found += said is not None
    return found, count - found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found_or_harmless(finished, parts, tmp_path, kind, seed):
    found, _ = flips(whole_of(kind, finished, parts), tmp_path, KINDS[kind], seed, 50)
    assert found > 25


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3, 6))
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_flipped_bits(finished, parts, tmp_path, kind, seed):
    print(kind, flips(whole_of(kind, finished, parts), tmp_path, KINDS[kind], seed, 500))  # noqa: T201


def offsets(path):
    """Where a file could be cut: its headers, the ends of its parts, and around them."""
    size = path.stat().st_size
    places = {0, 1, 8, 12, 48, 96, 100, 512, 1000, 4096, size // 2, size - 4096, size - 8, size - 1}

    def visit(_, item):
        places.add(h5py.h5o.get_info(item.id).addr)
        if isinstance(item, h5py.Dataset) and item.chunks:
            chunk = item.id.get_chunk_info(0)
            places.update((chunk.byte_offset, chunk.byte_offset + chunk.size))

    with h5py.File(path) as file:
        file.visititems(visit)
    return sorted({p + d for p in places for d in (-1, 0, 1) if 0 <= p + d < size})


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_refused(finished, parts, tmp_path, kind):
    path = whole_of(kind, finished, parts)
    whole, cut = path.read_bytes(), tmp_path / path.name
    places = offsets(path)
    assert len(places) > 50
    for place in places:
        cut.write_bytes(whole[:place])
        with pytest.raises(cf.CorruptFileError, match=path.name):
            KINDS[kind](cut)


def test_zeros_in_place_of_a_chunk_are_found(copy):
    """Their HDF5 checksum is right: it is zero, too."""
    with h5py.File(copy) as file:
        chunk = file["loss"].id.get_chunk_info(0)
    broken = bytearray(copy.read_bytes())
    broken[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    copy.write_bytes(broken)
    with h5py.File(copy) as file:
        assert not file["loss"][...].any()
    with pytest.raises(cf.CorruptFileError, match="values of loss"):
        cf.open_results(copy).loss  # noqa: B018
    assert any("values of loss" in fault for fault in verify(copy).faults)


@pytest.mark.parametrize("number", [0, 1])
def test_a_heap_that_leads_in_circles_is_found(finished, parts, tmp_path, number):
    """HDF5 would go round in it for ever: in a process of its own, so that a failure ends."""
    path = tmp_path / "broken.h5"
    broken = bytearray([finished, first_shard(parts)][number].read_bytes())
    place = broken.index(b"GCOL\x01") + 16
    broken[place : place + 16] = bytes(16)  # the first text turns into free space of size 0
    path.write_bytes(broken)
    code = "import catapult_fast.hdf5 as h, pathlib; h.open_ours(pathlib.Path('broken.h5'), print)"
    said = python(code, tmp_path, timeout=60)
    assert "CorruptFileError: broken.h5 is damaged: the heap of text at byte" in said.stderr


def test_bytes_of_others_behind_it_are_harmless(finished, copy):
    copy.write_bytes(copy.read_bytes() + b"more")
    assert of_file(copy) == of_file(finished)


def test_other_shards_are_still_of_use(parts, tmp_path):
    folder = shutil.copytree(parts, tmp_path / "out.h5.parts")
    first_shard(folder).write_bytes(b"")
    results = cf.open_results(folder)
    assert (results.status > 0).sum() == 24 - 9
    assert verify(tmp_path / "out.h5").members == 24 - 9


def test_a_file_that_is_replaced_is_not_read_on(finished, copy):
    results = cf.open_results(copy)
    assert results.loss.size
    copy.unlink()
    shutil.copy(finished, copy)
    with pytest.raises(cf.StorageError, match="replaced"):
        results.ntk_lambda_max  # noqa: B018


@pytest.mark.parametrize("what", ["attribute", "annotation", "axis", "fill value", "provenance", "seal", "two axes"])
def test_an_altered_file_is_refused(copy, what):
    """HDF5 itself finds nothing wrong with any of these."""
    with h5py.File(copy, "a") as file:
        if what == "attribute":
            file.attrs["backend"] = "cuda"
        elif what == "annotation":
            file["loss"].attrs["note"] = "mine"
        elif what == "axis":
            file["final_loss"].dims[0].detach_scale(file["width"])
            file["final_loss"].dims[0].attach_scale(file["seed"])
        elif what == "fill value":
            file["loss"].attrs["_FillValue"] = 0.0
        elif what == "provenance":
            said = json.loads(file.attrs["provenance_json"])
            file.attrs["provenance_json"] = json.dumps(said | {"workers": 1000})
        elif what == "seal":
            del file.attrs["integrity_json"]
        elif what == "two axes":
            file["final_loss"].dims[0].attach_scale(file["seed"])
    with pytest.raises(cf.CorruptFileError, match=r"out\.h5"):
        cf.open_results(copy)


# --- schemas -----------------------------------------------------------------------------------


def test_a_file_of_the_first_schema_is_read(tmp_path):
    """Written before there were seals; its values are kept beside it."""
    results = cf.open_results(DATA / "results-1.0.h5")
    assert results.attrs["schema_version"] == "1.0"
    with np.load(DATA / "results-1.0.npz", allow_pickle=False) as kept:
        assert set(kept) == set(results.dims)
        for name in kept:
            assert kept[name].tobytes() == results._array(name).tobytes(), name
    assert results.sweep.data.name == "three points"
    assert verify(DATA / "results-1.0.h5").faults == []
    results.save(tmp_path / "copy.h5")
    saved = cf.open_results(tmp_path / "copy.h5")
    assert saved.loss.tobytes() == results.loss.tobytes()
    assert saved.sweep == results.sweep


@pytest.mark.parametrize(("version", "words"), [("2.0", "upgrade"), ("10.3", "upgrade"), ("0.9", "0.9"), ("", "''")])
def test_another_schema(copy, version, words):
    with h5py.File(copy, "a") as file:
        file.attrs["schema_version"] = version
    with pytest.raises(cf.CorruptFileError, match=f"{words}") as caught:
        cf.open_results(copy)
    assert str(copy) in str(caught.value)


def test_an_old_file_is_not_taken_for_a_new_one(copy):
    """Without its seal a file of today is no file of yesterday, unless its version says so."""
    assert SCHEMA_VERSION != "1.0"
    with h5py.File(copy, "a") as file:
        file.attrs["schema_version"] = "1.0"
    with pytest.raises(cf.CorruptFileError, match="altered"):
        cf.open_results(copy)


# --- hostile files -----------------------------------------------------------------------------


def replace(file, name, **options):
    """Put another dataset in the place of one."""
    del file[name]
    return file.create_dataset(name, **options)


def external_storage(file, folder):
    (folder / "secret").write_bytes(b"private!" * 100)
    replace(file, "final_loss", shape=(2, 2, 6), dtype="f8", external=[(str(folder / "secret"), 0, 192)])


def external_link(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["values"] = np.zeros((2, 2, 6))
    del file["final_loss"]
    file["final_loss"] = h5py.ExternalLink(str(folder / "other.h5"), "values")


def virtual(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["values"] = np.zeros((2, 2, 6))
    layout = h5py.VirtualLayout((2, 2, 6), "f8")
    layout[...] = h5py.VirtualSource(str(folder / "other.h5"), "values", (2, 2, 6))
    del file["final_loss"]
    file.create_virtual_dataset("final_loss", layout)


def soft_loop(file, _):
    file["one"], file["two"] = h5py.SoftLink("/two"), h5py.SoftLink("/one")


def hard_loop(file, _):
    file["inputs/again"] = file["/"]


def second_name(file, _):
    file["another"] = file["loss"]


def nested_groups(file, _):
    group = file["inputs"]
    for _ in range(50):
        group = group.create_group("deeper")


def named_type(file, _):
    file["kind"] = np.dtype("f8")


def many_objects(file, _):
    for number in range(300):
        file.create_group(f"inputs/{number}")


def texts(file, _):
    replace(file, "final_loss", data=["text"], dtype=h5py.string_dtype())


def references(file, _):
    replace(file, "final_loss", data=[file["loss"].ref], dtype=h5py.ref_dtype)


def opaque(file, _):
    replace(file, "final_loss", data=np.array([b"12345678"], "V8"))


def compound(file, _):
    replace(file, "final_loss", data=np.zeros(3, [("a", "f8"), ("b", "i4")]))


def lists(file, _):
    replace(file, "final_loss", shape=(3,), dtype=h5py.vlen_dtype("f8"))


def terabytes(file, _):
    replace(file, "final_loss", shape=(1000, 1000, 10**6), dtype="f8", chunks=(1, 1, 1000))


def terabytes_at_once(file, _):
    replace(file, "final_loss", shape=(1000, 1000, 10**6), dtype="f8")


def compressed_terabytes(file, _):
    replace(file, "final_loss", shape=(10**12,), dtype="f8", chunks=(10**5,), compression="gzip")[:10] = 1.0


def huge_chunks(file, _):
    options = {"shape": (10,), "maxshape": (None,), "chunks": (1 << 26,), "compression": "gzip"}
    replace(file, "final_loss", dtype="f8", **options).id.write_direct_chunk((0,), zlib.compress(bytes(1000)))


def unknown_filter(file, _):
    replace(file, "final_loss", data=np.zeros((2, 2, 6)), compression="lzf")


def large_attribute(file, _):
    file["loss"].attrs["note"] = np.zeros(1 << 18)


def many_attributes(file, _):
    for number in range(100):
        file.attrs[f"note {number}"] = number


def reference_attribute(file, _):
    file.attrs["place"] = file["loss"].ref


def list_attribute(file, _):
    values = np.empty(2, object)
    values[:] = np.zeros(2), np.zeros(3)
    file.attrs.create("lists", values, dtype=h5py.vlen_dtype("f8"))


REASONS = {
    external_storage: "external storage", external_link: "external link", virtual: "virtual", soft_loop: "soft link",
    hard_loop: "second name", second_name: "second name", nested_groups: "no dataset", named_type: "no dataset",
    many_objects: "304 objects", texts: "plain numbers", references: "plain numbers", opaque: "plain numbers",
    compound: "plain numbers", lists: "plain numbers", terabytes: "declares 8,000,000,000,000 bytes",
    terabytes_at_once: "declares 8,000,000,000,000 bytes", compressed_terabytes: "declares 8,000,000,000,000 bytes",
    huge_chunks: "chunks of 536,870,912 bytes", unknown_filter: "unknown filters", large_attribute: "2,097,152 bytes",
    many_attributes: "attributes", reference_attribute: "neither text nor", list_attribute: "neither text nor",
}  # fmt: skip


def reseal(path):
    """Whoever makes a file can make its seal, too."""
    with h5py.File(path, "a") as file:
        digests = json.loads(file.attrs["integrity_json"])["datasets"]
        for name, item in file.items():
            if isinstance(item, h5py.Dataset):
                digests[name] = seal.digest_of(item[...])
        seal.put(file, digests)


@pytest.mark.parametrize("make", REASONS, ids=lambda make: make.__name__)
def test_a_hostile_file_is_refused(copy, tmp_path, make):
    with h5py.File(copy, "a", libver=("v110", "v110")) as file:
        make(file, tmp_path)
    with pytest.raises(cf.CorruptFileError, match=REASONS[make]) as caught:
        cf.open_results(copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert verify(copy).faults == [str(caught.value)]


def test_a_chunk_that_grows_is_refused(copy):
    """A kilobyte that unpacks to a megabyte, in a dataset of 24 bytes."""
    with h5py.File(copy, "a") as file:
        bomb = zlib.compress(bytes(1 << 20))
        file["status"].id.write_direct_chunk((0, 0, 0), bomb + bytes(4), 0)
    with pytest.raises(cf.CorruptFileError, match="declared size"):
        cf.open_results(copy).status  # noqa: B018


def drop_step(file):
    del file["test_loss"]


def shorten(file):
    values = file["kappa"][:5]
    del file["kappa"]
    file.create_dataset("kappa", data=values).make_scale("kappa")


def add_variable(file):
    file["mine"] = np.zeros(3)


def other_sweep(file):
    file.attrs["sweep_toml"] = file.attrs["sweep_toml"].replace("steps = 40", "steps = 10000000000000")


def no_sweep(file):
    file.attrs["sweep_toml"] = "schema = 1"


def huge_grid(file):
    text = file.attrs["sweep_toml"]
    assert "seeds = [\n    3,\n    1,\n]" in text
    file.attrs["sweep_toml"] = text.replace("seeds = [\n    3,\n    1,\n]", "seeds = 2000000000")


@pytest.mark.parametrize("make", [drop_step, shorten, add_variable, other_sweep, no_sweep, huge_grid])
def test_a_file_that_does_not_fit_its_own_sweep_is_refused(copy, make):
    with h5py.File(copy, "a") as file:
        make(file)
    reseal(copy)
    with pytest.raises(cf.CorruptFileError, match="sweep"):
        cf.open_results(copy)


def test_nothing_executes_what_a_file_holds():
    """No source loads pickles or YAML, or evaluates text."""
    sources = [
        path for folder in ("catapult_fast", "kernels", "bench") for path in (PACKAGE.parent / folder).rglob("*.py")
    ]
    sources = sources if len(sources) > 50 else list(PACKAGE.rglob("*.py"))
    assert len(sources) > 50
    modules = {
        "pickle",
        "cPickle",
        "_pickle",
        "dill",
        "cloudpickle",
        "joblib",
        "marshal",
        "shelve",
        "yaml",
        "multiprocessing",
    }
    benchmark = PACKAGE / "bench" / "on_device.py"  # talks to processes of its own, and to no file
    here = PACKAGE.parent / "bench" / "on_device.py"
    for source in set(sources) - {benchmark, here}:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not modules & {alias.name.partition(".")[0] for alias in node.names}, source
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in modules, source
            elif isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else ""
                assert called not in ("eval", "exec", "compile", "__import__"), source
                if ast.unparse(node.func) in ("np.load", "numpy.load"):
                    given = {k.arg: ast.literal_eval(k.value) for k in node.keywords}
                    assert given.get("allow_pickle") is False, source


# --- verify ------------------------------------------------------------------------------------


def test_verify_a_whole_file(finished):
    found = verify(finished)
    with h5py.File(finished) as file:
        values = [item for item in [*file.values(), *file["inputs"].values()] if isinstance(item, h5py.Dataset)]
        assert found.bytes == sum(item.nbytes for item in values)
    assert (found.faults, found.members, found.checked) == ([], 24, [str(finished)])


def test_verify_reads_every_dataset(finished, copy):
    """One broken chunk in each: every one has its sentence."""
    with h5py.File(finished) as file:
        items = {name: file[name] for name in [*file, *(f"inputs/{name}" for name in file["inputs"])]}
        places = {n: i.id.get_chunk_info(0).byte_offset for n, i in items.items() if isinstance(i, h5py.Dataset)}
    broken = bytearray(copy.read_bytes())
    for name, place in places.items():
        if name not in ("width", "seed", "step", "kappa"):  # these are compared first
            broken[place + 1] ^= 4
    copy.write_bytes(broken)
    assert len(verify(copy).faults) == len(places) - 4


@pytest.mark.parametrize("name", ["width", "seed", "kappa", "step"])
def test_verify_compares_coordinates(copy, name):
    with h5py.File(copy, "a") as file:
        file[name][0] += 1
    reseal(copy)
    assert cf.open_results(copy).loss.size
    assert verify(copy).faults == [f"{copy}: the coordinate {name} is not that of the file's own sweep"]


@pytest.mark.parametrize(("name", "code"), [("status", 7), ("status", -1), ("phase", 5)])
def test_verify_compares_codes(copy, name, code):
    with h5py.File(copy, "a") as file:
        file[name][1, 0, 2] = code
    reseal(copy)
    assert verify(copy).faults == [f"{copy}: {name} holds {code}, which is no code of its table"]


def test_verify_shards(parts, tmp_path):
    target = tmp_path / "out.h5"
    folder = shutil.copytree(parts, parts_folder(target))
    for path in (target, folder):
        found = verify(path)
        assert (found.faults, found.members, len(found.checked)) == ([], 24, 4)
    second = shards_of(folder)[1][2]
    broken = bytearray(second.read_bytes())
    broken[len(broken) // 2] ^= 1
    second.write_bytes(broken)
    last = cf.open_results(parts)
    arrays = {name: np.zeros((10, *array.shape[3:]), array.dtype) for name, array in _members(last).items()}
    write_shard(folder, SWEEP, 15, 25, arrays)
    faults = verify(target).faults
    assert any(str(second) in fault for fault in faults)
    assert any("has no members 15 to 24" in fault for fault in faults)
    assert sum("overlaps" in fault for fault in faults) == 2


def _members(results):
    """Arrays in the members' axes, by the names that a shard has."""
    found = {}
    for name in form_of(SWEEP, 1):
        array = getattr(results, name)
        found[name] = array if array.ndim > 2 else np.broadcast_to(array[..., None], SWEEP.shape)
    return found


def test_verify_both_during_a_run(finished, parts, tmp_path):
    """After the rename, before the shards are removed."""
    shutil.copy(finished, tmp_path / "out.h5")
    shutil.copytree(parts, tmp_path / "out.h5.parts")
    found = verify(tmp_path / "out.h5")
    assert (found.faults, len(found.checked)) == ([], 5)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_verify(finished, copy, tmp_path, capsys, as_json):
    flags = ["--json"] if as_json else []
    assert cli.main(["verify", str(finished), *flags]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert (json.loads(said.out)["members"] == 24) if as_json else ("no fault; 24 members" in said.out)
    copy.write_bytes(copy.read_bytes()[:-1])
    assert cli.main(["verify", str(copy), *flags]) == 5
    said = capsys.readouterr()
    faults = json.loads(said.out)["faults"] if as_json else said.out.splitlines()[:-1]
    assert len(faults) == 1
    assert "1 fault;" in said.out or as_json
    assert cli.main(["verify", str(tmp_path / "nothing.h5")]) == 5
    assert "nothing.h5" in capsys.readouterr().err


def test_contents_say_the_same_of_a_copy(finished, copy):
    """What the tests compare files by sees more than values."""
    before = contents(finished)
    assert contents(copy) == before
    with h5py.File(copy, "a") as file:
        file["final_loss"].dims[0].detach_scale(file["width"])
    assert contents(copy) != before
    with opened(finished) as file:
        assert set(before) >= {"loss", "loss axes", "/@sweep_toml"}
        assert file["loss"].fletcher32


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_a_write_is_no_fault_of_the_file(tmp_path, monkeypatch, number):
    """HDF5 would make an error of its own of what the handler raises."""

    class Stopped(BaseException):
        pass

    def stop(*_):
        raise Stopped

    write, sent = os.pwrite, []

    def interrupted(*arguments):
        if len(sent) < 2:  # a second one changes nothing
            sent.append(number)
            os.kill(os.getpid(), number)
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", interrupted)
    before = signal.signal(number, stop)
    try:
        with pytest.raises(Stopped):
            cf.run(SWEEP, progress=False).save(tmp_path / "out.h5")
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    assert len(sent) == 2
    assert list(tmp_path.iterdir()) == []
