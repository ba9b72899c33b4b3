"""Every known mistake, made on purpose, is explained by its own name and by no other."""

from __future__ import annotations

import copy
import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from known_answer import (
    IMAGES,
    KnownAnswers,
    TinyNet,
    bench_of,
    chosen_valset,
    known_answers,
    labels_of_chosen,
    machine,
    subject_of,
    tiny_net,
)
from PIL import Image
from torch import nn

from eval.backends import BACKENDS
from eval.diagnose import main
from eval.diagnosis.bench import rank_of
from eval.diagnosis.edits import possible_edits, suspicious
from eval.diagnosis.hypotheses import TABLE, normalized, table
from eval.diagnosis.orders import orders, position_of
from eval.diagnosis.page import html_page
from eval.diagnosis.pixels import (
    OPENCV,
    SQUASH,
    TORCHVISION,
    CropMaker,
    in_other_library,
    recognize,
)
from eval.diagnosis.report import Diagnosis, Expected, text
from eval.diagnosis.search import (
    Findings,
    Trial,
    images_to_decide,
    search,
    single_trials,
    trials_elsewhere,
)
from eval.diagnosis.setups import Facts, Setup
from eval.images.classes import IMAGENET, ilsvrc_ids
from eval.images.labels import official_labels
from eval.images.preprocess import PREPROCESS, Crop, Preprocess
from eval.images.valset import ValSet
from eval.jobs.diagnose import diagnose_command
from eval.metrics import rank_of_label
from eval.models.demo import demo_image
from eval.recipe import Recipe, parse
from eval.request import Request

PLAIN = PREPROCESS["torchvision"]
PADDLE = PREPROCESS["paddle"]
FAST = {"channels: bgr", "bn_eps: 1e-3"}  # the others take a minute or two together


@pytest.fixture(scope="module")
def valset(tmp_path_factory: pytest.TempPathFactory) -> ValSet:
    return chosen_valset(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def answers(valset: ValSet) -> KnownAnswers:
    return known_answers(valset, PLAIN)


def named(findings: Findings) -> dict[str, str]:
    """The explanation, once it is the only one."""
    assert findings.best is not None
    assert not findings.alternatives
    return findings.best.as_json


def diagnosed(net: nn.Module, valset: ValSet, preprocess: Preprocess = PLAIN) -> Findings:
    return search(bench_of(subject_of({"unfused": net}, preprocess), valset, machine(preprocess)))


def spoiled_pipeline(recipe: Recipe, normalization: str = "imagenet") -> Preprocess:
    return Preprocess.of(normalized(recipe, normalization))


def transform_of(recipe: Recipe) -> Preprocess:
    """A library's, of which nothing is known but what it does."""
    return replace(Preprocess.of(recipe), recipe=None)


_TRIED_HERE = [
    row.name
    for row in TABLE
    if row.key in ("channels", "labels", "bn_eps", "dropout_factor", "mode")
    or row.name in {
        "normalization: half", "normalization: unit", "normalization: levels",
        "normalization: clip", "normalization: caffe", "normalization: bgr-means",
        "resize: bicubic", "resize: lanczos", "resize: nearest", "resize: no-antialias",
        "resize: opencv", "resize: squash", "resize: 224", "resize: 232", "resize: 235",
        "resize: 236", "resize: 248", "resize: 257", "resize: 288", "exif: applied",
        "crop: floored", "long_side: rounded", "layout: height-width-swapped",
        "layout: reshaped",
    }
]  # fmt: skip
_ELSEWHERE = {"labels: background-first", "bn_eps: 1e-5", "labels: list-order"}


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in _TRIED_HERE
        if name not in _ELSEWHERE
    ],
)
def test_each_mistake_is_explained_by_its_name(
    name: str, answers: KnownAnswers, valset: ValSet
) -> None:
    trials = [t for t in single_trials(answers.bench, answers.as_is, TABLE) if t.name == name]
    assert trials
    for trial in trials if name not in FAST else trials[:1]:  # every reading of it
        net = answers.fitted(trial.setup)
        if "batch-statistics" in trial.setup.edits:
            assert isinstance(net.norm1, nn.BatchNorm2d)
        findings = diagnosed(net, valset)
        assert findings.is_correct.sum() < IMAGES / 2
        assert named(findings) == {trial.changes[0].key: trial.changes[0].value}
        assert findings.best is not None
        assert findings.best.correct >= IMAGES - 3


