"""Data sets for training and tests: Fashion-MNIST, complete from a Debian package, and a sample of it."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from touchstone.errors import DataUnavailable

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("usr/share/datasets/fashion-mnist")
SAMPLE = Path(__file__).parents[1] / "models/samples" / "fashion-mnist.png"

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

DIGESTS = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images."""

    images: NDArray[np.uint8]  # (N, H, W)
    labels: NDArray[np.uint8]  # (N,)

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """Of all pixels and then all labels."""
        return f"sha256:{hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()}"


def fashion_mnist(cache_folder: Path) -> tuple[Split, Split]:
    """The 60,000 training images and the 10,000 test images.

    They are read from `cache_folder` or from where Debian's package installs them; otherwise apt-get
    downloads the package (31 MB), which is unpacked into `cache_folder` and needs no root. Raises
    DataUnavailable.
    """
    own = cache_folder / "fashion-mnist"
    folders = [folder for folder in (own, Path("/") / INSTALLED) if _is_complete(folder)]
    if not folders:
        _download(own)
    folder = folders[0] if folders else own
    return _read(folder, "train"), _read(folder, "t10k")


@cache
def fashion_mnist_sample() -> Split:
    """256 test images, balanced: the n-th shows the (n // 10)-th test image of class n % 10."""
    with Image.open(SAMPLE) as sheet:
        pixels = np.asarray(sheet)
    rows = pixels.reshape(16, 28, 16, 28).swapaxes(1, 2)
    return Split(rows.reshape(256, 28, 28), (np.arange(256) % 10).astype(np.uint8))


def draw_sample(test: Split) -> Image.Image:
    """The sheet of 16 x 16 tiles that `fashion_mnist_sample` reads, from the whole test set."""
    of_class = [np.flatnonzero(test.labels == label) for label in range(10)]
    tiles = test.images[[of_class[n % 10][n // 10] for n in range(256)]]
    return Image.fromarray(tiles.reshape(16, 16, 28, 28).swapaxes(1, 2).reshape(448, 448))


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in DIGESTS)


def _read(folder: Path, which: str) -> Split:
    images = _read_idx(folder / f"{which}-images-idx3-ubyte.gz")
    return Split(images, _read_idx(folder / f"{which}-labels-idx1-ubyte.gz"))


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An array in the IDX format: zeros, the type (8: bytes), the number of axes, their sizes, the values."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != DIGESTS[path.name]:
        raise DataUnavailable(f"{path} is not the published file: delete it, and it is downloaded again")
    raw = gzip.decompress(data)
    axes = raw[3]
    shape = np.frombuffer(raw, ">u4", count=axes, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


def _download(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        _run_command(["apt-get", "download", PACKAGE], scratch)
        for package in Path(scratch).glob("*.deb"):
            _run_command(["dpkg-deb", "-x", str(package), "."], scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in DIGESTS:
            shutil.copy(Path(scratch) / INSTALLED / name, folder / name)


def _run_command(words: Sequence[str], folder: str) -> None:
    try:
        subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300, check=True)  # noqa: S603
    except subprocess.CalledProcessError as error:
        raise _unavailable(error.stderr.strip()[-300:]) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _unavailable(str(error)) from None


def _unavailable(reason: str) -> DataUnavailable:
    return DataUnavailable(
        f"Fashion-MNIST could not be downloaded ({reason}). On Debian or Ubuntu run `apt-get update` once; "
        f"elsewhere put {', '.join(DIGESTS)} into a folder fashion-mnist and name the one above it"
    )
