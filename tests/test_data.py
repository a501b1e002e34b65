"""Data sets: conversion, content, loading by name, preprocessing with known answers."""

import copy
import inspect
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from catapult_fast.data import Dataset, catalog, load_dataset
from catapult_fast.errors import ConfigError, DataError
from catapult_fast.preprocess import preprocess

X0 = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]])
Y0 = np.array([1.0, -1.0, 1.0])


# --- the container ---------------------------------------------------------------------------------------------------


def test_shapes_and_views():
    data = Dataset(X0, Y0, X0[:2], Y0[:2], name="tiny")
    assert (data.m, data.d, data.k) == (3, 2, 1)
    assert data.Y.shape == (3,)
    assert data.targets.shape == (3, 1)
    assert data.test_targets.shape == (2, 1)
    assert data.source is None
    assert repr(data) == "<Dataset tiny: X (3, 2), Y (3,), X_test (2, 2), Y_test (2,)>"
    many = Dataset(X0, np.eye(3))
    assert (many.k, many.targets.shape, many.test_targets) == (3, (3, 3), None)


def test_arrays_are_private_and_read_only():
    X, Y = X0.copy(), Y0.copy()
    data = Dataset(X, Y)
    X[0, 0] = Y[0] = 99.0
    assert data.X[0, 0] == 1.0
    assert data.Y[0] == 1.0
    for array in (data.X, data.Y, data.targets):
        assert not array.flags.writeable
        assert array.flags.c_contiguous
        assert array.dtype == np.float64
    with pytest.raises(AttributeError):
        data.X = X0