@pytest.mark.parametrize(
    ("mistake", "name"),
    [
        (TORCHVISION, "resize: opencv"),
        (replace(OPENCV, offset="rounded"), "crop: floored"),
        (replace(OPENCV, rounding="truncated"), "long_side: rounded"),
    ],
)
def test_what_opencv_does_already_has_the_name_of_its_step(
    mistake: Recipe, name: str, answers: KnownAnswers
) -> None:
    setup = replace(answers.as_is, recipe=mistake)
    trials = single_trials(answers.bench, setup, TABLE)
    assert [trial.name for trial in trials if trial.setup.recipe == OPENCV] == [name]


def test_a_sound_model_is_healthy(answers: KnownAnswers, valset: ValSet) -> None:
    findings = diagnosed(answers.fitted(answers.as_is), valset)
    assert findings.is_correct.all()
    assert findings.best is None
    diagnosis = Diagnosis("tiny", "here", findings)
    assert diagnosis.outcome == "healthy"
    assert diagnosis.exit_code == 0
    assert "HEALTHY" in text(diagnosis)


@pytest.mark.slow
def test_a_random_model_is_unexplained(valset: ValSet) -> None:
    findings = diagnosed(tiny_net(), valset)
    diagnosis = Diagnosis("tiny", "here", findings)
    assert (diagnosis.outcome, diagnosis.exit_code) == ("unexplained", 1)
    assert "are excluded" in text(diagnosis)


PIPELINES: list[tuple[Recipe, dict[str, str]]] = [
    (replace(TORCHVISION, resize=257), {"resize": "256"}),
    (replace(TORCHVISION, shift=(1, 0)), {"crop": "centered"}),
    (replace(TORCHVISION, offset="floored"), {"crop": "rounded"}),
    (replace(TORCHVISION, rounding="rounded"), {"long_side": "truncated"}),
    (replace(TORCHVISION, exif=True), {"exif": "ignored"}),
    (replace(TORCHVISION, interpolation="bicubic"), {"resize": "bilinear"}),
    (replace(TORCHVISION, resizer="tensor", antialias=False), {"resize": "bilinear"}),
    (replace(TORCHVISION, channels="bgr"), {"channels": "bgr"}),
    (OPENCV, {"resize": "bilinear"}),
    (SQUASH, {"resize": "256"}),  # by Pillow
]


@pytest.mark.slow
@pytest.mark.parametrize(("mistake", "expected"), PIPELINES, ids=[str(v) for _, v in PIPELINES])
def test_a_pipeline_with_a_mistake(
    mistake: Recipe, expected: dict[str, str], answers: KnownAnswers, valset: ValSet
) -> None:
    """The weights are sound, the evaluation is not."""
    net = answers.fitted(answers.as_is)
    assert named(diagnosed(net, valset, spoiled_pipeline(mistake))) == expected


@pytest.mark.slow
@pytest.mark.parametrize("table", ["half", "bgr-means"])
def test_a_wrong_normalization(table: str, answers: KnownAnswers, valset: ValSet) -> None:
    preprocess = spoiled_pipeline(TORCHVISION, table)
    findings = diagnosed(answers.fitted(answers.as_is), valset, preprocess)
    assert named(findings) == {"normalization": "imagenet"}


@pytest.mark.slow
def test_the_models_own_normalization(answers: KnownAnswers, valset: ValSet) -> None:
    own = Preprocess.of(replace(TORCHVISION, std=tuple(value / 1.3 for value in TORCHVISION.std)))
    net = answers.fitted(answers.as_is)
    with torch.no_grad():
        net.conv1.weight /= 1.3
    subject = subject_of({"unfused": net})
    findings = search(bench_of(subject, valset, machine(PLAIN, own=own)))
    assert named(findings) == {"normalization": "model"}


