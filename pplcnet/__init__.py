"""PP-LCNetV2 in PyTorch: the form that is trained and the form that is deployed.

>>> import pplcnet
>>> model = pplcnet.create_model("base")
>>> pplcnet.load_weights(model, "PPLCNetV2_base_pretrained.pdparams")  # doctest: +SKIP
>>> deploy = pplcnet.reparameterize(model)

The models are also registered with timm, as ``pplcnetv2_small``, ``pplcnetv2_base`` and
``pplcnetv2_large``, whether timm is imported before this package or after it.

Names are imported when they are first used, so `pplcnet.VARIANTS` works without importing torch.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

from wrapt import when_imported as _when_imported

if _TYPE_CHECKING:
    from pplcnet._download import fetch_weights
    from pplcnet._errors import WeightsError
    from pplcnet._model import PPLCNetV2, count_macs, count_parameters, create_model
    from pplcnet._reparam import is_reparameterized, reparameterize
    from pplcnet._variants import VARIANTS
    from pplcnet._weights import Weights, load_weights, read_weights

__all__ = [
    "VARIANTS",
    "PPLCNetV2",
    "Weights",
    "WeightsError",
    "count_macs",
    "count_parameters",
    "create_model",
    "fetch_weights",
    "is_reparameterized",
    "load_weights",
    "read_weights",
    "reparameterize",
]

_MODULES = {
    "VARIANTS": "_variants",
    "PPLCNetV2": "_model",
    "Weights": "_weights",
    "WeightsError": "_errors",
    "count_macs": "_model",
    "count_parameters": "_model",
    "create_model": "_model",
    "fetch_weights": "_download",
    "is_reparameterized": "_reparam",
    "load_weights": "_weights",
    "read_weights": "_weights",
    "reparameterize": "_reparam",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(_import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@_when_imported("timm")  # importing it takes longer than importing torch
def _register_with_timm(_: object) -> None:
    from pplcnet import _timm as _timm
