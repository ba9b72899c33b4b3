"""Predictions made elsewhere: every format gives the same counts, and nothing is guessed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import regression, score
from eval.errors import DataError, EvalError, LogitsError, UsageError
from eval.images.classes import imagenet_classes
from eval.images.valset import Sample
from eval.measure import given as predictions
from eval.measure.given import Answers, Logits, Ranked, match
from eval.metrics import Kind, Scores

LABELS = (0, 0, 134, 134, 517, 517, 999, 999)  # tench, both cranes, toilet tissue
# Of each image, the place of its label among the answers.
PLACES = (0, 3, 0, 7, 1, 0, 4, 5)
TOP1, TOP5 = 3, 6


def read_answers(path: Path, names: Path | None = None, array: str | None = None) -> Answers:
    return predictions.read_answers(path, 1000, names, array)


def image_name(i: int) -> str:
    return f"photo_{i}.JPEG"


@pytest.fixture
def val(val_folder: Callable[..., Path]) -> Path:
    files: dict[str, list[str]] = {}
    for i, label in enumerate(LABELS):
        files.setdefault(imagenet_classes()[label].synset, []).append(image_name(i))
    return val_folder(files)


def ranked_classes(places: int = 10) -> list[list[int]]:
    """The answers to each image, best first: the other crane where there is one, then others."""
    rows = []
    for label, place in zip(LABELS, PLACES, strict=True):
        other = {134: [517], 517: [134]}.get(label, [])
        rest = [*other, *(c for c in range(200, 300))]
        rows.append([*rest[:place], label, *rest[place:]][:places])
    return rows


def logits() -> np.ndarray:
    """Logits with the order of `ranked_classes`."""
    values = np.random.default_rng(0).uniform(-9, -8, (len(LABELS), 1000)).astype(np.float32)
    for row, classes in zip(values, ranked_classes(), strict=True):
        row[classes] = np.arange(10, 0, -1)
    return values


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def as_csv(folder: Path, order: Sequence[int] = range(8), places: int = 5) -> Path:
    header = ["path", *(f"top{k}" for k in range(1, places + 1))]
    rows = ranked_classes(places)
    return write_csv(
        folder / "answers.csv",
        [header, *([f"/on/device/{image_name(i)}", *rows[i]] for i in order)],
    )


def as_relay(folder: Path, order: Sequence[int] = range(8)) -> Path:
    lines = [
        f"/data/val/n0/{image_name(i)}: Relay top-{k} id: {label}, prob: {0.5 / 2**k:.8f}, "
        f"class name: {imagenet_classes()[label].name}\n"
        for i in order
        for k, label in enumerate(ranked_classes(5)[i])
    ]
    (folder / "result.txt").write_text("".join(lines))
    return folder / "result.txt"


def scored(answers: Answers) -> Scores:
    """Scores in the order of the images."""
    samples = [Sample(f"x/{image_name(i)}", label) for i, label in enumerate(LABELS)]
    rows = match(answers.names, samples)
    return answers.scores(np.array([rows[i] for i in range(len(rows))]), np.array(LABELS))


# --- Formats


def _arrays(folder: Path) -> tuple[Path, Path]:
    np.save(folder / "x.npy", logits())
    (folder / "names.txt").write_text("".join(f"val/{image_name(i)} 65\n" for i in range(8)))
    return folder / "x.npy", folder / "names.txt"


def _npz(folder: Path, **changes: Any) -> Path:
    names = np.array([image_name(i) for i in range(8)])
    np.savez(folder / "x.npz", **({"logits": logits(), "path": names} | changes))
    return folder / "x.npz"


FORMATS: dict[str, Callable[[Path], Answers]] = {
    "csv": lambda folder: read_answers(as_csv(folder)),
    "csv in another order": lambda folder: read_answers(as_csv(folder, [3, 1, 0, 2, 7, 6, 5, 4])),
    "csv of ten classes": lambda folder: read_answers(as_csv(folder, places=10)),
    "csv with one column of classes": lambda folder: read_answers(
        write_csv(
            folder / "a.csv",
            [["name", "classes"]]
            + [[image_name(i), " ".join(map(str, row))] for i, row in enumerate(ranked_classes())],
        )
    ),
    "relay": lambda folder: read_answers(as_relay(folder)),
    "npy": lambda folder: read_answers(*_arrays(folder)),
    "npz": lambda folder: read_answers(_npz(folder)),
    "npz of bytes and half precision": lambda folder: read_answers(
        _npz(folder, logits=logits().astype(np.float16),
             path=np.array([image_name(i).encode() for i in range(8)]))
    ),
    "npz of quantized integers": lambda folder: read_answers(
        _npz(folder, logits=np.rint(logits() * 10).astype(np.int8))
    ),
    "npz in the layout of a convolution": lambda folder: read_answers(
        _npz(folder, logits=logits().reshape(8, 1000, 1, 1))
    ),
    "names of files that were made from images": lambda folder: read_answers(
        _npz(folder, path=np.array([f"out\\photo_{i}.JPEG.npz" for i in range(8)]))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_counts(name: str, tmp_path: Path) -> None:
    scores = scored(FORMATS[name](tmp_path))
    assert (scores.correct(1), scores.correct(5)) == (TOP1, TOP5)
    np.testing.assert_array_equal(scores.top, ranked_classes(5))
    last = 10 if isinstance(FORMATS[name](tmp_path), Logits) or "ten" in name else 5
    if "column" not in name:
        np.testing.assert_array_equal(scores.rank, np.minimum(PLACES, last))


def test_the_two_cranes_are_two_classes(tmp_path: Path) -> None:
    """By name, image 4 (a crane answered with the other crane first) would be correct."""
    scores = scored(read_answers(as_relay(tmp_path)))
    names = [imagenet_classes()[label].name for label in (134, 517)]
    assert names == ["crane", "crane"]
    assert LABELS[4] == 517
    assert scores.top[4, 0] == 134
    assert scores.rank[4] == 1


def test_logits_give_ranks_probabilities_and_likelihoods(tmp_path: Path) -> None:
    scores = scored(read_answers(_npz(tmp_path)))
    values = logits().astype(np.float64)
    prob = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scores.prob, -np.sort(-prob, axis=1)[:, :5], rtol=1e-9)
    np.testing.assert_allclose(scores.nll, -np.log(prob[range(8), LABELS]), rtol=1e-9)


def test_probabilities_are_not_taken_for_logits(tmp_path: Path) -> None:
    values = logits().astype(np.float64)
    prob = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
    answers = read_answers(_npz(tmp_path, logits=prob.astype(np.float32)))
    assert isinstance(answers, Logits)
    assert answers.kind is Kind.PROBABILITIES
    scores = scored(answers)
    np.testing.assert_allclose(scores.prob, -np.sort(-prob, axis=1)[:, :5], rtol=1e-5)
    np.testing.assert_allclose(scores.nll, -np.log(prob[range(8), LABELS]), rtol=1e-5)
    # Rounded to 8 bits most are 0: the likelihood is unknown, and not infinite.
    rounded = np.rint(prob * 128) / 128
    scores = scored(read_answers(_npz(tmp_path, logits=rounded)))
    assert (scores.correct(1), scores.mean_nll) == (TOP1, None)


def test_what_a_sigmoid_gives_only_ranks(tmp_path: Path) -> None:
    answers = read_answers(_npz(tmp_path, logits=1 / (1 + np.exp(-logits()))))
    assert "as after a sigmoid" in answers.description
    scores = scored(answers)
    assert (scores.correct(1), scores.mean_nll) == (TOP1, None)
    assert np.isnan(scores.prob).all()


def test_probabilities_beside_ranked_classes_are_kept(tmp_path: Path) -> None:
    scores = scored(read_answers(as_relay(tmp_path)))
    np.testing.assert_array_equal(scores.prob[0], [0.5, 0.25, 0.125, 0.0625, 0.03125])
    header = ["path", *(f"top{k}" for k in range(1, 6)), *(f"prob{k}" for k in range(1, 6))]
    for first, known in ((0.5, True), (12.5, False)):  # the second ones are raw scores
        values = [first / 2**k for k in range(5)]
        rows = [[image_name(i), *ranked_classes(5)[i], *values] for i in range(8)]
        answers = read_answers(write_csv(tmp_path / "p.csv", [header, *rows]))
        assert cast(Ranked, answers).prob is not None or not known
        assert np.isnan(scored(answers).prob).all() == (not known)


def test_one_of_several_arrays_is_named(tmp_path: Path) -> None:
    path = _npz(tmp_path, other=-logits(), label=np.arange(8))
    assert scored(read_answers(path, array="logits")).correct(1) == TOP1
    assert scored(read_answers(path, array="other")).correct(1) == 0
    for array in (None, "nothing"):
        with pytest.raises(UsageError, match="contains the arrays logits, other, label: name"):
            read_answers(path, array=array)


@given(st.lists(st.permutations(range(8)), min_size=1, max_size=5), st.integers(0, 7))
def test_a_label_that_is_not_listed_is_behind_all_that_are(
    rows: list[list[int]], label: int
) -> None:
    classes = np.array([row[:5] for row in rows])
    answers = Ranked(tuple(map(str, range(len(rows)))), classes, None)
    scores = answers.scores(np.arange(len(rows)), np.full(len(rows), label))
    expected = [row.index(label) if row.index(label) < 5 else 5 for row in rows]
    assert scores.rank.tolist() == expected


# --- What is refused


def _relay(text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "r.txt").write_text(text)
        return folder / "r.txt"

    return write


def _edited(make: Callable[[Path], Path], *edits: tuple[str, str]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = make(folder)
        text = path.read_text()
        for old, new in edits:
            assert old in text
            text = text.replace(old, new, 1)
        path.write_text(text)
        return path

    return write


def _written(name: str, data: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def _pickled(save: Callable[..., None]) -> bytes:
    """Objects, of the size of logits."""
    file = io.BytesIO()
    save(file, np.full((8, 1000), {"a": 1}, dtype=object))
    return file.getvalue()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (_written("x.csv", b""), DataError, "x.csv is empty: a header"),
        (_written("x.csv", b"path,top1,top2,top3,top4,top5\n"), DataError, "no predictions"),
        (_written("x.csv", b"\xff\xfd"), DataError, "is not a UTF-8 text file"),
        (_written("x.csv", b"path,classes\na,1 2\nb,1\n"), DataError, "1 ranked classes for b, 2"),
        (_written("x.csv", b"photo,top1\na,1\n"), DataError, "columns photo, top1"),
        (_written("x.csv", b"path,label\na,1\n"), DataError, "Needed: path or name, and top1"),
        (_edited(as_csv, (",200,", ",200,1,")), DataError, "row 1 has 7 of 6 columns"),
        (_edited(as_csv, (",200,", ",1000,")), DataError, "class 1000; classes are 0 to 999"),
        (_edited(as_csv, (",200,", ",-1,")), DataError, "class -1; classes"),
        (_edited(as_csv, (",200,", ",crane,")), DataError, "class crane; classes"),
        (_edited(as_csv, (",200,", ",201,")), DataError, "has a class twice: 0 201 201"),
        (_edited(as_relay, ("top-1 id", "top-2 id")), DataError, "line 2: top-2 .* out of order"),
        (_edited(as_relay, ("0.25000000", "nan")), LogitsError, "is NaN or infinite"),
        (_edited(as_relay, ("0.25000000", "0.75")), DataError, "not best first"),
        (_edited(as_relay, ("0.25", "high")), DataError, "could not convert"),
        (_edited(as_relay, ("\n", "\nDone in 3 s\n")), DataError, "line 2 is not a prediction"),
        (_relay("a.JPEG: Relay top-1 id: 1, prob: 1, class name: x\n"), DataError, "out of order"),
        (lambda folder: _npz(folder, logits=logits().reshape(8, 50, 20)), DataError, "8 x 50 x 20"),
        (lambda folder: _npz(folder, logits=logits()[:7]), DataError, "7 x 1000 for 8 names"),
        (lambda folder: _npz(folder, logits=np.zeros((8, 1001))), DataError, "is a backgr"),
        (lambda folder: _npz(folder, logits=np.zeros((8, 1000))), LogitsError, "same value"),
        (lambda folder: _npz(folder, logits=logits() * np.nan), LogitsError, "NaN or infinity"),
        (lambda folder: _npz(folder, logits=logits() > 3), DataError, "bool, not real numbers"),
        (lambda folder: _npz(folder, path=np.arange(8)), DataError, "not a list of strings"),
        (lambda folder: _npz(folder, path=np.array([b"\xff"] * 8)), DataError, "not valid UTF-8"),
        (_written("x.npz", b"PK\x03\x04 no zip"), DataError, "cannot be read as numbers"),
        (_written("x.npy", b"\x93NUMPY\x01\x00"), DataError, "cannot be read as numbers"),
        (_written("x.npy", _pickled(np.save)), DataError, "reading them could run code"),
        (_written("x.npz", _pickled(np.savez)), DataError, "reading them could run code"),
        (lambda folder: folder / "nothing.csv", UsageError, "no such file of predictions"),
        (lambda folder: folder, UsageError, "no such file of predictions"),
    ],
)  # fmt: skip
def test_what_is_no_prediction_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], error: type[EvalError], message: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(error, match=message) as caught:
        read_answers(path)
    assert len(str(caught.value).splitlines()) <= 2


def test_arrays_need_names_once(tmp_path: Path) -> None:
    path, names = _arrays(tmp_path)
    with pytest.raises(UsageError, match="does not say which row is which image"):
        read_answers(path)
    with pytest.raises(UsageError, match="contains the names: omit --names"):
        read_answers(_npz(tmp_path), names)
    with pytest.raises(UsageError, match=r"--names .* no such file"):
        read_answers(path, tmp_path / "nothing.txt")
    for options in ({"names": names}, {"array": "unfused"}):
        with pytest.raises(UsageError, match=r"needs no --names: omit it|omit --array unfused"):
            read_answers(as_csv(tmp_path), **options)  # type: ignore[arg-type]
    names.write_text("".join(f"{image_name(i)}\n" for i in range(7)))
    with pytest.raises(DataError, match=r"an array of 8 x 1000 for 7 names; 7 x 1000 are needed"):
        read_answers(path, names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.JPEG", "b.JPEG", "x/a.JPEG"], "Predicted more than once: a"),
        (["a.JPEG", "c.JPEG"], "Not in --data: c.JPEG"),
        (["a.JPEG", "b"], None),
        (["C:\\photos\\a.JPEG", "x\\y/b.bin"], None),
        (["ILSVRC2012_val_00000001.JPEG"], "Not in --data"),
    ],
)
def test_images_are_matched_by_name(names: list[str], message: str | None) -> None:
    samples = [Sample("n0/a.JPEG", 0), Sample("n1/b.jpg", 1)]
    if message is None:
        assert match(names, samples) == {0: 0, 1: 1}
        return
    with pytest.raises(DataError, match=message):
        match(names, samples)


def test_a_backslash_in_the_name_of_an_image() -> None:
    """Linux allows it; a name that another system has written separates folders with it."""
    samples = [Sample("n0/a\\b.JPEG", 0), Sample("n1/b.JPEG", 1)]
    assert match(["val/a\\b.JPEG", "n1\\b.JPEG"], samples) == {0: 0, 1: 1}
    with pytest.raises(DataError, match="more than once"):
        match(["a\\b.JPEG", "x/a\\b.jpg"], samples)


def test_predictions_of_a_model_with_three_classes(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("path,top1,top2,top3,prob1,prob2,prob3\na,2,0,1,.7,.2,.1\nb,1,0,2,.5,.3,.2\n")
    scores = predictions.read_answers(path, 3).scores(np.array([0, 1]), np.array([0, 1]))
    assert scores.rank.tolist() == [1, 0]
    assert scores.top.tolist() == [[2, 0, 1, -1, -1], [1, 0, 2, -1, -1]]
    assert scores.prob[:, :3].tolist() == [[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]]
    with pytest.raises(DataError, match="class 2; classes are 0 to 1"):
        predictions.read_answers(path, 2)
    for row in ([1.0, 2.0, 4.0], [0.1, 0.2, 0.7]):  # logits, probabilities
        np.savez(tmp_path / "p.npz", logits=[row], path=["a"])
        answers = predictions.read_answers(tmp_path / "p.npz", 3)
        scores = answers.scores(np.array([0]), np.array([1]))
        assert scores.rank.tolist() == [1]
        assert scores.top.tolist() == [[2, 1, 0, -1, -1]]
        assert np.isnan(scores.prob[0]).tolist() == [False, False, False, True, True]


def test_names_that_repeat_in_the_val_set_are_refused() -> None:
    with pytest.raises(DataError, match="images of the same name"):
        match(["a.JPEG"], [Sample("n0/a.JPEG", 0), Sample("n1/a.JPEG", 1)])


# --- The command line


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take a second; one test has them."""
    monkeypatch.setattr("eval.results.html.html_report", lambda *_: "")


