"""Readers: files written here byte by byte come back, broken ones are refused by name and cheaply."""

import gzip
import hashlib
import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from catapult_fast.errors import DataError
from catapult_fast.readers import read_bundled, read_cifar10, read_idx, read_idx_folder, read_npz

PIXELS = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4)
LABELS = np.array([7, 0, 255], dtype=np.uint8)


def idx_bytes(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder, prefix="train", images=PIXELS, labels=LABELS, *, packed=False, dotted=False):
    for stem, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        name = stem.replace("-idx", ".idx") if dotted else stem
        body = idx_bytes(array)
        (folder / f"{name}{'.gz' if packed else ''}").write_bytes(gzip.compress(body) if packed else body)


def cifar_records(rng, labels):
    pixels = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    return np.column_stack([np.array(labels, dtype=np.uint8), pixels])


def write_cifar10(folder, per_batch=4):
    rng = np.random.default_rng(5)
    batches = {f"data_batch_{i}.bin": cifar_records(rng, [(i + j) % 10 for j in range(per_batch)]) for i in range(1, 6)}
    batches["test_batch.bin"] = cifar_records(rng, range(10))
    for name, records in batches.items():
        (folder / name).write_bytes(records.tobytes())
    return batches


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize(("prefix", "split"), [("train", "train"), ("t10k", "test")])
def test_idx_comes_back(tmp_path, packed, dotted, prefix, split):
    write_idx(tmp_path, prefix, packed=packed, dotted=dotted)
    images, labels = read_idx_folder(tmp_path, split)
    assert np.array_equal(images, PIXELS.reshape(3, 8))
    assert np.array_equal(labels, LABELS)
    assert images.dtype == labels.dtype == np.uint8


def test_plain_file_is_preferred_to_packed(tmp_path):
    write_idx(tmp_path, images=PIXELS + 1, packed=True)
    write_idx(tmp_path)
    assert np.array_equal(read_idx_folder(tmp_path, "train")[0], PIXELS.reshape(3, 8))


def test_counts_that_disagree(tmp_path):
    write_idx(tmp_path, labels=LABELS[:2])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte holds 3 images, but .*labels-idx1-ubyte 2 labels"):
        read_idx_folder(tmp_path, "train")


def test_missing_idx_files(tmp_path):
    with pytest.raises(DataError, match="missing or not a folder"):
        read_idx_folder(tmp_path / "nowhere", "train")
    write_idx(tmp_path)
    with pytest.raises(DataError, match="neither t10k-images-idx3-ubyte nor"):
        read_idx_folder(tmp_path, "test")


@pytest.mark.parametrize("packed", [False, True])
def test_every_cut_of_an_idx_file_is_refused(tmp_path, packed):
    body = idx_bytes(PIXELS)
    whole = gzip.compress(body) if packed else body
    file = tmp_path / f"images{'.gz' if packed else ''}"
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(DataError, match=file.name):
            read_idx(file, 3)
    file.write_bytes(whole)
    assert np.array_equal(read_idx(file, 3), PIXELS)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"\x89PNG" + bytes(30), "begins with 0x89504e47, not 0x00000803"),
        (idx_bytes(LABELS), "begins with 0x00000801, not 0x00000803"),
        (b"\0\0\x0d\x03" + idx_bytes(PIXELS)[4:], "begins with 0x00000d03"),
        (idx_bytes(PIXELS) + b"\0", "but holds more"),
        (idx_bytes(PIXELS)[:-1], "truncated"),
        (idx_bytes(PIXELS)[:9], "truncated: 9 bytes, less than its header of 16"),
        (idx_bytes(PIXELS[:0]), r"is empty: it declares the shape \(0, 2, 4\)"),
        (b"", "truncated: 0 bytes"),
    ],
)
def test_broken_idx_bodies(tmp_path, body, problem):
    (tmp_path / "images").write_bytes(body)
    (tmp_path / "images.gz").write_bytes(gzip.compress(body))
    with pytest.raises(DataError, match=problem):
        read_idx(tmp_path / "images", 3)
    with pytest.raises(DataError, match=r"images\.gz .*(begins|holds|truncated|empty)"):
        read_idx(tmp_path / "images.gz", 3)


