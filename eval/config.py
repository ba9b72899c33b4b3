"""What a run is told: the variant's own file under ``configs/`` and the command line.

Precedence: command line, then the configuration file; there are no environment variables.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from eval.errors import UsageError
from eval.images.sets import IMAGE_SETS, VAL, ImageSet

Row = TypeVar("Row")

IMAGENET_VAL_IMAGES = 50_000


@dataclass(frozen=True)
class Reference:
    """A reported accuracy, in percent.

    Attributes:
        top1, top5: as reported; None where nothing was.
        gated: whether a difference from it fails a run.
        source: where it is written.
    """

    source: str
    top1: float | None = None
    top5: float | None = None
    gated: bool = True


@dataclass(frozen=True)
class Tolerance:
    """How many images a count may differ from the reference, and why so many."""

    images: int
    reason: str


@dataclass(frozen=True)
class OtherResult:
    """A figure of somebody else's that is shown beside ours and never compared with.

    Attributes:
        set: name of the set of images that it is of, if that is not the val set.
    """

    name: str
    source: str
    top1: float
    top5: float | None = None
    set: str = VAL.name


@dataclass(frozen=True)
class VariantConfig:
    """One file under ``configs/``.

    Attributes:
        name: what reports call it, and which weights ``--weights auto`` gets.
        model: a key of `pplcnet.VARIANTS`.
        images: size of the whole set; fewer are a subset, which is never compared.
        reference: by name of the preprocessing; the entry "" serves those not named.
        tolerance: by name of the preprocessing; one that is not named is not gated.
        others: figures to show.
        reference_word: what reports call the reference.
    """

    name: str
    model: str
    images: int
    reference: Mapping[str, Reference]
    tolerance: Mapping[str, Tolerance]
    others: tuple[OtherResult, ...] = ()
    reference_word: str = "reported"

    def reference_for(self, preprocess: str) -> Reference | None:
        """What a run with this preprocessing is compared with, if anything."""
        return self.reference.get(preprocess, self.reference.get(""))

    def others_on(self, image_set: ImageSet) -> list[OtherResult]:
        """The figures to show beside a run over this set of images."""
        return [other for other in self.others if other.set == image_set.name]


def config_dir() -> Path:
    """Where the built-in configurations are: inside an installed package, or in the checkout."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


def builtin_variants() -> list[str]:
    """Names that ``--variant`` takes."""
    return sorted(path.stem for path in config_dir().glob("*.toml"))


def load_variant(name: str) -> VariantConfig:
    """A built-in configuration by name.

    Raises:
        UsageError: there is none.
    """
    names = builtin_variants()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"--variant {name}: no such variant.{hint} Available: {', '.join(names)}.")
    return load_config(config_dir() / f"{name}.toml")


def load_config(path: Path) -> VariantConfig:
    """A configuration file.

    Raises:
        UsageError: it cannot be read, or a key is missing, unknown or of the wrong type.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such configuration file.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    try:
        return _from_table(table)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from error


def _from_table(table: dict[str, Any]) -> VariantConfig:
    reference = (
        _row(Reference, table.pop("reference"), "reference") if "reference" in table else None
    )
    config = VariantConfig(
        name=_text(table, "name"),
        model=_text(table, "model"),
        images=_count(table, "images", IMAGENET_VAL_IMAGES),
        reference={"": reference} if reference else {},
        tolerance={
            name: _row(Tolerance, row, f"tolerance.{name}")
            for name, row in _table(table.pop("tolerance", {}), "tolerance").items()
        },
        others=tuple(_row(OtherResult, row, "others") for row in _rows(table.pop("others", []))),
    )
    if table:
        raise ValueError(f"unknown keys: {', '.join(sorted(table))}")
    return config


def _text(table: dict[str, Any], key: str) -> str:
    value = table.pop(key, None)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key!r} is missing or no text")
    return value


def _count(table: dict[str, Any], key: str, default: int) -> int:
    value = table.pop(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} = {value!r} is no number of images")
    return value


def _rows(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("[[others]] is no list of tables")
    return value


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"[{where}] is no table")
    return value


def _row(kind: type[Row], values: Any, where: str) -> Row:
    """A dataclass from a table; its constructor checks the names, this the types of the values."""
    types: dict[str, type | tuple[type, ...]] = {
        "images": int,
        "gated": bool,
        "source": str,
        "reason": str,
        "name": str,
        "set": str,
        "top1": (int, float),
        "top5": (int, float),
    }
    for key, value in _table(values, where).items():
        if not isinstance(value, types.get(key, object)) or (
            isinstance(value, bool) and key != "gated"
        ):
            raise ValueError(f"[{where}] {key} = {value!r} is of the wrong type")
    sets = [each.name for each in IMAGE_SETS]
    if values.get("set", VAL.name) not in sets:
        raise ValueError(f"[{where}] set = {values['set']!r} is none of {', '.join(sets)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"[{where}] {str(error).partition(' ')[2]}") from None