@pytest.fixture
def run(val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run the command line: exit code, stdout and stderr."""

    def call(predictions: Path, *options: str) -> tuple[int, str, str]:
        sides = ["--data", str(val), "--output", str(tmp_path / "out"), "--variant", "base"]
        sides += ["--image-set", "val"]
        code = score.main([str(predictions), *sides, *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def summary_of(folder: Path) -> dict[str, str]:
    (row,) = csv.DictReader((folder / "summary.csv").read_text().splitlines())
    return row


def test_the_files_of_a_run_of_our_own_are_written(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"model")
    code, out, err = run(
        as_relay(tmp_path, [7, 6, 5, 4, 3, 2, 1, 0]), "--preprocess", "squash", "--precision",
        "int8", "--device", "VA1", "--weights", str(tmp_path / "model.bin"),
    )  # fmt: skip
    assert code == 0
    assert "hashing images" in err
    for text in ("37.500        3   75.000        6", "76.482", "74.658", "rank 5 means 5 or more",
                 "PARTIAL  scored: 8 of 50,000 images"):  # fmt: skip
        assert text in out
    assert "nan" not in out.lower()
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files >= {"summary.csv", "predictions.csv", "per_class.csv", "run.json", "report.html"}
    row = summary_of(tmp_path / "out")
    expected = {
        "variant": "base", "form": "scored", "backend": "external", "device": "VA1",
        "precision": "int8", "preprocess": "squash", "images": "8", "images_expected": "50000",
        "bad_images": "0", "top1_correct": "3", "top5_correct": "6", "verdict": "PARTIAL",
        "nll": "", "max_abs_logit_diff": "", "images_per_second": "", "seconds": "0.0",
        "params": "",
        "weights_sha256": "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4",
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    document = json.loads((tmp_path / "out" / "run.json").read_text(), parse_constant=pytest.fail)
    assert document["settings"]["answers"] == "5 top classes; rank 5 means 5 or more"
    assert document["largest_logit"] is None
    page = (tmp_path / "out" / "report.html").read_text()
    assert "label not among the top 5<" in page
    assert "at position 6" not in page
    lines = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    assert lines[1] == (
        f"0,{imagenet_classes()[0].synset}/photo_0.JPEG,0,0,0,200,201,202,203,"
        "0.5,0.25,0.125,0.0625,0.03125"
    )


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("column", ["target", "Ground Truth", "true_label", "gt"])
def test_true_labels_that_contradict_those_of_the_images(
    column: str, run: Callable[..., Any], tmp_path: Path
) -> None:
    """They may be numbers or names; what is neither says nothing. The result is the same."""
    said = ["0", "n01440764", "134.0", "134", "toilet", "517", "nonsense", ""]
    rows = [[image_name(i), row[0], said[i]] for i, row in enumerate(ranked_classes())]
    path = write_csv(tmp_path / "p.csv", [["path", "top1", column], *rows])
    code, out, _ = run(path, "--quiet")
    assert code == 0
    assert "contradicts" not in out
    rows[1][2], rows[3][2] = "1", "n01443537"
    write_csv(path, [["path", "top1", column], *rows])
    code, out, _ = run(path, "--quiet")
    assert code == 0
    (line,) = [line for line in out.splitlines() if "contradicts" in line]
    assert line.startswith(f"The column {column} of {path} contradicts the labels of --data for ")
    assert " for 2 of 5 images: " in line
    assert summary_of(tmp_path / "out")["top1_correct"] == str(TOP1)


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("column", ["label", "target_name", "class"])
def test_columns_that_may_be_predicted_labels(
    column: str, run: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [[image_name(i), row[0], 7] for i, row in enumerate(ranked_classes())]
    path = write_csv(tmp_path / "p.csv", [["path", "top1", column], *rows])
    assert "contradicts" not in run(path, "--quiet")[1]


@pytest.mark.usefixtures("no_page")
def test_labels_of_our_own_predictions(run: Callable[..., Any], tmp_path: Path) -> None:
    assert run(as_csv(tmp_path), "--quiet")[0] == 0
    path = (tmp_path / "out").rename(tmp_path / "own") / "predictions.csv"
    code, out, err = run(path, "--quiet")
    assert code == 0, err
    assert "contradicts" not in out
    header, first, *rest = path.read_text().splitlines()
    changed = first.split(",")
    changed[header.split(",").index("label")] = "3"
    path.write_text("\n".join([header, ",".join(changed), *rest, ""]))
    code, out, err = run(path, "--quiet")
    assert code == 0, err
    assert "column label of" in out


@pytest.mark.usefixtures("no_page")
def test_ties_of_predictions_are_shown(run: Callable[..., Any], tmp_path: Path) -> None:
    values = logits()
    values[0, 500] = values[0].max()
    code, out, _ = run(_npz(tmp_path, logits=values), "--quiet")
    assert code == 0
    assert "scored: 1 of 8 images have several classes with the largest output" in out


@pytest.mark.usefixtures("no_page")
def test_a_scored_result_can_be_gated(run: Callable[..., Any], tmp_path: Path) -> None:
    """int8 against fp32 of the same val set: same images, other weights, other answers."""
    assert run(_npz(tmp_path), "--quiet")[0] == 0
    (tmp_path / "out").rename(tmp_path / "fp32")
    changed = logits()
    changed[0, LABELS[0]] = -20
    assert run(_npz(tmp_path, logits=changed), "--quiet")[0] == 0
    sides = ["--baseline", str(tmp_path / "fp32"), "--candidate", str(tmp_path / "out")]
    assert regression.main(sides) == 2  # nobody knows whether the weights are the same
    assert regression.main([*sides, "--allow-other-weights"]) == 1
    assert regression.main([*sides, "--allow-other-weights", "--max-drop-top1", "1",
                            "--max-drop-top5", "1"]) == 0  # fmt: skip


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize(
    ("options", "verdict", "code", "told"),
    [
        ((), "NO_REFERENCE", 0, "--preprocess and --precision not stated, and no --tolerance"),
        (("--preprocess", "paddle"), "NO_REFERENCE", 0, "--precision not stated"),
        (("--preprocess", "paddle", "--precision", "fp32"), "PASS", 0, "top-1 +0, top-5"),
        (("--preprocess", "paddle", "--precision", "int8"), "NO_REFERENCE", 0, "a int8 run"),
        (("--preprocess", "squash", "--precision", "fp32"), "NO_REFERENCE", 0, "no tolerance for"),
        (("--tolerance", "0"), "PASS", 0, "tolerance 0"),
        (("--reference", "int8", "--tolerance", "2"), "FAIL", 1, "top-1 +3 images vs. reference"),
        (("--reference", "int8", "--tolerance", "3"), "PASS", 0, "top-1 +3 images vs. reference"),
        (("--reference", "int8", "--preprocess", "paddle", "--precision", "fp32"),
         "NO_REFERENCE", 0, "no tolerance for"),
    ],
)  # fmt: skip
def test_the_verdict_needs_a_statement(
    run: Callable[..., Any],
    tmp_path: Path,
    val: Path,
    options: tuple[str, ...],
    verdict: str,
    code: int,
    told: str,
) -> None:
    """A full set of 8 images, of which 37.5 and 75 % are reported."""
    (tmp_path / "eight.toml").write_text(
        'name = "eight"\nmodel = "base"\nimages = 8\n'
        '[reference]\ntop1 = 37.5\ntop5 = 75.0\nsource = "x"\n'
        '[tolerance.paddle]\nimages = 0\nreason = "x"\n'
        '[[others]]\nname = "int8"\ntop1 = 0.0\nsource = "y"\n'
    )
    sides = ["--data", str(val), "--output", str(tmp_path / "out"), "--quiet"]
    sides += ["--config", str(tmp_path / "eight.toml"), "--image-set", "val"]
    assert score.main([str(as_csv(tmp_path)), *sides, *options]) == code
    assert summary_of(tmp_path / "out")["verdict"] == verdict
    results = json.loads((tmp_path / "out" / "run.json").read_text())["results"]
    assert told in results[0]["reason"]


@pytest.mark.usefixtures("no_page")
def test_a_tolerance_gates_a_figure_that_is_otherwise_for_information(
    run: Callable[..., Any], tmp_path: Path, val: Path
) -> None:
    (tmp_path / "eight.toml").write_text(
        'name = "eight"\nmodel = "small"\nimages = 8\n'
        '[reference]\ntop1 = 50.0\ngated = false\nsource = "x"\n'
    )
    sides = [str(as_csv(tmp_path)), "--data", str(val), "--output", str(tmp_path / "out")]
    sides += ["--config", str(tmp_path / "eight.toml"), "--quiet", "--image-set", "val"]
    assert score.main(sides) == 0
    assert score.main([*sides, "--tolerance", "0"]) == 1
    assert score.main([*sides, "--tolerance", "1"]) == 0


def test_a_crash_does_not_look_like_a_difference(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("eval.jobs.score.open_data", crash)
    code, out, err = run(as_csv(tmp_path))
    assert (code, out) == (70, "")
    assert "ZeroDivisionError: a bug" in err


@pytest.mark.usefixtures("no_page")
def test_a_subset_is_scored_only_when_asked_and_never_passes(
    run: Callable[..., Any], tmp_path: Path, val: Path
) -> None:
    path = as_csv(tmp_path, [0, 1, 2, 5, 6])
    code, out, err = run(path, "--quiet")
    assert (code, out) == (3, "")
    assert "No prediction for" in err
    assert "photo_3.JPEG" in err
    assert "3 in all" not in err  # all three are named
    assert not (tmp_path / "out").exists()
    code, out, _ = run(path, "--quiet", "--allow-missing", "--tolerance", "50000")
    assert code == 0
    assert "without 3 images that have no prediction" in out
    row = summary_of(tmp_path / "out")
    assert (row["images"], row["top1_correct"], row["verdict"]) == ("5", "3", "PARTIAL")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--reference", "Vast int4"), 2, "it has 'Vast fp16', 'Vast int8'"),
        (("--weights", "nothing.bin"), 2, "--weights nothing.bin: there is no such file"),
        (("--config", "x.toml"), 2, "--config and --variant both name"),
        (("--labels", "nothing.txt"), 3, "nothing.txt cannot be read"),
    ],
)
def test_wrong_options(
    run: Callable[..., Any], tmp_path: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    found, out, err = run(as_csv(tmp_path), *options)
    assert (found, out) == (code, "")
    assert message in err
    assert err.startswith("error: ")


def test_a_file_that_was_appended_to_twice_is_refused(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    path = as_relay(tmp_path)
    path.write_text(path.read_text() * 2)
    code, _, err = run(path)
    assert code == 3
    assert "Predicted more than once: photo_0, photo_1, photo_2, ... (8 in all)" in err


def test_a_val_set_that_cannot_be_read_is_an_error(
    run: Callable[..., Any], tmp_path: Path, val: Path
) -> None:
    image = val / imagenet_classes()[0].synset / image_name(0)
    image.unlink()
    image.symlink_to(tmp_path / "nowhere.JPEG")
    code, _, err = run(as_csv(tmp_path))
    assert code == 3
    assert "photo_0.JPEG" in err


@pytest.mark.usefixtures("no_page")
def test_the_official_answers_of_the_real_photos(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The official implementation's own logits are counted as it counts them."""
    counts = json.loads((shared / "oracle" / "counts.json").read_text())
    for preprocess in ("paddle", "torchvision"):
        code = score.main([
            str(shared / "oracle" / "base_logits.npz"), "--array", preprocess, "--data",
            str(shared / "imagenet-sample" / "val"), "--variant", "base", "--preprocess",
            preprocess, "--output", str(tmp_path / preprocess), "--quiet",
        ])  # fmt: skip
        assert code == 0
        row = summary_of(tmp_path / preprocess)
        expected = counts[preprocess]
        assert int(row["top1_correct"]) == expected["top1_correct"]
        assert int(row["top5_correct"]) == expected["top5_correct"]
