"""``--cache``: the uint8 crops of a validation set on disk, so that later runs decode nothing.

``<folder>/<preprocessing>-<key>/`` holds ``crops.bin``, one crop of size x size x 3 bytes after
another in image order, and ``index.bin``, one record per image. The key stands for the list of
images, the preprocessing, the code that makes crops and the libraries that decode: others get
another folder.
A crop is used only if its record is there, its checksum holds, and it was made from the very bytes
that the image has now: to get a crop, one must read the image and give its SHA-256, so every
reported hash is of bytes that were read in that run. Files are read and written in place and never
mapped, so a run needs no memory for them; threads and processes may share a cache, each for its own
images.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import threading
import zlib
from pathlib import Path

import numpy as np

from eval.errors import UsageError
from eval.files import open_own, own_folder, read_at, write_at, write_atomically
from eval.images import decoders
from eval.images.preprocess import Crop, Preprocess
from eval.images.valset import ValSet, image_list_sha256
from eval.provenance import versions
from eval.snapshot import files_sha256

# The code that makes crops, beside the module of a transform that no recipe can say.
CODE = (  # the modules that make the crops
    "eval/images/decoders.py",
    "eval/images/jpeg.py",
    "eval/images/preprocess.py",
    "eval/recipe.py",
)
FORMAT = 2  # of the records; others get another folder
RECORD = np.dtype(
    [
        ("sha256", "u1", 32),  # of the image file
        ("crop_crc32", "<u4"),
        ("crc32", "<u4"),  # of all before it
    ]
)


class CropCache:
    """The cache of one validation set and preprocessing.

    Attributes:
        root: the folder of all caches.
        folder: of this one.
    """

    def __init__(self, folder: Path, valset: ValSet, preprocess: Preprocess) -> None:
        identity = {
            "format": FORMAT,
            "preprocess": f"{preprocess.name}: {preprocess.description}",
            "size": preprocess.size,
            "table_sha256": hashlib.sha256(preprocess.table.tobytes()).hexdigest(),
            "code_sha256": files_sha256(*_code_of(preprocess)),
            "images": len(valset.samples),
            "image_list_sha256": image_list_sha256(valset),
            "decoders": decoders.versions() | _libraries_of(preprocess),
        }
        text = json.dumps(identity, indent=2) + "\n"
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.root = folder
        self.folder = folder / f"{preprocess.name.partition(',')[0]}-{key}"
        self._valset = valset
        self._preprocess = preprocess
        self._shape = (preprocess.size, preprocess.size, 3)
        self._crop_bytes = math.prod(self._shape)
        self._used = 0
        self._lock = threading.Lock()
        try:
            own_folder(self.folder)
            self._crops = open_own(self.folder / "crops.bin")
            self._index = open_own(self.folder / "index.bin")
            missing = len(valset.samples) - os.fstat(self._index).st_size // RECORD.itemsize
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise self._unwritable(error) from error
        if (needed := missing * self._crop_bytes) > free:
            raise UsageError(
                f"--cache {folder}: {missing:,} crops need {needed / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB are free.\nName a folder with more room, or omit --cache."
            )
        write_atomically(self.folder / "cache.json", text)

    def __enter__(self) -> CropCache:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._crops)
        os.close(self._index)

    def get(self, index: int, sha256: bytes) -> Crop | None:
        """The crop of an image, if there is an undamaged one that was made from the same bytes."""
        try:
            data = read_at(self._index, RECORD.itemsize, index * RECORD.itemsize)
            if (
                len(data) < RECORD.itemsize
                or not any(data)
                or _crc32(data) != int.from_bytes(data[-4:], "little")
            ):
                return None
            record = np.frombuffer(data, RECORD)[0]
            if record["sha256"].tobytes() != sha256:
                return None
            pixels = read_at(self._crops, self._crop_bytes, index * self._crop_bytes)
        except OSError as error:
            raise UsageError(
                f"{self.folder} cannot be read: {error.strerror or error}.\n"
                "Delete it, or omit --cache."
            ) from error
        if len(pixels) < self._crop_bytes or zlib.crc32(pixels) != record["crop_crc32"]:
            return None
        with self._lock:
            self._used += 1
        return np.frombuffer(pixels, np.uint8).reshape(self._shape)

    @property
    def used(self) -> int:
        """How many crops `get` has given so far."""
        return self._used

    def put(self, index: int, sha256: bytes, crop: Crop) -> None:
        """Keep a crop of an image file with this hash: uint8 (size, size, 3).

        Its record is entered last, so that half a crop is never used.
        """
        record = np.zeros(1, RECORD)
        record["sha256"] = np.frombuffer(sha256, np.uint8)
        pixels = crop.tobytes()
        record["crop_crc32"] = zlib.crc32(pixels)
        record["crc32"] = _crc32(record.tobytes())
        try:
            write_at(self._crops, pixels, index * self._crop_bytes)
        except OSError as error:
            raise self._unwritable(error) from error
        self.enter(index, record.tobytes())

    def enter(self, index: int, record: bytes) -> None:
        """Enter the record of a crop that has been written into the index."""
        try:
            write_at(self._index, record, index * RECORD.itemsize)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UsageError:
        return UsageError(
            f"--cache: {self.folder} cannot be written: {error.strerror or error}.\n"
            "Name another folder, make room, or omit --cache."
        )


def _code_of(preprocess: Preprocess) -> set[str]:
    """The files of this project that make the crops."""
    if preprocess.recipe is not None:
        return {*CODE}
    made = getattr(preprocess.crop, "func", preprocess.crop)
    return {*CODE, f"{made.__module__.replace('.', '/')}.py"}


def _libraries_of(preprocess: Preprocess) -> dict[str, str]:
    """Versions of what decodes and resizes beside Pillow and OpenCV."""
    if preprocess.recipe is None:
        names = ["torch", "torchvision", "timm"]
    else:
        names = ["torch", "torchvision"] if preprocess.recipe.resizer == "tensor" else []
    return {name: version for name, version in versions().items() if name in names}


def _crc32(record: bytes) -> int:
    return zlib.crc32(record[:-4])
