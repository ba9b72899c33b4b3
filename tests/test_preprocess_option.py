"""``--preprocess`` with any recipe, through the real commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FILES, MakeVal, rows_of

import eval.audit
import eval.imagenet
import eval.regression
import eval.score
import eval.sweep
from eval import Request, evaluate
from eval.config import Tolerance, VariantConfig
from eval.errors import UsageError
from eval.images.preprocess import Preprocess, crop_of
from eval.models import choose_preprocess, open_source, published_of
from eval.recipe import Recipe, parse

RECIPE = "torchvision,resize=235,interpolation=bicubic"
Run = Callable[..., int]


@pytest.fixture
def val(val_folder: MakeVal) -> Path:
    return val_folder(FILES, 250)


@pytest.fixture(autouse=True)
def _no_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a second; one test looks at it."""
    if "reports_name" not in request.node.name:
        monkeypatch.setattr("eval.results.html.html_report", lambda *_: "")


@pytest.fixture
def run(val: Path, weights: Path, tmp_path: Path) -> Run:
    """Evaluate the small network, with its reports in a folder of this name."""

    def call(output: str, *words: str) -> int:
        data = ["--data", str(val), "--weights", str(weights), "--quiet"]
        variant = [] if "--config" in words else ["--variant", "small"]
        place = ["--output", str(tmp_path / output), "--forms", "unfused"]
        return eval.imagenet.main([*data, *variant, *place, *words])

    return call


def test_the_reports_name_the_recipe_by_its_text(run: Run, tmp_path: Path) -> None:
    assert run("a", "--preprocess", "torchvision,interpolation=bicubic,exif=off,resize=235") == 0
    (row,) = rows_of(tmp_path / "a/summary.csv")
    assert row["preprocess"] == RECIPE
    about = json.loads((tmp_path / "a/run.json").read_text())
    assert about["preprocess"] == RECIPE
    assert about["preprocess_description"] == parse(RECIPE).words
    assert RECIPE in (tmp_path / "a/report.html").read_text()


def test_a_file_is_the_recipe_that_it_says(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('resize = 235\ninterpolation = "bicubic"\n')
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 235}, "resample": 3,
        "crop_size": 224, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }))  # fmt: skip
    for name, text in (
        ("r.toml", RECIPE),
        ("preprocessor_config.json", f"{RECIPE},offset=floored"),
    ):
        assert run(f"of {name}", "--preprocess", str(tmp_path / name)) == 0
        assert run(f"text of {name}", "--preprocess", text) == 0
        tables = [
            rows_of(tmp_path / each / "predictions.csv")
            for each in (f"of {name}", f"text of {name}")
        ]
        assert tables[0] == tables[1]
        (row,) = rows_of(tmp_path / f"of {name}" / "summary.csv")
        assert row["preprocess"] == text