def test_inverted_cmyk_images_are_recognized() -> None:
    files = [demo_image(i) for i in (0, 11, 51, 91)]
    recipe = replace(TORCHVISION, cmyk="inverted")
    assert recognize(transform_of(recipe), files) == (recipe, True)


@pytest.mark.slow
def test_a_form_that_was_made_wrongly(answers: KnownAnswers, valset: ValSet) -> None:
    sound, broken = answers.fitted(answers.as_is), answers.fitted(answers.as_is)
    assert broken.fc.bias is not None
    with torch.no_grad():
        broken.project.bias += 1
    for forms, expected in (
        ({"unfused": sound, "reparameterized": broken}, "unfused"),
        ({"unfused": broken, "reparameterized": sound}, "reparameterized"),
    ):
        findings = search(bench_of(subject_of(forms), valset, machine(PLAIN)))
        assert named(findings) == {"form": expected}


@pytest.mark.slow
def test_the_epsilon_that_the_network_should_have_kept(
    answers: KnownAnswers, valset: ValSet
) -> None:
    net = answers.fitted(answers.as_is)
    assert isinstance(net.norm1, nn.BatchNorm2d)
    net.norm1.eps = 1e-3
    assert named(diagnosed(net, valset)) == {"bn_eps": "1e-5"}


@pytest.mark.slow
def test_a_transposed_classifier(answers: KnownAnswers, valset: ValSet) -> None:
    net = answers.fitted(answers.as_is)
    net.fc.weight = nn.Parameter(net.fc.weight.detach().T.contiguous())
    assert named(diagnosed(net, valset)) == {"layout": "transposed-classifier"}


@pytest.mark.slow
def test_a_background_class(answers: KnownAnswers, valset: ValSet) -> None:
    net = answers.fitted(answers.as_is)
    larger = tiny_net(1001)
    with torch.no_grad():
        larger.fc.weight.zero_()
        larger.fc.weight[1:], larger.fc.bias[1:] = net.fc.weight, net.fc.bias
        larger.fc.bias[0] = -10
    assert named(diagnosed(larger, valset)) == {"labels": "background-first"}


