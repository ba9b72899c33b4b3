"""A folder of the Hugging Face hub: ``config.json`` beside the weights says what the model is.

timm writes such folders (``timm.models.save_for_hf``): the architecture, the number of classes and
the preprocessing are in ``config.json``. A ``preprocessor_config.json`` beside it says how images
are prepared; it counts first. Networks of transformers' own are named as what they are.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import timm.data

from eval.errors import ModelError, UsageError
from eval.images.preprocess import Preprocess
from eval.models.timm import PREFIX, TimmSource, recipe_of
from eval.recipe_files import recipe_of as read_recipe
from eval.request import Request

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
_LARGEST = 1 << 24  # bytes
_IMAGENET = 1000  # classes


class HubSource(TimmSource):
    """A timm model in a folder of the hub."""

    def __init__(self, request: Request) -> None:
        self._folder = Path(request.weights)
        self._config = _read(self._folder / CONFIG)
        classes = self._config.get("id2label")
        if request.classes is None and isinstance(classes, dict) and len(classes) != _IMAGENET:
            request = replace(request, classes=self._folder / CONFIG)
        super().__init__(replace(request, model=PREFIX + _name(self._folder, self._config)))
        beside = (self._folder / name for name in (CONFIG, PROCESSOR))
        self.beside = tuple(path for path in beside if path.is_file())

    def own_preprocess(self) -> Preprocess:
        """As the folder says; the architecture's own where it does not."""
        return self._own

    @cached_property
    def _own(self) -> Preprocess:
        where = f"--weights {self._folder}:"
        if (self._folder / PROCESSOR).is_file():
            return Preprocess.of(read_recipe(self._folder / PROCESSOR, where=where))
        stated = self._config.get("pretrained_cfg")
        if not isinstance(stated, dict):
            return super().own_preprocess()
        usual = timm.get_pretrained_cfg(self.model)
        merged = {**(usual.to_dict() if usual else {}), **stated}
        try:
            config = timm.data.resolve_data_config({}, pretrained_cfg=merged, use_test_size=True)
            recipe = recipe_of(config)
            if recipe is not None:
                return Preprocess.of(recipe)
        except (TypeError, ValueError, LookupError, ArithmeticError):
            pass
        raise UsageError(
            f"{where} no recipe can say the preprocessing of its {CONFIG}.\n"
            "Name one with --preprocess."
        )


def _read(path: Path) -> dict[str, Any]:
    """A configuration."""
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"more than {_LARGEST:,} bytes")
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} cannot be read: {error}.\nDownload the folder again, or name the model."
        ) from error
    return config


def _name(folder: Path, config: dict[str, Any]) -> str:
    """Timm's name of the network, with the tag of its weights where timm knows it."""
    name = config.get("architecture")
    if isinstance(name, str) and timm.is_model(name):
        plain = name.partition(".")[0]
        stated = config.get("pretrained_cfg")
        tag = stated.get("tag") if isinstance(stated, dict) else None
        tagged = f"{plain}.{tag}"
        return tagged if tag and tagged in timm.list_pretrained(f"{plain}.*") else plain
    if isinstance(name, str):
        raise ModelError(
            f"{folder}: its {CONFIG} names the architecture {name!a}, which timm "
            f"{timm.__version__} does not have.\nName the model with --variant or --model."
        )
    kinds = config.get("architectures") or [config.get("model_type", "unknown")]
    kind = ascii(str(kinds[0] if isinstance(kinds, list) else kinds))[1:-1][:80]
    raise ModelError(
        f"{folder}: a {kind} of Hugging Face's transformers, a network of its own.\n"
        f"Export it, and give the .onnx: optimum-cli export onnx --model {folder} DIR"
    )


def open_source(request: Request) -> HubSource:
    """See `eval.models.open_source`."""
    return HubSource(request)
