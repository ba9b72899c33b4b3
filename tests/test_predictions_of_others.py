"""Files of predictions as their tools write them: the same three images, in every format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import ROOT

from eval.errors import DataError, EvalError, LogitsError, UsageError
from eval.measure.given import Answers, Logits, Ranked, read_answers, tables

NAMES = ["a.JPEG", "b.JPEG", "c.JPEG"]
TOP = [[65, 3, 8, 1, 2], [970, 0, 5, 4, 999], [7, 6, 5, 4, 3]]
PROB = [[0.5, 0.25, 0.125, 0.0625, 0.03125]] * 3
FIRST = [row[:1] for row in TOP]

Make = Callable[[Path], Any]


def logits() -> np.ndarray:
    """Values of which the greatest five are the classes of `TOP`, in that order."""
    values = np.random.default_rng(0).uniform(-9, -8, (3, 1000)).astype(np.float32)
    for row, classes in zip(values, TOP, strict=True):
        row[classes] = [5, 4, 3, 2, 1]
    return values


def text(name: str, content: str) -> Make:
    return lambda folder: (folder / name).write_text(content)


def columns(stem: str, rows: Any = TOP, first: int = 1) -> dict[str, Any]:
    return {f"{stem}{first + k}": [row[k] for row in rows] for k in range(len(rows[0]))}


def table(write: Callable[[pd.DataFrame, Path], object], **cells: Any) -> Make:
    return lambda folder: write(pd.DataFrame(cells), folder / "x")


def csv(separator: str = ",", **cells: Any) -> Make:
    return table(lambda data, path: data.to_csv(path, sep=separator, index=False), **cells)


ONE = {"filename": NAMES, "index": [65, 970, 7], "prob": [0.5] * 3}
LISTS = {  # arrays in cells, as inference.py has them
    "filename": NAMES,
    "index": [np.array(row) for row in TOP],
    "label": [np.array(["tench, Tinca tinca"] * 5, object)] * 3,
    "prob": [np.array(row, np.float32) for row in PROB],
}
APART = {
    "filename": NAMES,
    **columns("index_", first=0),
    **columns("label_", [["n0"] * 5] * 3, first=0),
    **columns("prob_", PROB, first=0),
}


def predict_cls() -> str:
    return "".join(
        f"{name}:\tclass id(s): {row}, score(s): [{', '.join(f'{p:.2f}' for p in prob)}], "
        f"label_name(s): {['a, b', 'c', 'd', 'e', 'f']}\n"
        for name, row, prob in zip(NAMES, TOP, PROB, strict=True)
    )


def infer() -> str:
    results = [
        {"class_ids": row, "scores": prob, "file_name": f"d/{name}", "label_names": ["it's, a]"]}
        for name, row, prob in zip(NAMES, TOP, PROB, strict=True)
    ]
    lines = ["Loading the model", str(results[:2]), str(results[2:])]
    return "".join(f"[2026/01/02 03:04:05] ppcls INFO: {line}\n" for line in lines)


def paddleclas() -> str:
    """As version 2.6.0 prints it, from ``python -m paddleclas.paddleclas --infer_imgs DIR``."""
    dashes, wide = "-" * 124, "+" + "-" * 122 + "+"
    title = f"{'Models supported by PaddleClas':^124}"
    models = f"{wide}\n|{'PPLCNetV2_base  PPLCNetV2_large':^122}|\n{wide}"
    results = [
        f"class_ids: {row}, scores: {prob}, label_names: ['it's, a]', 'b'], filename: d/{name}"
        for name, row, prob in zip(NAMES, TOP, PROB, strict=True)
    ]
    lines = [
        f"[2026/01/02 03:04:05] ppcls INFO: {line}" for line in [*results, "Predict complete!"]
    ]
    listed = [dashes, title, models, f"{'Powered by PaddlePaddle!':>124}", dashes]
    return "\n".join([*listed, *lines, ""])


def own(*forms: str) -> dict[str, Any]:
    found: dict[str, Any] = {"index": [0, 1, 2], "path": [f"n0/{n}" for n in NAMES]}
    found["label"] = [65, 3, 3]
    for form in forms:
        found |= {f"{form}_rank": [0, 5, 5], **columns(f"{form}_top")}
        found |= columns(f"{form}_prob", PROB)
    return found


# name: what makes the file, how many places it has, whether it has probabilities
FORMATS: dict[str, tuple[Make, int, bool]] = {
    # pandas writes what timm's inference.py --include-index writes, by the same calls.
    "timm, top-1": (csv(**ONE), 1, True),
    "timm, lists in cells": (csv(**LISTS), 5, True),
    "timm, --results-separate-col": (csv(**APART), 5, True),
    "timm, json": (
        table(lambda d, p: d.set_index("filename").to_json(p, indent=4, orient="index"), **LISTS),
        5,
        True,
    ),
    "timm, json-records": (
        table(lambda d, p: d.to_json(p, lines=True, orient="records"), **LISTS), 5, True),
    "timm, json-split": (
        table(lambda d, p: d.to_json(p, indent=4, orient="split", index=False), **APART), 5, True),
    "timm, parquet": (table(lambda d, p: d.set_index("filename").to_parquet(p), **LISTS), 5, True),
    "predict_cls.py": (text("x", predict_cls()), 5, True),
    "infer.py": (text("x", infer()), 5, True),
    "paddleclas": (text("x", paddleclas()), 5, True),
    "paddleclas, its log alone": (text("x", paddleclas().rpartition("---\n")[2]), 5, True),
    "infer.py, as json": (
        text("x", json.dumps([
            {"class_ids": row, "scores": PROB[0], "file_name": name, "label_names": ["a"] * 5}
            for name, row in zip(NAMES, TOP, strict=True)
        ])), 5, True),
    "semicolons": (csv(";", path=NAMES, **columns("top")), 5, False),
    "tabs": (csv("\t", path=NAMES, **columns("top")), 5, False),
    "capital letters": (csv(Path=NAMES, **columns("Top")), 5, False),
    "top_1": (csv(path=NAMES, **columns("top_")), 5, False),
    "top0": (csv(path=NAMES, **columns("top", first=0)), 5, False),
    "pandas' index": (
        table(lambda d, p: d.to_csv(p), path=NAMES, **columns("top")), 5, False),
    "floats": (csv(path=NAMES, **columns("top", np.array(TOP, float))), 5, False),
    "a mark of the byte order": (
        lambda folder: (folder / "x").write_bytes(
            b"\xef\xbb\xbfimage,pred\na.JPEG,65\nb.JPEG,970\nc.JPEG,7\n"), 1, False),
    "a decimal comma": (
        text("x", "filename;pred;prob\na.JPEG;65;0,5\nb.JPEG;970;0,5\nc.JPEG;7;0,5\n"), 1, True),
    "UTF-16": (
        lambda folder: (folder / "x").write_bytes(
            "image;pred\na.JPEG;65\nb.JPEG;970\nc.JPEG;7\n".encode("utf-16")), 1, False),
    "mmpretrain": (csv(img_path=NAMES, pred_label=[65, 970, 7]), 1, False),
    "top-1 alone": (csv(path=NAMES, top1=[65, 970, 7]), 1, False),
    "Kaggle's header": (csv(ImageId=NAMES, PredictionString=[65, 970, 7]), 1, False),
    "json lines": (
        text("x", "".join(json.dumps({"path": n, "top5": row}) + "\n"
                          for n, row in zip(NAMES, TOP, strict=True))), 5, False),
    "json by image": (text("x", json.dumps(dict(zip(NAMES, TOP, strict=True)))), 5, False),
    "json, one class": (text("x", json.dumps({n: r[0] for n, r in zip(NAMES, TOP, strict=True)})),
                        1, False),
    "json by column": (
        table(lambda d, p: d.to_json(p), path=NAMES, **columns("top")), 5, False),
    "json under a key": (
        text("x", json.dumps({"predictions": [{"image": n, "prediction": r[0]}
                                              for n, r in zip(NAMES, TOP, strict=True)]})),
        1, False),
    "our own, of one form": (csv(**own("reparameterized")), 5, True),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_ranked_classes(name: str, tmp_path: Path) -> None:
    make, places, has_probabilities = FORMATS[name]
    make(tmp_path)
    (path,) = tmp_path.iterdir()
    answers = read_answers(path, 1000)
    assert isinstance(answers, Ranked)
    assert [name.rpartition("/")[2] for name in answers.names] == NAMES
    assert answers.classes.tolist() == [row[:places] for row in TOP]
    assert answers.known == places
    assert (answers.prob is not None) == has_probabilities
    if answers.prob is not None:
        expected = np.array(PROB)[:, :places]
        assert np.allclose(answers.prob, expected, atol=0.005 if "predict_cls" in name else 1e-6)


def save(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "x.npz", **arrays)
    return folder / "x.npz"


def torch_file(folder: Path, content: object, names: str = "") -> tuple[Path, Path | None]:
    torch.save(content, folder / "x.pt")
    if not names:
        return folder / "x.pt", None
    (folder / "names").write_text(names)
    return folder / "x.pt", folder / "names"


LISTED = "".join(f"{name}\n" for name in NAMES)
ARRAYS: dict[str, Callable[[Path], tuple[Path, Path | None]]] = {
    "names beside": lambda f: (save(f, logits=logits(), filenames=NAMES), None),
    "names under any key": lambda f: (save(f, x=logits(), y=NAMES, label=np.arange(3)), None),
    "transposed": lambda f: (save(f, logits=logits().T, path=NAMES), None),
    "batches": lambda f: (save(f, logits=logits()[:, np.newaxis], path=NAMES), None),
    "a tensor": lambda f: torch_file(f, torch.tensor(logits()), LISTED),
    "bfloat16": lambda f: torch_file(f, torch.tensor(logits()).bfloat16(), LISTED),
    "a list of batches": lambda f: torch_file(
        f, [torch.tensor(logits()[:2]), torch.tensor(logits()[2:])], LISTED),
    "tensors and names": lambda f: torch_file(
        f, {"output": torch.tensor(logits()), "names": NAMES, "epoch": 3}),
    "names.csv with labels": lambda f: torch_file(
        f, torch.tensor(logits()), "filename,label\n" + "".join(f"{n},65\n" for n in NAMES)),
    "names, and labels after a comma": lambda f: torch_file(
        f, torch.tensor(logits()), "".join(f"{n},65\n" for n in NAMES)),
    "names as json": lambda f: torch_file(f, torch.tensor(logits()), json.dumps(NAMES)),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_logits(name: str, tmp_path: Path) -> None:
    answers = read_answers(ARRAYS[name](tmp_path)[0], 1000, ARRAYS[name](tmp_path)[1])
    assert isinstance(answers, Logits)
    assert list(answers.names) == NAMES
    assert answers.scores(np.arange(3), np.array([65, 0, 0])).top.tolist() == TOP


def test_batches_of_several_images(tmp_path: Path) -> None:
    path = save(tmp_path, x=np.stack([logits()[:2], logits()[1:]]), names=[*NAMES, "d.JPEG"])
    answers = read_answers(path, 1000)
    assert answers.scores(np.arange(4), np.zeros(4, int)).top[:, 0].tolist() == [65, 970, 970, 7]


@pytest.mark.parametrize("by_column", [True, False])
def test_a_table_of_all_outputs(by_column: bool, tmp_path: Path) -> None:
    """timm's inference.py --topk 0 --output-type logit."""
    values = logits()
    cells = columns("logit_", values, first=0) if by_column else {"logit": list(values)}
    pd.DataFrame({"filename": NAMES, **cells}).to_json(tmp_path / "x", orient="records")
    answers = read_answers(tmp_path / "x", 1000)
    assert isinstance(answers, Logits)
    assert answers.scores(np.arange(3), np.zeros(3, int)).top.tolist() == TOP


