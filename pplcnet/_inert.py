"""Values that training scripts keep beside the weights: named in a pickle, and never made.

A checkpoint of a training run has its options, dates and paths in it. The classes of these are
known here by name only. What reads a pickle puts a stand-in in their place, which takes whatever
the pickle does to it and keeps nothing; neither the class itself nor its module is imported.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

_SINGLE = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(
        f"{module}.{kind}{name}"
        for module in ("pathlib", "pathlib._local")  # the latter in Python 3.13
        for kind in ("", "Pure")
        for name in ("Path", "PosixPath", "WindowsPath")
    ),
    *(f"builtins.{name}" for name in ("bool", "bytes", "dict", "float", "frozenset", "int")),
    *(f"builtins.{name}" for name in ("list", "object", "range", "set", "slice", "str", "tuple")),
    "decimal.Decimal",
    "fractions.Fraction",
    "uuid.UUID",
    "typing.Any",
    # Scalars of NumPy: the best accuracy so far
    *(f"numpy.{name}" for name in ("dtype", "ndarray")),
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *(f"numpy.dtypes.{name}DType" for name in ("Float16", "Float32", "Float64", "Int32", "Int64")),
    "torch.torch_version.TorchVersion",
    # Configurations
    *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig")),
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata", "SCMode")),
    *(
        f"omegaconf.nodes.{kind}Node"
        for kind in ("Any", "Boolean", "Float", "Integer", "Path", "String")
    ),
    "mmengine.logging.history_buffer.HistoryBuffer",
)  # fmt: skip
_MAPPINGS = (
    "collections.defaultdict",
    "easydict.EasyDict",
    "addict.Dict",
    "addict.addict.Dict",
    "munch.Munch",
    "box.box.Box",
    "yacs.config.CfgNode",
    "ml_collections.config_dict.config_dict.ConfigDict",
    "mmengine.config.config.Config",
    "mmengine.config.config.ConfigDict",
    *(
        f"{module}.AttributeDict"
        for module in (
            "lightning.fabric.utilities.data",
            "lightning.pytorch.utilities.parsing",
            "lightning_fabric.utilities.data",
            "pytorch_lightning.utilities.parsing",
        )
    ),
)
_SEQUENCES = ("collections.deque",)


class Inert:
    """Stands for a value of which nothing is known or wanted."""

    def __new__(cls, *_: object, **__: object) -> Any:
        """Whatever it would be made of is dropped."""
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _InertMapping(Inert):
    """Becomes a plain mapping, so that entries can be set; torch sets them in no other."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return OrderedDict()


class _InertSequence(Inert, list[Any]):
    """A list, so that items can be appended."""


def _stand_in(name: str, base: type) -> type:
    """A class by the name of another; torch finds it by that."""
    module, _, plain = name.rpartition(".")
    return type(plain, (base,), {"__module__": module, "__qualname__": plain})


INERT: Mapping[str, type] = {
    **{name: _stand_in(name, Inert) for name in _SINGLE},
    **{name: _stand_in(name, _InertMapping) for name in _MAPPINGS},
    **{name: _stand_in(name, _InertSequence) for name in _SEQUENCES},
}