@pytest.mark.slow
def test_half_precision_that_overflows(answers: KnownAnswers, valset: ValSet) -> None:
    net = answers.fitted(answers.as_is)

    class Overflowing(TinyNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = super().forward(x)
            return logits * 1e6 / 1e6  # infinite in half precision

    net.__class__ = Overflowing
    subject = subject_of({"unfused": net})
    findings = search(bench_of(subject, valset, machine(PLAIN, precision="fp16")))
    assert not findings.is_correct.any()
    assert named(findings) == {"precision": "fp32"}


@pytest.mark.slow
def test_two_mistakes_at_once(answers: KnownAnswers, valset: ValSet) -> None:
    trials = {t.name: t for t in single_trials(answers.bench, answers.as_is, TABLE)}
    half = trials["normalization: half"].setup
    net = answers.fitted(replace(half, labels=trials["labels: plus-1"].setup.labels))
    assert named(diagnosed(net, valset)) == {"normalization": "half", "labels": "plus-1"}


class CountingBench:
    """Nothing is right as configured, and something after every change; counts predictions."""

    def __init__(self, images: int, forms: tuple[str, ...]) -> None:
        self.images, self.screen = images, min(100, max(20, images // 5), images)
        self.as_is = {form: Setup(TORCHVISION, form) for form in forms}
        orders = {"plus-1": np.arange(1000), "minus-1": np.arange(1000)}
        edits = (
            *("transposed-classifier", "bn-eps-1e-3", "bn-eps-1e-6", "no-dropout-factor"),
            *("dropout-factor-twice", "batch-statistics"),
        )
        backends, every = tuple(BACKENDS), dict.fromkeys(forms, edits)
        self.facts = Facts(TORCHVISION, forms, edits=every, backends=backends, orders=orders)
        self.refused: dict[Setup, str] = {}
        self.predicted: dict[Setup, int] = {}

    def measured(self, setup: Setup) -> int:
        return self.predicted.get(replace(setup, labels=""), 0)

    def measure(self, setups: Sequence[Setup], images: int, stage: str) -> None:
        for setup in setups:
            self.predicted[replace(setup, labels="")] = max(self.measured(setup), images)

    def ranks(self, setup: Setup, images: int) -> np.ndarray | None:
        if self.measured(setup) < images:
            return None
        seed = zlib.crc32(repr(setup).encode())
        ranks = np.random.default_rng(seed).integers(0, 3, images)
        return ranks + 1 if setup in self.as_is.values() else ranks


@pytest.mark.parametrize("forms", [("unfused",), ("unfused", "reparameterized")])
@pytest.mark.parametrize("images", [100, 150, 200, 400, 500, 1000, 5000])
def test_a_search_takes_at_most_15_passes(images: int, forms: tuple[str, ...]) -> None:
    bench = CountingBench(images, forms)
    findings = search(bench)
    predicted = sum(bench.predicted.values())
    assert predicted <= 15 * images * len(forms)
    assert sum(t.images == images for t in findings.trials if "labels" not in t.name) >= 3
    tried = [t for t in findings.trials if len(t.changes) == 1]
    assert all(t.images >= (5 if t.is_elsewhere else 20) for t in tried), "each is looked at"


# --- Parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "recipe"), [("torchvision", TORCHVISION), ("paddle", OPENCV), ("squash", SQUASH)]
)
def test_recipes_are_the_pipelines_bit_for_bit(name: str, recipe: Recipe) -> None:
    files = [demo_image(i) for i in (0, 3, 11, 17, 23, 29, 31, 37, 77, 117)]
    for data in files:
        assert np.array_equal(CropMaker(data).crop(recipe), PREPROCESS[name].crop(data))
    assert recognize(transform_of(recipe), files) == (recipe, True)


def test_an_unknown_pipeline_is_called_close_to_a_known_one() -> None:
    def crop(data: bytes) -> Crop:
        return np.minimum(PLAIN.crop(data), 250)

    transform = replace(PLAIN, crop=crop, recipe=None)
    assert recognize(transform, [demo_image(i) for i in (0, 1, 2)]) == (TORCHVISION, False)


def test_a_crop_outside_of_the_image_is_black() -> None:
    file = io.BytesIO()
    Image.new("RGB", (300, 300), (9, 9, 9)).save(file, "PNG")
    crop = CropMaker(file.getvalue()).crop(replace(TORCHVISION, resize=200))
    assert crop.shape == (224, 224, 3)
    assert crop[0, 0].tolist() == [0, 0, 0]
    assert crop[112, 112].tolist() == [9, 9, 9]


def test_ilsvrc_ids_are_those_of_the_first_official_images() -> None:
    ids = ilsvrc_ids()
    assert sorted(ids) == list(range(1000))
    # The first lines of the devkit's ILSVRC2012_validation_ground_truth.txt.
    assert [ids[i - 1] for i in (490, 361, 171, 822)] == list(official_labels()[:4])


def test_orders_by_hand(valset: ValSet) -> None:
    found = orders(valset, 1000)
    assert found["plus-1"][[0, 998, 999]].tolist() == [1, 999, 0]
    assert found["minus-1"][[0, 1, 999]].tolist() == [999, 0, 998]
    assert found["ilsvrc-id"][IMAGENET.index_of["n02119789"]] == 0  # the kit fox has id 1
    there = sorted(labels_of_chosen())
    assert found["folder-order"][there].tolist() == list(range(IMAGES))
    assert found["folder-order"][5] == -1
    by_name = found["name-order/1"]
    titles = [IMAGENET.rows[label].title.partition(",")[0] for label in np.argsort(by_name)]
    assert titles == sorted(titles)
    background = orders(valset, 1001)
    assert background["background-first"].tolist() == list(range(1, 1001))
    assert "plus-1" not in background
    assert background["ilsvrc-id"].tolist() == (found["ilsvrc-id"] + 1).tolist()


def test_position_of() -> None:
    assert position_of([2, 0, 1]).tolist() == [1, 2, 0]
    assert position_of([3, 1], 4).tolist() == [-1, 1, -1, 0]


def test_rank_of_is_the_rank_of_the_metrics() -> None:
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 6, (40, 12)).astype(np.float32)  # with ties
    labels = rng.integers(0, 12, 40)
    assert rank_of(logits, labels).tolist() == rank_of_label(logits, labels).tolist()
    logits[0, 3] = np.nan
    assert rank_of(logits, labels)[0] == 12
    assert rank_of(logits, np.full(40, -1)).tolist() == [12] * 40
    among = np.array([1, 4, 7])
    expected = rank_of_label(logits[1:, among], np.zeros(39, np.int64))
    assert rank_of(logits[1:], np.full(39, 1), among).tolist() == expected.tolist()


def test_images_to_decide() -> None:
    # 60 % against 40 % of the images that change sides, 10 % of all: textbook value about 1,960.
    assert images_to_decide(12, 8, 200) == 2000
    assert images_to_decide(5, 5, 200) is None
    assert images_to_decide(101, 100, 500) is None  # more than anybody has
    few, many = images_to_decide(12, 8, 200), images_to_decide(12, 8, 200, compared=40)
    assert few is not None
    assert many is not None
    assert many > few


def test_edits_that_change_nothing_are_not_possible() -> None:
    assert "bn-eps-1e-5" not in possible_edits(tiny_net())
    assert possible_edits(tiny_net()) >= {"bn-eps-1e-3", "no-dropout-factor", "batch-statistics"}
    assert possible_edits(Path("model.onnx")) == frozenset()


def test_an_untrained_model_is_suspicious() -> None:
    net = TinyNet()
    net.fc.bias.data.zero_()
    found = suspicious(net)
    assert any("running_mean" in line for line in found)
    assert any("classifier `fc` is 0" in line for line in found)
    net.norm1.running_mean.add_(1)  # type: ignore[union-attr,operator]
    assert not any("running_mean" in line for line in suspicious(net))


def test_expected_accuracy() -> None:
    expected = Expected(77.04, "doc")
    assert not expected.is_missed(301, 400)
    assert expected.is_missed(260, 400)


def findings_of(correct: int, images: int) -> Findings:
    """Nothing was better than what is configured."""
    return Findings(Setup(TORCHVISION, "unfused"), np.arange(images) < correct)


@pytest.mark.parametrize(
    ("correct", "images", "classes", "outcome"),
    [
        (13, 500, 1000, "unexplained"),
        (49, 500, 1000, "unexplained"),
        (50, 500, 1000, "healthy"),
        (19, 100, 10, "unexplained"),
        (20, 100, 10, "healthy"),
    ],
)
def test_an_accuracy_near_chance_is_not_healthy(
    correct: int, images: int, classes: int, outcome: str
) -> None:
    found = Diagnosis("tiny", "here", findings_of(correct, images), classes=classes)
    assert found.outcome == outcome
    assert found.exit_code == (outcome == "unexplained")
    told = " ".join(text(found).split())
    assert (f"is near chance, which is 1 in {classes:,}; 0 known mistakes" in told) == bool(
        found.exit_code
    )
    assert ("HEALTHY" in told) == (outcome == "healthy")


def test_an_accuracy_below_the_reported_one_is_not_healthy() -> None:
    found = Diagnosis("tiny", "here", findings_of(300, 500), Expected(77.04, "paper"))
    assert found.outcome == "unexplained"
    assert "300 of 500 correct (60.0 %) is far below the reported accuracy" in (
        " ".join(text(found).split())
    )


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("torchvision", "paddle"),
        ("paddle", "torchvision"),
        ("squash,crop=288,interpolation=area",
         "torchvision,resize=256x256,interpolation=area,crop=288"),
        ("torchvision,resize=235,interpolation=bicubic,mean=0.5,std=0.5,channels=bgr",
         "paddle,resize=235,interpolation=bicubic,channels=bgr,mean=0.5,std=0.5"),
        ("torchvision,resizer=tensor,antialias=off,scale=1", "torchvision,scale=1"),
    ],
)  # fmt: skip
def test_the_same_in_the_other_library(text: str, other: str) -> None:
    assert in_other_library(parse(text)).text == other


