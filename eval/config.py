"""Configuration files: the reported accuracy of a variant, and the tolerance.

The built-in files are in ``configs/``, one per variant. Command-line options override the
configuration file; no environment variables are read.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from eval.errors import UsageError
from eval.recipe import NAMED, OWN, parse
from eval.text import short

T = TypeVar("T")

IMAGENET_VAL_IMAGES = 50_000
VAL_SET = "ILSVRC2012 validation"  # what reported figures were measured on
IMAGE_SETS = (VAL_SET, "ImageNetV2", "ImageNet-A", "ImageNet-R", "ImageNet-Sketch")
_LONGEST = 1 << 20  # characters of a configuration
_MOST_PARTS = 100  # of a key: tomllib's time grows with their square
LIBRARIES = ("timm:", "torchvision:")  # a `model` that begins so is another library's


# A class that is a table in a file refuses unknown keys there, and values of other types.
_Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=10_000)]
_MAX_IMAGES = 10_000_000
_RESERVED_NAME = "demo"


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Reference(_Table, frozen=True):
    """A reported accuracy, in percent.

    Attributes:
        source: where it is published.
        top1, top5: as reported; None if not reported.
        gated: whether a run fails if it differs by more than the tolerance.
    """

    source: _Text
    top1: _Percent | None = None
    top5: _Percent | None = None
    gated: bool = True


class Tolerance(_Table, frozen=True):
    """How many images a count may differ from the reference by, and why."""

    images: Annotated[int, msgspec.Meta(ge=0, le=_MAX_IMAGES)]
    reason: _Text


class OtherResult(_Table, frozen=True):
    """A third-party result, in percent: shown next to ours, never compared with it.

    Attributes:
        name: who measured it.
        source: where it is published.
        top1, top5: as reported.
        set: name of the image set it was measured on.
    """

    name: _Text
    source: _Text
    top1: _Percent
    top5: _Percent | None = None
    set: _Text = VAL_SET


@dataclass(frozen=True)
class VariantConfig:
    """One file under ``configs/``.

    Attributes:
        name: its name in the reports, and for ``--weights auto``.
        model: a key of `pplcnet.VARIANTS`, ``timm:NAME`` or ``torchvision:NAME``.
        images: number of images in the full set; runs on fewer images are not compared.
        reference: by the text of a recipe; "own": the model's own, "": all others.
        tolerance: by the text of a recipe, or "own"; without a tolerance, a run is not gated.
        others: third-party results.
        reference_word: the word for the reference in reports.
    """

    name: str
    model: str
    images: int
    reference: Mapping[str, Reference]
    tolerance: Mapping[str, Tolerance]
    others: tuple[OtherResult, ...] = ()
    reference_word: str = "reported"

    def reference_for(self, preprocess: str) -> Reference | None:
        """The reference for a run with this preprocessing, if there is one."""
        return self.reference.get(preprocess, self.reference.get(""))

    def with_own(self, recipe: str) -> VariantConfig:
        """With the entries of the model's own recipe under its name, unless that has its own."""

        def named(rows: Mapping[str, T]) -> Mapping[str, T]:
            return {recipe if name == OWN else name: row for name, row in rows.items()} | {
                name: row for name, row in rows.items() if name != OWN
            }

        return replace(self, reference=named(self.reference), tolerance=named(self.tolerance))

    def others_on(self, image_set: str) -> list[OtherResult]:
        """The third-party results on the image set of this name."""
        return [other for other in self.others if other.set == image_set]


