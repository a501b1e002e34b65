"""Make the bundled excerpt of Fashion-MNIST from the four IDX files of the whole set.

    python make_fashion_mnist_excerpt.py FOLDER OUT.npz [PER_CLASS]

FOLDER holds ``train-images-idx3-ubyte.gz`` and its three companions, e.g. unpacked from Debian's package
``dataset-fashion-mnist``. Of each half the first PER_CLASS (140) images of each class are kept, in file order,
and interleaved: labels 0, 1, .., 9, 0, 1, .., 9, and so on.
"""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from catapult_fast.readers import read_idx_folder

PER_CLASS = 140


def interleaved(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Indices of the first ``per_class`` samples of each class, one class after another in turn."""
    return np.stack([np.flatnonzero(labels == label)[:per_class] for label in range(10)], axis=1).ravel()


def excerpt(folder: Path, per_class: int) -> dict[str, np.ndarray]:
    """Arrays of the excerpt: images (m, 28, 28) and labels (m,) of both halves, uint8."""
    arrays = {}
    for split in ("train", "test"):
        images, labels = read_idx_folder(folder, split)
        chosen = interleaved(labels, per_class)
        arrays[f"{split}_images"] = images[chosen].reshape(-1, 28, 28)
        arrays[f"{split}_labels"] = labels[chosen]
    return arrays


def write_npz(out: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write what ``numpy.savez_compressed`` writes, at the best compression and without the time of day."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            body = io.BytesIO()
            np.save(body, np.ascontiguousarray(array), allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(member, body.getvalue(), compresslevel=9)


def main(folder: str, out: str, per_class: int = PER_CLASS) -> None:
    """Write the excerpt and say what is in it."""
    arrays = excerpt(Path(folder), per_class)
    write_npz(Path(out), arrays)
    body = Path(out).read_bytes()
    print(f"{out}: {len(body)} bytes, sha256 {hashlib.sha256(body).hexdigest()}")
    for name, array in arrays.items():
        print(f"{name} {array.shape}: sha256 {hashlib.sha256(array.tobytes()).hexdigest()}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