def test_a_gzip_file_that_is_none_or_fails_its_checksum(tmp_path):
    file = tmp_path / "images.gz"
    file.write_bytes(idx_bytes(PIXELS))
    with pytest.raises(DataError, match="cannot be read: Not a gzipped file"):
        read_idx(file, 3)
    body = bytearray(gzip.compress(idx_bytes(PIXELS)))
    body[-8] ^= 1
    file.write_bytes(body)
    with pytest.raises(DataError, match="CRC check failed"):
        read_idx(file, 3)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [(2**32 - 1,) * 3, (60000, 28, 28)])
def test_absurd_sizes_allocate_nothing(tmp_path, packed, shape):
    body = b"\0\0\x08\x03" + struct.pack(">3I", *shape) + bytes(100)
    file = tmp_path / f"images{'.gz' if packed else ''}"
    file.write_bytes(gzip.compress(body) if packed else body)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more than a file of its size can hold"):
            read_idx(file, 3)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_cifar10_comes_back_in_file_order(tmp_path):
    batches = write_cifar10(tmp_path)
    images, labels = read_cifar10(tmp_path, "train")
    expected = np.concatenate([batches[f"data_batch_{i}.bin"] for i in range(1, 6)])
    assert np.array_equal(images, expected[:, 1:])
    assert np.array_equal(labels, expected[:, 0])
    images, labels = read_cifar10(tmp_path, "test")
    assert np.array_equal(images, batches["test_batch.bin"][:, 1:])
    assert list(labels) == list(range(10))


def cut(folder):
    file = folder / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:-1])


def halve(folder):
    file = folder / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[: 2 * 3073])


def relabel(folder):
    file = folder / "data_batch_3.bin"
    body = bytearray(file.read_bytes())
    body[3073] = 10
    file.write_bytes(body)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (cut, r"data_batch_3.bin has 12291 bytes, not a positive multiple of the 3073"),
        (halve, r"data_batch_3.bin holds 2 images, but data_batch_1.bin 4"),
        (relabel, r"data_batch_3.bin has the label 10 in record 1"),
        (lambda folder: (folder / "data_batch_3.bin").write_bytes(b""), "data_batch_3.bin has 0 bytes"),
        (lambda folder: (folder / "data_batch_3.bin").unlink(), "data_batch_3.bin is missing"),
    ],
)
def test_broken_cifar10(tmp_path, damage, problem):
    write_cifar10(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=problem):
        read_cifar10(tmp_path, "train")


def test_missing_cifar10_folder(tmp_path):
    with pytest.raises(DataError, match="nowhere is missing or not a folder"):
        read_cifar10(tmp_path / "nowhere", "train")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.array([True, False]),
        np.float16(3),
    ],
)
def test_npz_comes_back(tmp_path, save, array):
    save(tmp_path / "a.npz", X=array, other=[1])
    found = read_npz(tmp_path / "a.npz", ["X"], ["X_test"])
    assert list(found) == ["X"]
    assert np.array_equal(found["X"], array)
    assert found["X"].dtype == array.dtype