class Table:
    """Stands for a data frame or a tensor: no array, but numpy can ask it for one."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype)


class OnDevice:
    def __array__(self, dtype=None, copy=None):
        raise TypeError("implicit conversion is not allowed")


@pytest.mark.parametrize(
    "convert",
    [
        lambda a: a.tolist(),
        lambda a: a.astype(np.int8),
        lambda a: a.astype(np.uint64),
        lambda a: a.astype(np.float16),
        lambda a: a.astype(np.float32),
        lambda a: a.astype(np.longdouble),
        lambda a: a.astype(">f8"),
        lambda a: a.astype(">i4"),
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=0)[::2],
        lambda a: np.broadcast_to(a, a.shape),
        lambda a: np.ma.masked_array(a),
        Table,
    ],
)
def test_lossless_conversions(convert):
    assert np.array_equal(Dataset(convert(X0), Y0).X, X0)
    assert Dataset(convert(X0), Y0) == Dataset(X0, Y0)
    assert np.array_equal(Dataset(X0, convert(X0)).Y, X0)


def test_booleans_and_exact_large_integers():
    assert np.array_equal(Dataset(X0 > 2, Y0 > 0).Y, [1.0, 0.0, 1.0])
    for exact in (2**53, 2**62, -(2**63)):
        assert Dataset([[exact]], [1]).X[0, 0] == exact
    assert Dataset(np.array([[2**64 - 2**11]], dtype=np.uint64), [1]).X[0, 0] == 2**64 - 2**11


@pytest.mark.parametrize("argument", ["X", "Y", "X_test", "Y_test"])
@pytest.mark.parametrize(
    "bad",
    [
        X0.astype(complex),
        X0.astype(object),
        X0.astype(str),
        X0.astype(np.int64).astype("datetime64[s]"),
        [["a", 1.0]],
        {"a": 1},
        OnDevice(),
        np.array([[1, 2**53 + 1]]),
        np.array([[2**64 - 1]], dtype=np.uint64),
        np.array([[1]], dtype=np.longdouble) / 3,
    ],
)
def test_what_is_not_exactly_real_numbers_is_a_type_error(argument, bad):
    if np.finfo(np.longdouble).eps == np.finfo(float).eps and getattr(bad, "dtype", None) == np.longdouble:
        pytest.skip("long double is double on this platform")
    arguments = {"X": X0, "Y": Y0, "X_test": X0, "Y_test": Y0, argument: bad}
    with pytest.raises(TypeError, match=rf"^{argument}[\[ ]"):
        Dataset(**arguments)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("argument", "place"), [("X", (1, 1)), ("Y", (2,)), ("X_test", (0, 1)), ("Y_test", (1,))])
def test_the_first_bad_entry_is_named(argument, place, value):
    arguments = {"X": X0.copy(), "Y": Y0.copy(), "X_test": X0.copy(), "Y_test": Y0.copy()}
    arguments[argument][place] = value
    arguments[argument].reshape(-1)[-1] = value
    with pytest.raises(DataError, match=rf"^{argument}\{list(place)} = {value} must be finite".replace("]", r"\]")):
        Dataset(**arguments)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((X0[0], Y0), r"X has shape \(2,\), but must be \(samples, inputs\)"),
        ((X0[None], Y0), r"X has shape \(1, 3, 2\)"),
        ((1.0, Y0), r"X has shape \(\)"),
        ((X0[:0], Y0[:0]), r"X has shape \(0, 2\)"),
        ((X0[:, :0], Y0), r"X has shape \(3, 0\)"),
        ((X0, 1.0), r"Y has shape \(\)"),
        ((X0, X0[None]), r"Y has shape \(1, 3, 2\)"),
        ((X0, X0[:, :0]), r"Y has shape \(3, 0\)"),
        ((X0, Y0[:2]), "X has 3 samples, but Y has 2"),
        (([[1.0, 2.0], [3.0]], Y0), "X is no rectangular array"),
        ((np.ma.masked_equal(X0, 4.0), Y0), "X has masked entries"),
        ((X0, Y0, X0), "X_test is given without Y_test"),
        ((X0, Y0, None, Y0), "Y_test is given without X_test"),
        ((X0, Y0, X0[:, :1], Y0), r"X_test has shape \(3, 1\), which does not fit X of shape \(3, 2\)"),
        ((X0, Y0, X0, np.eye(3)), r"Y_test has shape \(3, 3\), which does not fit Y of shape \(3,\)"),
        ((X0, np.eye(3), X0, np.eye(3)[:, :2]), r"Y_test has shape \(3, 2\), which does not fit Y"),
        ((X0, Y0, X0, Y0[:2]), "X_test has 3 samples, but Y_test has 2"),
        ((X0, Y0, X0[:0], Y0[:0]), r"X_test has shape \(0, 2\)"),
    ],
)
def test_shapes_that_do_not_fit(arguments, problem):
    with pytest.raises(DataError, match=problem):
        Dataset(*arguments)


def test_missing_inputs_and_odd_names():
    with pytest.raises(TypeError, match=r"^X of type NoneType"):
        Dataset(None, Y0)
    with pytest.raises(TypeError, match=r"^name must be a string or None"):
        Dataset(X0, Y0, name=3)


def test_sparse_matrices_are_refused():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"^X of type csr_array has dtype object"):
        Dataset(sparse.csr_array(X0), Y0)


def test_equality_and_hash_follow_content():
    data = Dataset(X0, Y0, name="a")
    assert data == Dataset(X0.tolist(), Y0, name="b")
    assert len({data, Dataset(X0, Y0)}) == 1
    others = [
        Dataset(X0, Y0[:, None]),
        Dataset(X0, -Y0),
        Dataset(X0, Y0, X0, Y0),
        Dataset(np.nextafter(X0, 9), Y0),
        Dataset(X0.T[:, :2], Y0[:2]),
    ]
    assert len({data, *others}) == 6
    assert data != "data"


def test_digest_is_what_the_docs_say():
    import hashlib

    total = hashlib.sha256(b"X (3, 2)\n" + struct.pack("<6d", *X0.ravel()) + b"Y (3,)\n" + struct.pack("<3d", *Y0))
    assert Dataset(X0, Y0).digest == total.hexdigest()


@pytest.mark.parametrize("again", [lambda d: pickle.loads(pickle.dumps(d)), copy.copy, copy.deepcopy])
def test_copies_stay_equal_and_read_only(again):
    data = load_dataset("gaussian", dim=3, n_train=4, n_test=2)
    twin = again(data)
    assert twin == data
    assert twin.source == data.source
    assert not twin.X.flags.writeable
    assert not twin.Y_test.flags.writeable


numbers = hnp.arrays(
    st.sampled_from(["?", "i1", ">i2", "u4", "f2", ">f4", "f8"]),
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=5),
    elements={"allow_nan": False, "allow_infinity": False},
)


@settings(max_examples=150, deadline=None)
@given(numbers, st.sampled_from(["C", "F"]), st.booleans())
def test_any_real_array_is_taken_without_loss_or_change(array, order, locked):
    array = np.array(array, order=order)
    array.flags.writeable = not locked
    before = array.tobytes()
    data = Dataset(array, array, array, array)
    assert array.tobytes() == before
    assert array.flags.writeable != locked
    assert np.array_equal(data.X, array)
    assert np.array_equal(data.X.astype(array.dtype), array)
    assert data.X.flags.c_contiguous
    assert not np.shares_memory(data.X, array)
    assert data == Dataset(data.X, data.Y, data.X_test, data.Y_test)


# --- preprocessing ---------------------------------------------------------------------------------------------------


def test_scale_and_center_have_known_answers():
    X, T = np.array([[0, 255], [51, 0]], dtype=np.uint8), np.array([[102, 255]], dtype=np.uint8)
    train, test = preprocess(X, T, ("scale",))
    assert np.array_equal(train, [[0.0, 1.0], [0.2, 0.0]])
    assert np.array_equal(test, [[0.4, 1.0]])
    train, test = preprocess(X, T, ("center",))
    assert np.array_equal(train, [[-25.5, 127.5], [25.5, -127.5]])
    assert np.array_equal(test, [[76.5, 127.5]])
    assert X[0, 1] == 255


def test_standardize_and_unit_norm_have_known_answers():
    train, test = preprocess(np.array([[1, 3], [2, 10]]), np.array([[5.0, 1.0]]), ("standardize",))
    assert np.array_equal(train, [[-1.0, 1.0], [-1.0, 1.0]])
    assert np.array_equal(test, [[1.0, -1.0]])
    train, test = preprocess(np.array([[3.0, 4.0]]), np.array([[0.0, -2.0]]), ("unit-norm",))
    assert np.allclose(train, [[0.6, 0.8]], rtol=1e-15, atol=0)
    assert np.array_equal(test, [[0.0, -1.0]])


def test_steps_run_in_the_order_given():
    X = np.array([[1.0, 2.0, 9.0], [4.0, 4.0, 1.0]])
    first, _ = preprocess(X, None, ("center", "unit-norm"))
    second, _ = preprocess(X, None, ("unit-norm", "center"))
    assert np.allclose(np.linalg.norm(first, axis=1), 1.0, rtol=1e-15)
    assert np.allclose(second.mean(axis=0), 0.0, atol=1e-16)
    assert not np.allclose(first, second)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300, 2.0**-1060])
def test_per_sample_steps_do_not_see_the_scale(scale):
    X = np.array([[1.0, 2.0, 5.0], [8.0, -4.0, 1.0]])
    for step in ("standardize", "unit-norm"):
        assert np.allclose(preprocess(X * scale, None, (step,))[0], preprocess(X, None, (step,))[0], rtol=1e-3)


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays("u1", hnp.array_shapes(min_dims=2, max_dims=2, max_side=30), elements=st.integers(0, 255)).filter(
        lambda a: np.all(a.max(axis=1) > a.min(axis=1))
    )
)
def test_standardize_gives_mean_zero_and_variance_one(array):
    train, _ = preprocess(array, None, ("standardize",))
    # The mean is rounded relative to the largest entry, which a small spread magnifies.
    rounding = 4 * np.finfo(float).eps * array.max(axis=1) / array.std(axis=1)
    assert np.all(np.abs(train.mean(axis=1)) <= rounding)
    assert np.allclose((train**2).mean(axis=1), 1.0, rtol=1e-14)
    assert np.array_equal(np.argsort(train, axis=1, kind="stable"), np.argsort(array, axis=1, kind="stable"))


def test_a_sample_without_spread_or_norm_is_named():
    X = np.array([[1.0, 2.0], [0.1, 0.1], [0.0, 0.0]])
    with pytest.raises(DataError, match="training sample 1 has no spread"):
        preprocess(X, None, ("standardize",))
    with pytest.raises(DataError, match="training sample 2 has norm 0"):
        preprocess(X, None, ("unit-norm",))
    with pytest.raises(DataError, match="test sample 1 has no spread"):
        preprocess(X[:1], X, ("standardize",))
    with pytest.raises(DataError, match="test sample 2 has norm 0"):
        preprocess(X[:1], X, ("unit-norm",))


def test_overflow_while_centring_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", X=[[1.7e308], [1.7e308]], Y=[0, 1])
    with pytest.raises(DataError, match=r"X\[0, 0\] = -inf must be finite"):
        load_dataset("npz", path=tmp_path / "a.npz", preprocess=["center"])


# --- loading by name -------------------------------------------------------------------------------------------------


def test_catalog_lists_every_name_once_with_its_needs():
    names = [name for name, _ in catalog()]
    assert names == ["fashion-mnist-mini", "idx", "cifar10", "npz", "gaussian", "sphere", "teacher", "one-sample"]
    assert all(text.startswith("needs ") for _, text in catalog())


def test_two_classes_become_signs():
    data = load_dataset("fashion-mnist-mini", classes=[3, 1], n_train=6, n_test=4)
    assert (data.m, data.d, data.k, data.name) == (6, 784, 1, "fashion-mnist-mini")
    assert np.array_equal(data.Y, [1.0, -1.0, 1.0, -1.0, 1.0, -1.0])  # labels 1, 3, 1, 3, ..
    assert np.array_equal(data.Y_test, [1.0, -1.0, 1.0, -1.0])
    assert np.allclose(data.X.mean(axis=1), 0.0, atol=1e-13)
    assert np.allclose((data.X**2).mean(axis=1), 1.0)


def test_other_numbers_of_classes_become_columns():
    data = load_dataset("fashion-mnist-mini", classes=[7, 2, 4], n_train=4)
    assert np.array_equal(data.Y, [[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]])  # labels 2, 4, 7, 2
    assert data.X_test is None
    everything = load_dataset("fashion-mnist-mini", n_test=10)
    assert np.array_equal(everything.Y, np.tile(np.eye(10), (140, 1)))
    assert np.array_equal(everything.Y_test, np.eye(10))
    assert np.array_equal(load_dataset("fashion-mnist-mini", classes=[5], n_train=2).Y, [[1.0], [1.0]])


def test_counts_follow_the_choice_of_classes_in_file_order():
    few = load_dataset("fashion-mnist-mini", classes=[1, 8], n_train=10, preprocess=[])
    whole = load_dataset("fashion-mnist-mini", preprocess=[])
    rows = np.flatnonzero(np.isin(np.argmax(whole.Y, axis=1), [1, 8]))[:10]
    assert np.array_equal(few.X, whole.X[rows])
    assert whole.X.max() == 255.0
    assert load_dataset("fashion-mnist-mini", classes=[1, 8]).m == 280
    assert load_dataset("fashion-mnist-mini", n_train=5, n_test=0).X_test is None


def test_test_images_use_training_statistics():
    raw = load_dataset("fashion-mnist-mini", n_train=20, n_test=30, preprocess=[])
    done = load_dataset("fashion-mnist-mini", n_train=20, n_test=30, preprocess=["scale", "center"])
    mean = (raw.X / 255.0).mean(axis=0)
    assert np.array_equal(done.X_test, raw.X_test / 255.0 - mean)
    assert np.allclose(done.X.mean(axis=0), 0.0, atol=1e-15)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"n_train": 1401}, r"n_train = 1401, but there are only 1400 training samples of 'fashion-mnist-mini'"),
        ({"classes": [0, 1], "n_train": 281}, r"only 280 training samples of .* with classes \[0, 1\]"),
        ({"classes": [0, 1], "n_test": 281}, r"n_test = 281, but there are only 280 test samples"),
        ({"classes": [0, 12]}, r"classes = \[0, 12\]: no training sample of 'fashion-mnist-mini' has the label 12"),
    ],
)
def test_asking_for_more_than_there_is(arguments, problem):
    with pytest.raises(DataError, match=problem):
        load_dataset("fashion-mnist-mini", **arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("fashion", {}, "name = 'fashion' must be one of 'fashion-mnist-mini'"),
        ("fashion-mnist-mini", {"path": "x"}, "path = 'x' has no meaning for 'fashion-mnist-mini'"),
        ("fashion-mnist-mini", {"dim": 3}, "dim = 3 has no meaning"),
        ("fashion-mnist-mini", {"seed": 1}, "seed = 1 has no meaning"),
        ("fashion-mnist-mini", {"n_train": 0}, "n_train = 0 must be at least 1"),
        ("fashion-mnist-mini", {"n_test": -1}, "n_test = -1 must be at least 0"),
        ("fashion-mnist-mini", {"classes": []}, r"classes = \[\] must name at least one"),
        ("fashion-mnist-mini", {"classes": [1, 1]}, r"classes = \[1, 1\] must name .* none twice"),
        ("fashion-mnist-mini", {"classes": [-1, 1]}, r"classes\[0\] = -1 must be at least 0"),
        ("fashion-mnist-mini", {"preprocess": ["whiten"]}, r"preprocess\[0\] = 'whiten' must be one of 'scale'"),
        ("fashion-mnist-mini", {"preprocess": ["center", "scale"]}, "put it first"),
        ("idx", {}, "path is missing: 'idx' needs path"),
        ("idx", {"path": ".", "dim": 3}, "dim = 3 has no meaning for 'idx'"),
        ("cifar10", {}, "path is missing"),
        ("npz", {}, "path is missing"),
        ("npz", {"path": "a.npz", "classes": [0, 1]}, r"classes = \[0, 1\] has no meaning for 'npz'"),
        ("npz", {"path": "a.npz", "preprocess": ["scale"]}, "only for images"),
        ("gaussian", {"n_train": 3}, "dim is missing: 'gaussian' needs dim and n_train"),
        ("gaussian", {"dim": 3}, "n_train is missing"),
        ("gaussian", {"dim": 3, "n_train": 3, "classes": [0, 1]}, "classes"),
        ("gaussian", {"dim": 3, "n_train": 3, "path": "x"}, "path"),
        ("gaussian", {"dim": 0, "n_train": 3}, "dim = 0 must be at least 1"),
        ("gaussian", {"dim": 3, "n_train": 3, "seed": -1}, "seed = -1 must be at least 0"),
        ("gaussian", {"dim": 3, "n_train": 3, "preprocess": ["scale"]}, "only for images"),
        ("teacher", {"dim": 10**9, "n_train": 10**9}, r"n_train = 1000000000 times dim = 1000000000 must be at most"),
        ("sphere", {"dim": 10**9, "n_train": 1, "n_test": 10**9}, "n_test = 1000000000 times dim"),
        ("one-sample", {}, "dim is missing"),
        ("one-sample", {"dim": 10**12}, "dim = 1000000000000 must be at most"),
        ("one-sample", {"dim": 2, "n_test": 1}, "n_test = 1 has no meaning for 'one-sample'"),
    ],
)
def test_arguments_that_make_no_sense(name, arguments, problem):
    with pytest.raises(ConfigError, match=problem):
        load_dataset(name, **arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "argument"),
    [
        (3, {}, "name"),
        ("idx", {"path": 3}, "path"),
        ("fashion-mnist-mini", {"n_train": 3.0}, "n_train"),
        ("fashion-mnist-mini", {"n_test": True}, "n_test"),
        ("fashion-mnist-mini", {"classes": "01"}, "classes"),
        ("fashion-mnist-mini", {"classes": 3}, "classes"),
        ("fashion-mnist-mini", {"classes": [0.0, 1.0]}, r"classes\[0\]"),
        ("fashion-mnist-mini", {"preprocess": "center"}, "preprocess"),
        ("fashion-mnist-mini", {"preprocess": [3]}, r"preprocess\[0\]"),
        ("fashion-mnist-mini", {"seed": None}, "seed"),
        ("gaussian", {"dim": "3", "n_train": 3}, "dim"),
    ],
)
def test_wrong_types(name, arguments, argument):
    with pytest.raises(TypeError, match=f"^{argument} must be a"):
        load_dataset(name, **arguments)


def write_idx(folder, images, labels, prefix="train"):
    for stem, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / stem).write_bytes(head + array.astype(np.uint8).tobytes())


def test_idx_by_name(tmp_path):
    images, labels = np.arange(5 * 6).reshape(5, 2, 3), np.array([9, 4, 4, 30, 9])
    write_idx(tmp_path, images, labels)
    data = load_dataset("idx", path=tmp_path, preprocess=[])
    assert np.array_equal(data.X, images.reshape(5, 6))
    assert np.array_equal(data.Y, np.array([4, 9, 30]) == labels[:, None])
    assert data.X_test is None
    with pytest.raises(DataError, match="neither t10k"):
        load_dataset("idx", path=tmp_path, n_test=1)
    write_idx(tmp_path, images[::-1], labels[::-1], "t10k")
    data = load_dataset("idx", path=str(tmp_path), classes=(30, 4), n_train=2, n_test=3, preprocess=())
    assert np.array_equal(data.X, images.reshape(5, 6)[[1, 2]])
    assert np.array_equal(data.Y, [1.0, 1.0])
    assert np.array_equal(data.Y_test, [-1.0, 1.0, 1.0])
    assert data.source == {
        "name": "idx", "path": str(tmp_path), "classes": [30, 4], "n_train": 2, "n_test": 3, "preprocess": []
    }  # fmt: skip
    write_idx(tmp_path, images[:, :, :2], labels, "t10k")
    with pytest.raises(DataError, match="have 6 pixels, but test images 4"):
        load_dataset("idx", path=tmp_path, n_test=1)


def test_a_blank_image_is_named(tmp_path):
    write_idx(tmp_path, np.arange(12).reshape(3, 2, 2) * (np.arange(3) != 1)[:, None, None], np.arange(3))
    with pytest.raises(DataError, match="'standardize': training sample 1 has no spread"):
        load_dataset("idx", path=tmp_path)


def test_cifar10_by_name(tmp_path):
    rng = np.random.default_rng(1)
    records = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        records[name] = np.column_stack([rng.integers(0, 4, 6), rng.integers(0, 256, (6, 3072))]).astype(np.uint8)
        (tmp_path / f"{name}.bin").write_bytes(records[name].tobytes())
    train = np.concatenate(list(records.values())[:5])
    data = load_dataset("cifar10", path=tmp_path, n_test=6, preprocess=["scale"])
    assert np.array_equal(data.X, train[:, 1:] / 255.0)
    assert data.k == 10
    assert np.array_equal(data.Y.argmax(axis=1), train[:, 0])
    assert np.array_equal(data.X_test, records["test_batch"][:, 1:] / 255.0)
    pair = load_dataset("cifar10", path=tmp_path, classes=[2, 0])
    assert np.array_equal(pair.Y, [1.0 if label == 0 else -1.0 for label in train[:, 0] if label in (0, 2)])


def test_npz_by_name(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, X=X0, Y=Y0, X_test=X0[::-1], Y_test=Y0[::-1])
    assert load_dataset("npz", path=file) == Dataset(X0, Y0, X0[::-1], Y0[::-1])
    assert load_dataset("npz", path=file, n_train=2, n_test=1) == Dataset(X0[:2], Y0[:2], X0[2:], Y0[2:])
    assert load_dataset("npz", path=file, n_test=0) == Dataset(X0, Y0)
    centred = load_dataset("npz", path=file, preprocess=["center"])
    assert np.array_equal(centred.X, X0 - X0.mean(axis=0))
    assert np.array_equal(centred.X_test, X0[::-1] - X0.mean(axis=0))
    with pytest.raises(DataError, match=r"n_train = 4, but there are only 3 training samples of .*a\.npz"):
        load_dataset("npz", path=file, n_train=4)


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"X": X0}, "has no array Y; it holds X"),
        ({"X": X0 * np.nan, "Y": Y0}, r"a\.npz: X\[0, 0\] = nan must be finite"),
        ({"X": X0, "Y": Y0[:2]}, r"a\.npz: X has 3 samples, but Y has 2"),
        ({"X": X0, "Y": Y0, "X_test": X0}, r"a\.npz: X_test is given without Y_test"),
        ({"X": [[2**53 + 1]], "Y": [0]}, r"a\.npz: X\[0, 0\] = 9007199254740993 .* not exact"),
        ({"X": X0, "Y": np.array([None, 1, 2])}, "pickled Python objects"),
    ],
)
def test_npz_with_unsuited_arrays(tmp_path, arrays, problem):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=problem):
        load_dataset("npz", path=tmp_path / "a.npz")


def test_npz_without_test_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", X=X0, Y=Y0)
    assert load_dataset("npz", path=tmp_path / "a.npz").X_test is None
    with pytest.raises(DataError, match="n_test = 1, but there are only 0 test samples"):
        load_dataset("npz", path=tmp_path / "a.npz", n_test=1)


DRAWN = ["gaussian", "sphere", "teacher"]


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("dim", [1, 2, 37])
def test_first_samples_depend_on_no_count(name, dim):
    short = load_dataset(name, dim=dim, n_train=3, seed=4)
    long = load_dataset(name, dim=dim, n_train=40, n_test=9, seed=4)
    assert np.array_equal(long.X[:3], short.X)
    assert np.array_equal(long.Y[:3], short.Y)
    more = load_dataset(name, dim=dim, n_train=1, n_test=20, seed=4)
    assert np.array_equal(more.X_test[:9], long.X_test)
    assert np.array_equal(more.Y_test[:9], long.Y_test)
    assert np.array_equal(more.X, short.X[:1])
    assert short.X_test is None


@pytest.mark.parametrize("name", DRAWN)
def test_seeds_dims_and_halves_differ(name):
    data = load_dataset(name, dim=5, n_train=8, n_test=8)
    other = load_dataset(name, dim=5, n_train=8, seed=1)
    wider = load_dataset(name, dim=6, n_train=8)
    for twin in (data.X_test, other.X, wider.X[:, :5]):
        assert not np.any(twin == data.X)
    assert data == load_dataset(name, dim=5, n_train=8, n_test=8)


def test_moments_of_gaussian_data():
    data = load_dataset("gaussian", dim=50, n_train=400, seed=2)
    z = data.X.ravel()  # 20 000 numbers: five standard errors
    assert abs(z.mean()) < 5 / 20000**0.5
    assert abs((z**2).mean() - 1) < 5 * (2 / 20000) ** 0.5
    assert abs((z**4).mean() - 3) < 5 * (96 / 20000) ** 0.5
    assert set(data.Y) == {-1.0, 1.0}
    assert abs(data.Y.mean()) < 5 / 20
    assert abs((data.X.T @ data.Y / 400).mean()) < 5 / 20000**0.5


def test_sphere_is_scaled_gaussian():
    flat, ball = load_dataset("gaussian", dim=7, n_train=9), load_dataset("sphere", dim=7, n_train=9)
    assert np.allclose((ball.X**2).sum(axis=1), 7.0, rtol=1e-14)
    ratio = ball.X / flat.X
    assert np.allclose(ratio, ratio[:, :1], rtol=1e-14)
    assert np.array_equal(ball.Y, flat.Y)


def test_teacher_is_linear_and_shared_by_both_halves():
    data = load_dataset("teacher", dim=6, n_train=30, n_test=5, seed=3)
    w, residual, *_ = np.linalg.lstsq(data.X / np.sqrt(6), data.Y, rcond=None)
    assert residual[0] < 1e-25
    assert np.allclose(data.X_test @ w / np.sqrt(6), data.Y_test, atol=1e-13)
    many = np.concatenate([
        np.linalg.lstsq(d.X / np.sqrt(40), d.Y, rcond=None)[0]
        for d in (load_dataset("teacher", dim=40, n_train=60, seed=s) for s in range(25))
    ])  # fmt: skip
    assert abs(many.mean()) < 5 / 1000**0.5
    assert abs((many**2).mean() - 1) < 5 * (2 / 1000) ** 0.5


def test_one_sample():
    data = load_dataset("one-sample", dim=4)
    assert np.array_equal(data.X, [[1.0, 0.0, 0.0, 0.0]])
    assert np.array_equal(data.Y, [0.0])
    assert load_dataset("one-sample", dim=4, n_train=1, seed=8) == data
    with pytest.raises(DataError, match="n_train = 2, but there are only 1 training samples of 'one-sample'"):
        load_dataset("one-sample", dim=4, n_train=2)


def test_drawn_numbers_are_pinned():
    data = load_dataset("gaussian", dim=2, n_train=2, n_test=1, seed=1)
    expected = [[1.2673497010578723, 2.256223155668282], [-0.357096854797502, 1.640031324313722]]
    assert np.allclose(data.X, expected, rtol=1e-14, atol=0)
    assert np.allclose(data.X_test, [[0.9870632822008661, 1.6172944558720899]], rtol=1e-14, atol=0)
    assert (*data.Y, *data.Y_test) == (1.0, -1.0, -1.0)


@pytest.mark.parametrize(
    ("name", "arguments", "source"),
    [
        ("fashion-mnist-mini", {}, {}),
        (
            "fashion-mnist-mini",
            {"classes": np.array([0, 1]), "n_train": np.int64(64), "n_test": 0, "preprocess": ("scale",)},
            {"classes": [0, 1], "n_train": 64, "n_test": 0, "preprocess": ["scale"]},
        ),
        ("gaussian", {"dim": 3, "n_train": 2}, {"dim": 3, "n_train": 2, "seed": 0}),
        ("one-sample", {"dim": 3, "seed": 5}, {"dim": 3, "seed": 5}),
    ],
)
def test_source_gives_the_same_data_again(name, arguments, source):
    data = load_dataset(name, **arguments)
    assert data.source == {"name": name, **source}
    assert all(type(v) in (str, int, list) for v in data.source.values())
    assert load_dataset(**data.source) == data


def test_source_is_no_argument_of_the_constructor():
    assert list(inspect.signature(Dataset).parameters) == ["X", "Y", "X_test", "Y_test", "name"]
