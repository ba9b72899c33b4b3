"""Command-line options that several commands share, so that they mean the same everywhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from eval.config import builtin_variants
from eval.recipe import NAMED, OWN
from eval.request import FORMS, PRECISIONS


def add_subject_options(parser: argparse.ArgumentParser) -> None:
    """Which model on which images."""
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        metavar="PATH",
        help="the validation set: class folders, flat files, the official tar, Kaggle's tree or "
        "parquet shards",
    )
    add(
        "--demo",
        action="store_true",
        help="run the whole job on an embedded model with known answers; no ImageNet needed",
    )
    add("--variant", metavar="NAME", help=f"{', '.join(builtin_variants())} (default base_ssld)")
    add("--config", type=Path, metavar="FILE", help="your own configuration file instead")
    add(
        "--model",
        metavar="LIBRARY:NAME",
        help="a classifier from a library instead: timm:NAME or torchvision:NAME",
    )
    add(
        "--weights",
        default="auto",
        metavar="FILE",
        help="a checkpoint (.pdparams, .safetensors, .pth, .pt) or an exported file (.onnx, .xml, "
        "...); default auto: from the cache, else downloaded",
    )
    add("--forms", metavar="LIST", help=f"default {','.join(FORMS)}, if the model has both")
    add_preprocess_option(parser)
    add("--labels", type=Path, metavar="FILE", help="labels of flat files: lines of `name index`")
    add(
        "--classes",
        type=Path,
        metavar="FILE",
        help="classes other than ImageNet's 1000: a file with one class per line, in index order, "
        "the name of its folder first",
    )
    add(
        "--timm-results",
        type=Path,
        metavar="FILE",
        help="timm's table of results: show the row of the model",
    )


def add_preprocess_option(parser: argparse.ArgumentParser) -> None:
    """How images become the input of the model."""
    parser.add_argument(
        "--preprocess",
        metavar="RECIPE",
        help=f"{', '.join(NAMED)} or {OWN} (the model's own; the default), with single steps as "
        "in torchvision,resize=235,interpolation=bicubic; or a file: preprocessor_config.json, "
        "inference.yml, or the same keys in .toml (docs/preprocessing.md)",
    )


def add_compute_options(parser: argparse.ArgumentParser) -> None:
    """How the logits are computed."""
    add = parser.add_argument
    add_backend_option(parser)
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    add("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="default %(default)s")
    add_batch_options(parser)


def add_batch_options(parser: argparse.ArgumentParser) -> None:
    """How the work is divided."""
    add = parser.add_argument
    add("--batch-size", type=positive, metavar="N", help="images per batch of a worker")
    add("--workers", type=positive, metavar="N", help="threads (default one per core)")


def add_backend_option(parser: argparse.ArgumentParser) -> None:
    """What computes the logits."""
    from eval.backends import BACKENDS

    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        metavar="NAME",
        help=f"{', '.join(BACKENDS)} (default torch, or the exported file's own runtime)",
    )


def add_array_options(parser: argparse.ArgumentParser) -> None:
    """How a file of predictions is to be read; see `eval.measure.given.read_answers`."""
    add = parser.add_argument
    add(
        "--names", type=Path, metavar="FILE", help="for arrays: a file with one image name per line"
    )
    add("--array", metavar="NAME", help="for .npz: the array to use, if there are several")


def add_message_options(parser: argparse.ArgumentParser) -> None:
    """What is printed beside the result."""
    add = parser.add_argument
    add("--quiet", action="store_true", help="print only errors on stderr")
    add("--verbose", action="store_true", help="print tracebacks of errors")


def positive(text: str) -> int:
    """A positive whole number, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return int(text)