class Trap:
    """Unpickling this would leave a file behind."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_pickled_arrays_are_refused_unopened(tmp_path):
    trap = np.empty(1, dtype=object)
    trap[0] = Trap(tmp_path / "sprung")
    np.savez(tmp_path / "a.npz", X=trap)
    with pytest.raises(DataError, match=r"array X of .*a\.npz holds pickled Python objects"):
        read_npz(tmp_path / "a.npz", ["X"])
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "array", [np.array(["a"]), np.ones(2, complex), np.zeros(2, "datetime64[s]"), np.zeros(2, "i4,f8")]
)
def test_npz_must_hold_real_numbers(tmp_path, array):
    np.savez(tmp_path / "a.npz", X=array)
    with pytest.raises(DataError, match=r"array X of .* has dtype"):
        read_npz(tmp_path / "a.npz", ["X"])


def test_npz_without_the_array(tmp_path):
    np.savez(tmp_path / "a.npz", A=[1], B=[2])
    with pytest.raises(DataError, match=r"a\.npz has no array X; it holds A, B"):
        read_npz(tmp_path / "a.npz", ["X"])


def test_missing_npz_and_folder_in_its_place(tmp_path):
    for file in (tmp_path / "a.npz", tmp_path):
        with pytest.raises(DataError, match="missing or not a file"):
            read_npz(file, ["X"])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_cut_of_an_npz_is_refused(tmp_path, save):
    save(tmp_path / "a.npz", X=np.arange(9.0))
    body = (tmp_path / "a.npz").read_bytes()
    for size in range(0, len(body), 7):
        (tmp_path / "b.npz").write_bytes(body[:size])
        with pytest.raises(DataError, match=r"b\.npz"):
            read_npz(tmp_path / "b.npz", ["X"])


def test_flipped_bits_of_an_npz_never_change_its_numbers(tmp_path):
    array = np.arange(9.0)
    np.savez_compressed(tmp_path / "a.npz", X=array)
    body, refused = (tmp_path / "a.npz").read_bytes(), 0
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(body)
        damaged[rng.integers(len(body))] ^= 1 << rng.integers(8)
        (tmp_path / "b.npz").write_bytes(damaged)
        try:
            assert np.array_equal(read_npz(tmp_path / "b.npz", ["X"])["X"], array)
        except DataError:
            refused += 1
    assert refused > 100


def npz_with(file, header, body=b"", compression=zipfile.ZIP_DEFLATED):
    text = header.encode() + b"\n"
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("X.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2, -1, -1)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1)}",
        "{'descr': '<f8', 'fortran_order': False}",
        "{'descr': '<f8', 'fortran_order': 7, 'shape': (2,)}",
        "{'descr': 'nonsense', 'fortran_order': False, 'shape': (2,)}",
        "__import__('os').getcwd()",
        "(" * 5000,
        "",
    ],
)
def test_hostile_npy_headers(tmp_path, header, compression):
    npz_with(tmp_path / "a.npz", header, bytes(16), compression)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"a\.npz"):
            read_npz(tmp_path / "a.npz", ["X"])
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_other_versions_and_compressions_of_npz(tmp_path):
    body = io.BytesIO()
    np.lib.format.write_array(body, np.arange(3.0), version=(3, 0))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("X.npy", body.getvalue())
    with pytest.raises(DataError, match=r"format version \(3, 0\)"):
        read_npz(tmp_path / "a.npz", ["X"])
    npz_with(
        tmp_path / "b.npz", "{'descr': '<f8', 'fortran_order': False, 'shape': (2,)}", bytes(16), zipfile.ZIP_BZIP2
    )
    with pytest.raises(DataError, match="compressed in a way that numpy does not write"):
        read_npz(tmp_path / "b.npz", ["X"])


def test_a_member_that_lies_about_its_size(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", X=np.arange(9.0))
    body = bytearray((tmp_path / "a.npz").read_bytes())
    entry = body.index(b"PK\x01\x02")
    body[entry + 24 : entry + 28] = struct.pack("<I", 2**31)  # uncompressed size in the central directory
    (tmp_path / "a.npz").write_bytes(body)
    with pytest.raises(DataError, match="declares 2147483648 bytes, more than the file can hold"):
        read_npz(tmp_path / "a.npz", ["X"])


SHA = {
    "train": "498a90750fd6b36d8a4a48b9344f765118beca5a2259a434084b29404f98cc7c",
    "test": "85dfb60e805c6bc32f8151d0aeac0510bff4801a935fe009d5c63eeefa65f4bb",
}


@pytest.mark.parametrize("split", ["train", "test"])
def test_bundled_excerpt(split):
    images, labels = read_bundled(split)
    assert images.shape == (1400, 784)
    assert np.array_equal(labels, np.arange(1400) % 10)
    assert hashlib.sha256(images.tobytes()).hexdigest() == SHA[split]
    assert len(np.unique(images, axis=0)) == 1400


def test_bundled_excerpt_is_small_and_carries_its_licence():
    from importlib import resources

    folder = resources.files("catapult_fast") / "datasets"
    assert len((folder / "fashion_mnist_mini.npz").read_bytes()) <= 1_300_000
    assert "Zalando SE" in (folder / "LICENSE.fashion-mnist").read_text()
    readme = (folder / "README.md").read_text()
    assert all(sha in readme for sha in SHA.values())
    assert hashlib.sha256((folder / "fashion_mnist_mini.npz").read_bytes()).hexdigest() in readme