def test_own_is_the_default(run: Run, tmp_path: Path) -> None:
    for name, words in (("none", []), ("changed", ["--preprocess", "own,channels=bgr"])):
        assert run(name, *words) == 0
    said = [rows_of(tmp_path / name / "summary.csv")[0] for name in ("none", "changed")]
    assert [row["preprocess"] for row in said] == ["torchvision", "torchvision,channels=bgr"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("torchvison", "there is no preprocessing 'torchvison'. Did you mean torchvision?\n"),
        ("paddle,resize=big", "resize=big cannot be read.\nWrite the short side in pixels"),
        ("nowhere.json", "nowhere.json: there is no such file."),
        ("paddle,crop=288", "makes 288x288 crops, small takes 224x224.\nOmit --preprocess"),
    ],
)
def test_refused(text: str, message: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("a", "--preprocess", text) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") <= 2


def test_refused_from_python() -> None:
    with pytest.raises(UsageError, match="there is no key 'resiz'"):
        Request(data="/val", preprocess="paddle,resiz=3")


CONFIG = """name = "mine"
model = "small"
images = 4
[reference]
source = "here"
top1 = 0
"""
TOLERANCE = '[tolerance."{}"]\nimages = 4\nreason = "none"\n'


@pytest.mark.parametrize(
    ("tolerance", "verdict"),
    [
        ("", "NO_REFERENCE"),
        ("torchvision", "NO_REFERENCE"),
        (RECIPE, "PASS"),
        ("torchvision,exif=off,interpolation=bicubic,resize=235", "PASS"),
    ],
)
def test_compared_only_with_a_tolerance_for_the_recipe(
    tolerance: str, verdict: str, run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(CONFIG + (TOLERANCE.format(tolerance) if tolerance else ""))
    words = ("--config", str(path), "--preprocess", RECIPE, "--image-set", "val")
    code = run("a", *words)
    (row,) = rows_of(tmp_path / "a/summary.csv")
    assert (code, row["verdict"]) == (0, verdict)
    assert row["tolerance"] == ("4" if verdict == "PASS" else "")


def test_the_models_own_tolerance(val: Path, weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(CONFIG.replace('"small"', '"timm:test_resnet"') + TOLERANCE.format("own"))
    source = open_source(Request(data=val, config=path))
    own = "torchvision,resize=168,crop=160,mean=0.5,std=0.5"
    assert choose_preprocess(source).name == own
    assert published_of(source).tolerance == {own: Tolerance(4, "none")}


def test_no_step_of_a_librarys_transform_can_be_changed(val: Path) -> None:
    class Source:
        request = Request(data=val, model="timm:x", preprocess="own,channels=bgr")
        name = "x"
        published = VariantConfig("x", "x", 1, {}, {})

        def own_preprocess(self) -> Preprocess:
            own = Preprocess.of(Recipe())
            return Preprocess("own", "a transform", own.crop, own.table)

    with pytest.raises(UsageError, match=r"own,channels=bgr: the own preprocessing of x is a tra"):
        choose_preprocess(Source())  # type: ignore[arg-type]


def test_a_cache_is_of_one_recipe(run: Run, tmp_path: Path) -> None:
    cache = ("--cache", str(tmp_path / "cache"))
    texts = (RECIPE, f"{RECIPE},mean=0.5/0.25/0.125", "torchvision,resizer=tensor")
    for text in texts:
        assert run(text.replace("/", "_"), "--preprocess", text, *cache) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 3
    decoders = [json.loads(p.read_text())["decoders"] for p in tmp_path.glob("cache/*/cache.json")]
    assert sorted("torch" in each for each in decoders) == [False, False, True]


def test_an_audit_measures_with_the_recipe_of_the_result(
    run: Run, val: Path, weights: Path, tmp_path: Path
) -> None:
    assert run("a", "--preprocess", RECIPE) == 0
    words = ["--data", str(val), "--weights", str(weights), "--variant", "small", "--quiet"]
    found = tmp_path / "audit.json"
    (tmp_path / "a" / "report.html").unlink()  # a stand-in: see `_no_page`
    assert eval.audit.main([str(tmp_path / "a"), *words, "--json", str(found)]) == 0
    assert json.loads(found.read_text())["outcome"] == "confirmed"


def test_results_of_a_recipe_are_compared(run: Run, tmp_path: Path) -> None:
    assert run("a", "--preprocess", RECIPE) == 0
    words = ["--baseline", str(tmp_path / "a")]
    assert run("b", "--preprocess", RECIPE, *words) == 0
    assert run("c", "--preprocess", "torchvision", *words) == 2
    assert run("d", "--preprocess", "torchvision") == 0
    both = ["--baseline", str(tmp_path / "a"), "--candidate"]
    assert eval.regression.main([*both, str(tmp_path / "b")]) == 0
    assert eval.regression.main([*both, str(tmp_path / "d")]) == 2


def test_scores_are_of_a_recipe(run: Run, val: Path, tmp_path: Path) -> None:
    assert run("a", "--preprocess", RECIPE) == 0
    rows = rows_of(tmp_path / "a/predictions.csv")
    lines = ["name," + ",".join(f"top{k}" for k in range(1, 6))]
    lines += [
        ",".join([row["path"], *(row[f"unfused_top{k}"] for k in range(1, 6))]) for row in rows
    ]
    (tmp_path / "p.csv").write_text("\n".join(lines) + "\n")
    words = [str(tmp_path / "p.csv"), "--data", str(val), "--variant", "small", "--quiet"]
    said = "torchvision,resize=235,exif=off,interpolation=bicubic"
    assert eval.score.main([*words, "--preprocess", said, "--output", str(tmp_path / "s")]) == 0
    (row,) = rows_of(tmp_path / "s/summary.csv")
    assert row["preprocess"] == RECIPE
    assert eval.score.main([*words, "--preprocess", "own", "--output", str(tmp_path / "t")]) == 2


def test_a_sweep_takes_a_list_of_recipes(val: Path, weights: Path, tmp_path: Path) -> None:
    recipes = f"{RECIPE},own,paddle,mean=0.5/0.25/0.125"
    words = ["--data", str(val), "--variant", "small", "--weights", str(weights), "--quiet"]
    assert eval.sweep.main([*words, "--preprocess", recipes, "--output", str(tmp_path / "s")]) == 0
    said = [row["preprocess"] for row in rows_of(next((tmp_path / "s").glob("*.csv")))]
    assert said == [RECIPE, "own", "paddle,mean=0.5/0.25/0.125"]
    assert (
        eval.sweep.main([*words, "--preprocess", "paddle,x=1", "--output", str(tmp_path / "t")])
        == 2
    )


def test_pixels_of_the_run_are_those_of_the_recipe(val: Path, weights: Path) -> None:
    """By the crops that the evaluation itself would make."""
    request = Request(
        data=val, variant="small", weights=weights, preprocess=RECIPE, forms="unfused"
    )
    chosen = choose_preprocess(open_source(request))
    data = next(val.glob("*/*.JPEG")).read_bytes()
    assert (chosen.crop(data) == crop_of(parse(RECIPE), data)).all()
    evaluation = evaluate(request)
    assert list(evaluation.summary["preprocess"]) == [RECIPE]
