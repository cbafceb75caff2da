"""Make smog/data/garments/garments.npz from the original Fashion-MNIST files; the same input gives the same bytes.

python tools/make_garments.py FOLDER_WITH_THE_IDX_GZ_FILES
"""

import gzip
import hashlib
import sys
from pathlib import Path

import cv2
import numpy as np

TARGET = Path(__file__).resolve().parent.parent / "smog" / "data" / "garments" / "garments.npz"
GROUND = 12  # grey levels up to this one are ground in the originals (not quite 0 there), or dark cloth
SMALL_HOLE = 12  # pixels; smaller holes are dark cloth, larger ones are handles and straps that one looks through


def read_idx(path: Path, header: int) -> np.ndarray:
    """Return the bytes of a gzipped idx file after its header, flat."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def cut_out(picture: np.ndarray) -> np.ndarray:
    """Return the picture [28, 28] with 0 exactly where there is no garment: ground cleared, dark cloth at least 1."""
    low = np.pad((picture <= GROUND).astype(np.uint8), 1, constant_values=1)  # joins all ground at the border
    _, part, stats, _ = cv2.connectedComponentsWithStats(low, connectivity=4)
    cloth = stats[:, cv2.CC_STAT_AREA] < SMALL_HOLE
    cloth[0] = True  # part 0 is what lies above the ground's level
    return np.where(cloth[part[1:-1, 1:-1]], np.maximum(picture, 1), 0).astype(np.uint8)


def select(folder: Path, name: str, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first ``each`` pictures of every class, the classes in turn, so that any prefix is balanced."""
    images = read_idx(folder / f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    labels = read_idx(folder / f"{name}-labels-idx1-ubyte.gz", 8)
    chosen = np.stack([np.flatnonzero(labels == label)[:each] for label in range(10)], axis=1).ravel()
    return np.stack([cut_out(picture) for picture in images[chosen]]), labels[chosen]


def main(folder: Path) -> None:
    """Write the file and say what it is."""
    train, train_labels = select(folder, "train", 800)
    test, test_labels = select(folder, "t10k", 200)
    np.savez_compressed(TARGET, train=train, train_labels=train_labels, test=test, test_labels=test_labels)
    content = TARGET.read_bytes()
    print(f"{TARGET.name}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
