"""PP-LCNetV2 in PyTorch, as trained and as deployed.

>>> import pplcnet
>>> model = pplcnet.create_model("base")
>>> pplcnet.load_weights(model, "PPLCNetV2_base_pretrained.pdparams")  # doctest: +SKIP
>>> deploy = pplcnet.reparameterize(model)

It also registers the models with timm, as ``pplcnetv2_small``, ``_base`` and ``_large``, as soon as
timm is imported, before or after.
"""

from wrapt import when_imported as _when_imported

from pplcnet._download import fetch_weights
from pplcnet._errors import WeightsError
from pplcnet._model import PPLCNetV2, count_macs, count_parameters, create_model
from pplcnet._reparam import is_reparameterized, reparameterize
from pplcnet._variants import VARIANTS
from pplcnet._weights import Weights, load_weights, read_weights


@_when_imported("timm")  # importing it takes longer than importing torch
def _register_with_timm(_: object) -> None:
    from pplcnet import _timm as _timm


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