def config_dir() -> Traversable:
    """Where the built-in configurations are: in the package, or beside it in a checkout.

    Either may be inside a zip, from which Python runs packages, too.
    """
    package: Any = resources.files("eval")
    installed: Traversable = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def builtin_variants() -> list[str]:
    """The names of the built-in configurations, for ``--variant``."""
    names = (each.name for each in config_dir().iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load_variant(name: str) -> VariantConfig:
    """Load a built-in configuration by name."""
    names = builtin_variants()
    if name not in names:
        hint = _hint(meant_variant(name) or name, names)
        raise UsageError(f"--variant {name}: no such variant.{hint}")
    return load_config(config_dir() / f"{name}.toml")


def meant_variant(name: str) -> str | None:
    """The built-in variant that another name of the model means, such as PPLCNetV2_base."""
    short = re.sub(r"^(pp[-_]?)?lcnet[-_]?v2[-_]?", "", name.lower())
    return short if short in builtin_variants() else None


def load_config(path: Path | Traversable) -> VariantConfig:
    """Load a configuration file.

    Raises:
        UsageError: it cannot be read, or a key is missing, unknown or has an invalid value; the
            message gives the file, the key and the value.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > _LONGEST or any(line.count(".") > _MOST_PARTS for line in text.split("\n")):
            raise UsageError(f"{path} cannot be read: it is too long, or has too many dots.")
        table = tomllib.loads(text)
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such configuration file.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except RecursionError:
        raise UsageError(f"{path} cannot be read: it is nested too deeply.") from None
    except ValueError as error:  # not UTF-8, not TOML, or a number of thousands of digits
        raise UsageError(f"{path} cannot be read: {error}.") from error
    try:
        file = msgspec.convert(table, _File)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {_explain(str(error), table)}") from None
    return VariantConfig(
        name=file.name,
        model=file.model,
        images=file.images,
        reference={"": file.reference} if file.reference else {},
        tolerance=_tolerances(path, file),
        others=file.others,
    )


class _File(_Table, frozen=True):
    name: str
    model: str
    images: Annotated[int, msgspec.Meta(ge=1, le=_MAX_IMAGES)] = IMAGENET_VAL_IMAGES
    reference: Reference | None = None
    tolerance: dict[str, Any] = msgspec.field(default_factory=dict)  # see `_tolerances`
    others: tuple[OtherResult, ...] = ()

    def __post_init__(self) -> None:
        from pplcnet import VARIANTS  # imports no torch, but takes a tenth of a second

        _check_name(self.name)
        if not self.model.startswith(LIBRARIES):
            _check_known("model", self.model, VARIANTS)
        if self.reference:
            _check_order("reference", self.reference)
            if self.reference.top1 is None and self.reference.top5 is None:
                raise ValueError(
                    "reference: neither top1 nor top5: a source alone is not a reference"
                )
        for place, other in enumerate(self.others):
            _check_order(f"others[{place}]", other)
            _check_known(f"others[{place}]: set", other.set, IMAGE_SETS)


def _tolerances(path: Path | Traversable, file: _File) -> dict[str, Tolerance]:
    """By the text of a recipe, which a table's name may write otherwise, or `OWN`."""
    found: dict[str, Tolerance] = {}
    for name, value in file.tolerance.items():
        try:
            text = OWN if name == OWN else parse(name).text
        except UsageError:
            known = [*NAMED, OWN]
            raise UsageError(
                f"{path}: tolerance: {name} = {short(value)}: unknown key.{_hint(name, known)}"
            ) from None
        try:
            row = msgspec.convert(value, Tolerance)
        except msgspec.ValidationError as error:
            root = f"tolerance.{name}"
            raise UsageError(f"{path}: {_explain(str(error), value, root)}") from None
        if row.images > file.images:
            raise UsageError(
                f"{path}: tolerance.{name}.images = {row.images}: more than images = {file.images}."
            )
        if text in found:
            raise UsageError(f"{path}: tolerance: {name}: there are two for the recipe {text}.")
        found[text] = row
    return found


def _check_name(name: str) -> None:
    """Check a name, which becomes a folder name and part of file names and run ids."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", name) or ".." in name:
        raise ValueError(
            f"name = {short(name)}: use at most 64 letters, digits, dots, dashes and "
            "underscores, without '..', and no dot or dash first"
        )
    if name.lower() == _RESERVED_NAME:
        raise ValueError(f"name = {name!r}: reserved for --demo")


def _check_order(where: str, row: Reference | OtherResult) -> None:
    if row.top1 is not None and row.top5 is not None and row.top5 < row.top1:
        raise ValueError(f"{where}: top5 = {row.top5:g}: less than top1 = {row.top1:g}")


def _check_known(key: str, value: str, known: Iterable[str]) -> None:
    known = list(known)
    if value not in known:
        raise ValueError(f"{key} = {short(value)}: unknown.{_hint(value, known)}")


def _hint(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"{f' Did you mean {close[0]!r}?' if close else ''} Available: {', '.join(known)}."


# msgspec's type names, in TOML's terms.
_TYPES = {
    "float": "a number",
    "int": "a whole number",
    "str": "text",
    "bool": "true or false",
    "object": "a table",
    "array": "a list of tables",
}


def _explain(message: str, table: Any, root: str = "") -> str:
    """Reword a message of msgspec, adding the key and the value.

    Args:
        message: such as "Expected `int` >= 1 - at `$.tolerance.paddle.images`".
        table: the file's content, or a table in it.
        root: the path of that table.
    """
    problem, _, path = message.rpartition(" - at `$")
    problem, path = (problem, path.strip("`.")) if problem else (message, "")
    full = ".".join(filter(None, (root, path)))
    where = f"{full}: " if full else ""
    try:
        value = _value_at(path, table)
        if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", problem, re.DOTALL):
            key = unknown[1]
            shown = key if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", key) else short(key)
            known = _keys_of(full)
            return f"{where}{shown} = {short(value[key])}: unknown key.{_hint(key, known)}"
    except (KeyError, IndexError, TypeError):  # a key that looks like one of msgspec's messages
        return f"{short(message)}."
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", problem):
        return f"{where}{missing[1]!r} is missing."
    if not problem.startswith("Expected `"):  # our own message, from a __post_init__
        return f"{where}{problem.removesuffix('.')}."
    expected = re.sub(r"( \| null)?`(, got .*)?", "", problem.removeprefix("Expected `"))
    kind, _, rest = expected.partition(" ")
    return f"{full} = {short(value)}: expected {f'{_TYPES[kind]} {rest}'.strip()}."


def _value_at(path: str, table: dict[str, Any]) -> Any:
    value: Any = table
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        value = value[key] if key else value[int(index)]
    return value


def _keys_of(path: str) -> tuple[str, ...]:
    """The valid keys of the table at a path."""
    tables: dict[str, type[_Table]] = {"": _File, "reference": Reference, "others": OtherResult}
    return tables.get(path.partition("[")[0], Tolerance).__struct_fields__