@pytest.mark.parametrize(
    ("text", "name", "result"),
    [
        ("torchvision", "half", "torchvision,mean=0.5,std=0.5"),
        ("paddle", "half", "paddle,mean=0.5,std=0.5"),
        ("paddle,mean=0.5,std=0.5", "imagenet", "paddle"),
        ("paddle", "levels", "paddle,scale=1,mean=0,std=1"),
        ("raw", "imagenet", "torchvision"),
        ("torchvision,channels=bgr", "imagenet",
         "torchvision,channels=bgr,mean=0.406/0.456/0.485,std=0.225/0.224/0.229"),
        ("torchvision,channels=bgr", "bgr-means", "torchvision,channels=bgr"),
    ],
)  # fmt: skip
def test_normalizations(text: str, name: str, result: str) -> None:
    assert normalized(parse(text), name).text == result


def test_the_other_library_is_a_change_of_its_own() -> None:
    """Where it suffices, nothing is said of the steps that it was tried with."""

    class OnlyOpenCV(CountingBench):
        def ranks(self, setup: Setup, images: int) -> np.ndarray | None:
            if self.measured(setup) < images:
                return None
            return np.full(images, 0 if setup.recipe.decode == "opencv" else 9)

    findings = search(OnlyOpenCV(100, ("unfused",)))
    assert named(findings) == {"resize": "opencv"}
    assert any(trial.is_elsewhere and trial.is_better for trial in findings.trials)