def parquet(path: Path, outputs: pyarrow.Array, **columns: Any) -> Path:
    table = pyarrow.table({"filename": NAMES, "logit": outputs, **columns})
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    return path


LISTS_OF_FLOATS = [
    pyarrow.list_(pyarrow.float32()),
    pyarrow.list_(pyarrow.float64()),
    pyarrow.large_list(pyarrow.float32()),
    pyarrow.list_(pyarrow.float32(), 1000),
]


@pytest.mark.parametrize("kind", LISTS_OF_FLOATS, ids=str)
def test_lists_of_floats_make_no_objects(
    kind: pyarrow.DataType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50,000 images have 50 million outputs, which as text take gigabytes and minutes."""
    path = parquet(tmp_path / "x", pyarrow.array(logits().tolist(), kind))
    with monkeypatch.context() as patch:
        patch.setattr(tables, "_rows", None)
        found = read_answers(path, 1000)
    monkeypatch.setattr(tables, "_outputs", lambda *_: None)
    as_text = read_answers(path, 1000)
    assert isinstance(found, Logits)
    assert isinstance(as_text, Logits)
    np.testing.assert_array_equal(found.values, as_text.values)
    assert (found.names, found.kind, found.description) == (
        as_text.names, as_text.kind, as_text.description,
    )  # fmt: skip


@pytest.mark.parametrize("kind", LISTS_OF_FLOATS[:2], ids=str)
@pytest.mark.parametrize(
    ("cell", "error", "message"),
    [
        (lambda row: None, DataError, "has the columns filename, logit"),
        (lambda row: [], DataError, "has the columns filename, logit"),
        (lambda row: row[1:], DataError, "has the columns filename, logit"),
        (lambda row: [None, *row[1:]], DataError, "has the columns filename, logit"),
        (lambda row: [np.nan, *row[1:]], DataError, "has the columns filename, logit"),
        (lambda row: [np.inf, *row[1:]], LogitsError, "NaN or infinity"),
        (lambda row: [0.5] * 1000, LogitsError, "same value"),
    ],
)
def test_lists_of_floats_that_are_no_outputs(
    kind: pyarrow.DataType, cell: Any, error: type[EvalError], message: str, tmp_path: Path
) -> None:
    rows = logits().tolist()
    rows[1] = cell(rows[1])
    with pytest.raises(error, match=message):
        read_answers(parquet(tmp_path / "x", pyarrow.array(rows, kind)), 1000)


def test_lists_of_floats_beside_classes(tmp_path: Path) -> None:
    """As probabilities of the classes that are listed."""
    prob = pyarrow.array(PROB, pyarrow.list_(pyarrow.float32()))
    answers = read_answers(parquet(tmp_path / "x", prob, index=TOP), 1000)
    assert isinstance(answers, Ranked)
    assert answers.prob is not None
    assert answers.prob.tolist() == PROB


def mlperf(kind: str, rows: Any, order: Any = (2, 0, 1)) -> str:
    """As LoadGen 6.0.17 writes it, blanks included."""
    entries = [
        f'{{ "seq_id" : {place}, "qsl_idx" : {i}, "data" : '
        f'"{np.array(rows[i], kind).tobytes().hex().upper()}" }}'
        for place, i in enumerate(order)
    ]
    return "[\n" + ",\n".join(entries) + "\n]\n"


@pytest.mark.parametrize("kind", ["<i8", "<i4", "<f4"])
def test_mlperf_log_of_classes(kind: str, tmp_path: Path) -> None:
    """The top-1 class of each image, in the order of the queries; LoadGen may ask twice."""
    (tmp_path / "log.json").write_text(mlperf(kind, FIRST, (2, 0, 1, 0)))
    (tmp_path / "val_map.txt").write_text("a.JPEG 65\nb.JPEG 0\nc.JPEG 7\n")
    answers = read_answers(tmp_path / "log.json", 1000, tmp_path / "val_map.txt")
    assert isinstance(answers, Ranked)
    found = dict(zip(answers.names, answers.classes[:, 0].tolist(), strict=True))
    assert found == {"a.JPEG": 65, "b.JPEG": 970, "c.JPEG": 7}


def test_mlperf_log_of_all_outputs(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text(mlperf("<f4", logits()))
    (tmp_path / "names").write_text(LISTED)
    answers = read_answers(tmp_path / "log.json", 1000, tmp_path / "names")
    assert list(answers.names) == ["c.JPEG", "a.JPEG", "b.JPEG"]
    assert answers.scores(np.arange(3), np.zeros(3, int)).top.tolist() == [TOP[2], *TOP[:2]]


def test_a_form_of_our_own_predictions(tmp_path: Path) -> None:
    cells = own("unfused", "reparameterized")
    cells |= columns("unfused_top", [row[::-1] for row in TOP])
    pd.DataFrame(cells).to_csv(tmp_path / "predictions.csv", index=False)
    answers = read_answers(tmp_path / "predictions.csv", 1000, array="unfused")
    assert isinstance(answers, Ranked)
    assert answers.classes.tolist() == [row[::-1] for row in TOP]
    with pytest.raises(UsageError, match=r"the forms unfused, reparameterized\.\nName the one"):
        read_answers(tmp_path / "predictions.csv", 1000)
    with pytest.raises(UsageError, match=r"--array fused: .* has the forms unfused"):
        read_answers(tmp_path / "predictions.csv", 1000, array="fused")


def test_a_bad_image_of_our_own_has_no_prediction(tmp_path: Path) -> None:
    data = pd.DataFrame(own("unfused"))
    data.loc[1, [name for name in data if name.startswith("unfused_")]] = np.nan
    data.to_csv(tmp_path / "x", index=False)
    answers = read_answers(tmp_path / "x", 1000)
    assert isinstance(answers, Ranked)
    assert answers.names == ("n0/a.JPEG", "n0/c.JPEG")
    assert answers.classes.tolist() == [TOP[0], TOP[2]]


def test_what_is_known_without_the_best_five(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("path,top1\na.JPEG,65\nb.JPEG,970\n")
    scores = read_answers(tmp_path / "x", 1000).scores(np.arange(2), np.array([65, 3]))
    assert (scores.known, scores.rank.tolist(), scores.correct(1)) == (1, [0, 1], 1)


# The table in docs/inputs.md: what its examples give for a.JPEG. A maker is given the examples of a
# row, and writes each as a file; a list is read with --names.

Documented = tuple[str, list[int]]
SECTION = (ROOT / "docs/inputs.md").read_text(encoding="utf-8").partition("## Predictions")[2]
ROWS = {
    held: re.findall("`([^`]+)`", example)
    for held, example in re.findall(r"^\| (.+?) \| (.+) \|$", SECTION, re.MULTILINE)
    if held != "held as"
}


def numbered(spans: list[str]) -> Iterator[Documented]:
    """A header as it is, and others that are numbered on from their first column."""
    assert spans[0] == "path,top1,...,top5"
    for first in ("top1", *spans[1:]):
        stem, number = first[:-1], int(first[-1])
        header = ",".join(f"{stem}{number + k}" for k in range(5))
        yield f"path,{header}\na.JPEG,65,3,8,1,2\n", [65, 3, 8, 1, 2]


def in_cells(spans: list[str]) -> Iterator[Documented]:
    header, *cells = spans
    for cell in cells:
        yield f'{header}\na.JPEG,"{cell}"\n', [65, 3, 8]
    yield f"{header}\na.JPEG,65\n", [65]


def inference(spans: list[str]) -> Iterator[Documented]:
    header, *columns, everything = spans
    assert everything == "--topk 0"  # see test_a_table_of_all_outputs
    yield f"{header}\na.JPEG,65,0.5\n", [65]
    yield f"filename,{','.join(columns)}\na.JPEG,65,0.5\n", [65]


def as_shown(classes: list[int], **changes: str) -> Callable[[list[str]], Iterator[Documented]]:
    def lines(spans: list[str]) -> Iterator[Documented]:
        for span in spans:
            text = span.replace("<tab>", "\t")
            for old, new in changes.items():
                text = text.replace({"dots": "...", "more": ", ..."}[old], new)
            yield text + "\n", classes

    return lines


def in_json(spans: list[str]) -> Iterator[Documented]:
    by_image, as_object = spans
    for text in (by_image, f"[{as_object}]", f"{as_object}\n{as_object.replace('a.', 'b.')}"):
        yield text, [65, 3, 8, 1, 2]


DOCUMENTED: dict[str, Callable[[list[str]], Iterator[Documented]] | None] = {
    "a table with a column of names and one for each place": numbered,
    "with the classes in one column": in_cells,
    "timm's `inference.py --include-index`: CSV, JSON, records, split, parquet": inference,
    "PaddleClas's `predict_cls.py`": as_shown([8, 7], dots="['hen', 'cock']"),
    "PaddleClas's command `paddleclas`": as_shown([8, 7], dots="label_names: ['hen', 'cock']"),
    "PaddleClas's `infer.py`, with its log": as_shown([8, 7], more=""),
    "VastModelZOO's tools": as_shown([65], dots="tench, Tinca tinca"),
    "MLPerf's `mlperf_log_accuracy.json`": None,  # test_mlperf_log_of_classes
    "JSON by image, JSON of objects, an object a line": in_json,
    "our own `predictions.csv`, or a result folder": None,  # test_a_form_of_our_own_predictions
    "logits, probabilities or log-probabilities: `.npy`, `.npz`, `.pt`": None,  # ARRAYS
}


@pytest.mark.parametrize("held", DOCUMENTED)
def test_the_examples_of_the_documentation(held: str, tmp_path: Path) -> None:
    make = DOCUMENTED[held]
    for text_, expected in make(ROWS[held]) if make else ():
        if text_.startswith("class_ids"):  # as the command logs it
            text_ = f"[2026/01/02 03:04:05] ppcls INFO: {text_}"
        (tmp_path / "x").write_text(text_)
        answers = read_answers(tmp_path / "x", 1000)
        assert isinstance(answers, Ranked)
        assert (answers.names[0], answers.classes[0].tolist()) == ("a.JPEG", expected)


def test_every_row_of_the_documentation_is_tested() -> None:
    assert list(ROWS) == list(DOCUMENTED)


REFUSED: dict[str, tuple[Make, type[EvalError], str]] = {
    "two columns of classes": (
        csv(path=NAMES, pred=[1, 2, 3], top1=[1, 2, 3]), DataError,
        "may be the predicted classes: top1, pred"),
    "two columns of files": (
        csv(path=NAMES, image=NAMES[::-1], top1=[1, 2, 3]), DataError,
        r"names images in path \(a.JPEG\) and in image \(c.JPEG\)"),
    "numbered rows": (
        csv(filename=NAMES, index=[0, 1, 2]), DataError, "its column index numbers the rows"),
    "the label alone": (csv(path=NAMES, label=[1, 2, 3]), DataError, "Needed: path or name, and"),
    "timm without --include-index": (
        csv(filename=NAMES, label=["tench"] * 3, prob=[0.5] * 3), DataError, "--include-index"),
    "paddleclas, cut off": (text("x", paddleclas()[:600]), DataError, "no predictions"),
    "the class alone": (csv(path=NAMES, **{"class": [1, 2, 3]}), DataError, "columns path, class"),
    "names of classes": (
        csv(path=NAMES, prediction=["tench"] * 3), DataError, "a.JPEG has class tench"),
    "no header": (
        lambda folder: np.savetxt(folder / "x", logits(), delimiter=","), DataError, "no header"),
    "no json": (text("x", '{"a.JPEG": [1, 2'), DataError, "is not JSON"),
    "a key twice": (text("x", '{"a.JPEG": 1, "a.JPEG": 2}'), DataError, "a.JPEG is there twice"),
    "json of numbers": (text("x", "[1, 2, 3]"), DataError, "no table of predictions"),
    "json, too deep": (text("x", "[" * 100_000), DataError, "nested too deeply"),
    "objects of two kinds": (
        text("x", '[{"path": "a", "top1": 1}, {"path": "b", "pred": 1}]'), DataError,
        "object 1 does not have the keys of the first: pred, top1"),
    "json, a yes": (text("x", '{"a.JPEG": true}'), DataError, "a.JPEG has class True"),
    "infer.py, cut off": (text("x", infer()[:-120]), DataError, "line 3 is not what infer.py"),
    "infer.py, code": (
        text("x", "[{'class_ids': [print(1)], 'file_name': 'a'}]\n"), DataError, "line 1 is not"),
    "predict_cls.py, other output": (
        text("x", predict_cls() + "done\n"), DataError, "line 4 is not a prediction: done"),
    "no parquet": (text("x", "PAR1 and nothing"), DataError, "cannot be read as parquet"),
    "a log without its list": (text("x", mlperf("<i8", FIRST)), UsageError, "Add --names FILE"),
    "several lists of text": (
        lambda f: np.savez(f / "x.npz", a=NAMES, b=NAMES, c=logits()), UsageError,
        "several lists of text: a, b"),
    "a pickled object": (
        lambda f: torch.save({"x": torch.zeros(3, 1000), "f": print}, f / "x.pt"), DataError,
        "nothing in it was run"),
    "a tensor larger than its file": (
        lambda f: torch.save(torch.zeros(1).expand(10**6, 1000), f / "x.pt"), DataError,
        "larger than the file"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_ambiguous_or_damaged_is_refused(name: str, tmp_path: Path) -> None:
    make, error, message = REFUSED[name]
    make(tmp_path)
    (path,) = tmp_path.iterdir()
    with pytest.raises(error, match=message) as caught:
        read_answers(path, 1000)
    assert type(caught.value) is error
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("log", "names", "message"),
    [
        (mlperf("<i8", FIRST), NAMES[:2], "entry 0 is of image 2, and --names lists 2"),
        (mlperf("<i8", [[1000]] * 3), NAMES, "no classes from 0 to 999"),
        (mlperf("<f4", [[0.5]] * 3), NAMES, "no classes from 0 to 999"),
        (mlperf("<i8", FIRST)[:-3] + ', {"qsl_idx": 0, "data": "00"}]', NAMES, "two different"),
        ('[{"qsl_idx": 0, "data": "xy"}]', NAMES, "entry 0 has no qsl_idx and data"),
    ],
)
def test_logs_of_mlperf_that_are_refused(
    log: str, names: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "log.json").write_text(log)
    (tmp_path / "names").write_text("\n".join(names))
    with pytest.raises(DataError, match=message):
        read_answers(tmp_path / "log.json", 1000, tmp_path / "names")


def of_three(answers: Answers) -> list[int]:
    return answers.scores(np.arange(2), np.array([0, 1])).rank.tolist()


def test_all_classes_of_a_small_model_are_known(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("path,top1,top2,top3\na,2,0,1\nb,1,0,2\n")
    answers = read_answers(tmp_path / "x", 3)
    assert isinstance(answers, Ranked)
    assert (answers.known, of_three(answers)) == (5, [1, 0])


@pytest.mark.parametrize(("values", "places"), [(TOP, 5), ([65, 970, 7], 1)])
def test_arrays_of_classes(tmp_path: Path, values: Any, places: int) -> None:
    np.save(tmp_path / "x.npy", np.array(values))
    (tmp_path / "names").write_text("\n".join(NAMES))
    found = read_answers(tmp_path / "x.npy", 1000, tmp_path / "names")
    assert isinstance(found, Ranked)
    assert found.classes.tolist() == [row[:places] for row in TOP]


def test_the_shape_of_an_array_that_does_not_fit_is_said(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("\n".join(NAMES))
    for shape, advice in (((3, 1001), "a background class"), ((2, 1000), "exactly these images")):
        np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=shape))
        with pytest.raises(DataError, match=f"{shape[0]} x {shape[1]} for 3 names.*\n.*{advice}"):
            read_answers(tmp_path / "x.npy", 1000, tmp_path / "names")


@pytest.mark.parametrize("cell", ["n01440764", "tench", "-1"])
def test_names_are_no_indices(tmp_path: Path, cell: str) -> None:
    (tmp_path / "x").write_text(f"path,top1\na.JPEG,{cell}\n")
    with pytest.raises(DataError, match="Write the index of the class: its place in the list"):
        read_answers(tmp_path / "x", 1000)
