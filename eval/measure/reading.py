"""The bytes and crops of images, by threads that compute on one core each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from eval.errors import DataError
from eval.images.preprocess import BadImage, Crop, Preprocess
from eval.images.valset import ValSet
from eval.measure.cores import choose_workers
from eval.measure.settings import enter_worker
from eval.progress import Event, Observer, ignore

_INTACT = "Get an intact copy: python -m eval.data lists all that are damaged."


def read_hashed(valset: ValSet, path: str) -> tuple[bytes, bytes]:
    """The bytes of an image file, and their SHA-256."""
    data = valset.read(path)
    return data, hashlib.sha256(data).digest()


def hash_images(valset: ValSet, progress: Observer = ignore) -> list[str]:
    """SHA-256 of each image file, hexadecimal: what predictions made elsewhere are said to be of.

    Raises:
        DataError: an image cannot be read.
    """
    found: list[str] = []
    paths = [sample.path for sample in valset.samples]
    with worker_threads(choose_workers()) as pool:
        for _, digest in pool.map(lambda path: read_hashed(valset, path), paths):
            found.append(digest.hex())
            progress(Event("hashing images", len(found), len(paths)))
    return found


def read_crops(valset: ValSet, preprocess: Preprocess, threads: int) -> Crop:
    """The crops of all images, uint8 (N, size, size, 3).

    Raises:
        DataError: an image cannot be read or decoded.
    """
    crops = np.zeros((len(valset.samples), preprocess.size, preprocess.size, 3), np.uint8)

    def fill(row: int) -> None:
        path = valset.samples[row].path
        with decoding(valset, path):
            crops[row] = preprocess.crop(valset.read(path))

    with worker_threads(threads) as pool:
        for _ in pool.map(fill, range(len(crops))):
            pass
    return crops


@contextmanager
def decoding(valset: ValSet, path: str, advice: str = _INTACT) -> Iterator[None]:
    """Name the image that cannot be decoded, and what to do.

    Raises:
        DataError: instead of `BadImage`.
    """
    try:
        yield
    except BadImage as error:
        raise DataError(f"{valset.root / path} cannot be decoded: {error}.\n{advice}") from error


@contextmanager
def worker_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that compute on one core each; what has not begun when one fails is left out."""
    with ThreadPoolExecutor(count, initializer=enter_worker) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