def test_every_step_is_tried_in_both_libraries() -> None:
    for base in ("torchvision", "paddle", "squash"):
        bench = CountingBench(100, ("unfused",))
        bench.facts = replace(bench.facts, own=parse(base))
        setup = Setup(parse(base), "unfused")
        singles = list(single_trials(bench, setup, TABLE))
        elsewhere = list(trials_elsewhere(bench, setup, TABLE, singles))
        recipes = {trial.setup.recipe for trial in [*singles, *elsewhere]} | {setup.recipe}
        for library in ("torchvision", "paddle"):
            for steps in ("", ",resize=256x256", ",resize=224x224", ",resize=235",
                          ",interpolation=bicubic", ",interpolation=nearest"):  # fmt: skip
                if base == "squash" and "interpolation" in steps:
                    steps += ",resize=256x256"
                assert parse(library + steps) in recipes, (base, library, steps)
        assert len(elsewhere) < len(singles)
        assert not {trial.setup for trial in singles} & {trial.setup for trial in elsewhere}


def test_a_transform_that_no_recipe_can_say(valset: ValSet) -> None:
    """It is diagnosed with its own pixels, and only `own` runs it."""

    def crop(data: bytes) -> Crop:
        return np.minimum(PLAIN.crop(data), 250)

    given = replace(PLAIN, name="own", crop=crop, recipe=None)
    bench = bench_of(subject_of({"unfused": tiny_net()}, given), valset, machine(given))
    setup = bench.as_is["unfused"]
    assert setup.recipe == TORCHVISION
    crops = bench._crops([setup], range(2))[setup.recipe.pixels]
    assert np.array_equal(crops[1], crop(valset.read(bench.valset.samples[1].path)))
    assert bench.argument(setup) == "own"
    assert bench.argument(replace(setup, recipe=normalized(setup.recipe, "half"))) is None
    assert bench.argument(replace(setup, recipe=OPENCV)) == "paddle"


def test_the_documentation_has_the_table_of_the_code() -> None:
    page = Path(__file__).parents[1] / "docs" / "diagnosis.md"
    assert table() in page.read_text(encoding="utf-8")


