"""Pillow and OpenCV: their settings, and which ones they are.

Code that decodes images runs inside `exact_decoders`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import PIL
from PIL import Image, ImageFile, features

from eval.ambient import Setting, attribute, held

_LARGEST = 1024**3 // 4 // 3  # pixels: Pillow's own limit, which warns of decompression bombs

_BLOCK = 2**18  # bytes: more than most files and crops have

SETTINGS = (
    # One image is one task of one worker: more threads would only wait for each other.
    Setting("cv2.getNumThreads", 1, cv2.getNumThreads, cv2.setNumThreads),
    Setting("cv2.useOptimized", True, cv2.useOptimized, cv2.setUseOptimized),
    # Images that cannot be decoded are reported with their paths; OpenCV's own messages say less.
    Setting(
        "cv2.utils.logging.getLogLevel",
        cv2.utils.logging.LOG_LEVEL_SILENT,
        cv2.utils.logging.getLogLevel,
        cv2.utils.logging.setLogLevel,
    ),
    attribute("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", ImageFile, False),
    attribute("PIL.Image.MAX_IMAGE_PIXELS", Image, _LARGEST),
    # A file, and a crop, in one piece: for each one Pillow comes back to the interpreter.
    attribute("PIL.ImageFile.MAXBLOCK", ImageFile, _BLOCK),
)


@contextmanager
def exact_decoders() -> Iterator[None]:
    """Hold the settings of Pillow and OpenCV that pixels depend on; put back afterwards."""
    with held(SETTINGS):
        yield


@functools.cache
def versions() -> dict[str, str]:
    """The libraries that decode and resize, with the JPEG decoders that they were built with."""
    return {
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "pillow's jpeg": f"{features.version('jpg')} {features.version('libjpeg_turbo')}",
        "opencv": cv2.__version__,
        "opencv's build": hashlib.sha256(cv2.getBuildInformation().encode()).hexdigest(),
    }