def test_the_page_escapes_and_has_a_bar_for_each() -> None:
    trial = Trial((TABLE[0],), Setup(replace(TORCHVISION, channels="bgr"), "unfused"))
    trial.images, trial.is_correct = 4, np.array([True, True, True, False])
    findings = Findings(
        Setup(TORCHVISION, "unfused"), np.array([True, False, False, False]), [trial]
    )
    page = html_page(Diagnosis("<b>model</b>", "here", findings))
    assert "<b>model" not in page
    assert "&lt;b&gt;model" in page
    assert 'style="width: 75.0%"' in page
    assert 'style="width: 25.0%"' in page
    assert "channels: bgr" in page


def test_a_long_name_is_above_its_figures() -> None:
    long = [row for row in TABLE if "resize" in row.key][:2]
    trial = Trial(tuple(long), Setup(TORCHVISION, "unfused"), is_elsewhere=True, images=4)
    findings = Findings(Setup(TORCHVISION, "unfused"), np.zeros(4, bool), [trial])
    lines = text(Diagnosis("model", "here", findings)).splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("tried ")) + 1
    end = lines.index("", start)
    assert len(trial.name) > 40
    assert " ".join(line[:40].strip() for line in lines[start:end]) == trial.name
    assert [line[40:].split() for line in lines[start:end]] == [[], ["4", "0", "0", "0", "1"]]
    assert max(map(len, lines)) <= 80


def test_the_table_has_unique_names_and_sentences() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE)
    assert all(row.advice.endswith(".") for row in TABLE)


# --- Commands -----------------------------------------------------------------------------------


def test_the_command_that_diagnoses_a_request() -> None:
    request = Request(
        data="/my val", variant="base", weights="w.pth", forms="unfused", limit=5, batch_size=8
    )
    assert diagnose_command(request) == (
        "python -m eval.diagnose --data '/my val' --variant base --weights w.pth "
        "--forms unfused --batch-size 8"
    )
    assert diagnose_command(Request(demo=True)) == "python -m eval.diagnose --demo"


@pytest.fixture
def scored(tmp_path: Path, valset: ValSet) -> tuple[Path, Path]:
    """Ranked predictions in the order of the ILSVRC ids, all right."""
    order = position_of(ilsvrc_ids())
    lines = ["name,top1,top2,top3,top4,top5"]
    for sample in valset.samples:
        best = int(order[sample.label])
        lines.append(",".join([sample.path, *(str((best + i) % 1000) for i in range(5))]))
    path = tmp_path / "predictions.csv"
    path.write_text("\n".join(lines) + "\n")
    return path, tmp_path


def test_predictions_without_a_model(
    scored: tuple[Path, Path], valset: ValSet, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions, folder = scored
    words = ["--data", str(valset.root), "--predictions", str(predictions), "--quiet"]
    assert main([*words, "--json", str(folder / "d.json")]) == 1
    assert "EXPLAINED by labels: ilsvrc-id" in capsys.readouterr().out
    found = json.loads((folder / "d.json").read_text())
    assert found["outcome"] == "explained"
    assert found["changes"] == {"labels": "ilsvrc-id"}
    assert found["images"] == found["with_changes"]["top1_correct"] == IMAGES
    assert found["as_is"]["top1_correct"] == 0
    assert {"changes", "top1_correct", "p_value"} <= set(found["tried"][0])
    assert "ILSVRC ids" in found["advice"]


def test_logits_with_a_background_class(
    tmp_path: Path, valset: ValSet, capsys: pytest.CaptureFixture[str]
) -> None:
    logits = np.zeros((IMAGES, 1001), np.float32)
    for row, sample in enumerate(valset.samples):
        logits[row, sample.label + 1] = 5
    names = np.array([sample.path for sample in valset.samples])
    np.savez(tmp_path / "p.npz", logits=logits, names=names)
    assert main(["--data", str(valset.root), "--predictions", str(tmp_path / "p.npz")]) == 1
    assert "EXPLAINED by labels: background-first" in capsys.readouterr().out


@pytest.mark.slow
def test_copy_is_untouched(answers: KnownAnswers, valset: ValSet) -> None:
    """A diagnosis leaves the model as it was."""
    net = answers.fitted(answers.as_is)
    before = copy.deepcopy(net.state_dict())
    diagnosed(net, valset)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
