"""The files of a result, column by column: what they mean, and where their values come from.

Everything that writes, reads or documents a result file takes its columns from here;
``python -m eval.results.schema`` prints ``docs/results.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from eval.metrics import TOP, ClassFigures
from eval.results.calibration import confusions

if TYPE_CHECKING:  # takes torch, which nobody needs to read a result
    from eval.judge.verdict import FormResult
    from eval.measure.measurement import Measurement
    from eval.results.record import Record

SUMMARY_FILE = "summary.csv"
PREDICTIONS_FILE = "predictions.csv"
PER_CLASS_FILE = "per_class.csv"
CONFUSIONS_FILE = "confusions.csv"
BAD_IMAGES_FILE = "bad_images.csv"
LATENCY_FILE = "latency.csv"
RUN_FILE = "run.json"
PAGE_FILE = "report.html"
CONSOLE_FILE = "console.txt"
DIAGNOSIS_FILE = "diagnosis.html"
SWEEP_FILE = "sweep.csv"
JUNIT_FILE = "junit.xml"
COMPARISON_FILE = "regression.md"
COMPARISON_TABLE, FLIPS_TABLE, CLASSES_TABLE = (
    "regression.csv",
    "regression_flips.csv",
    "regression_classes.csv",
)
COMPARISON_FILES = (COMPARISON_FILE, COMPARISON_TABLE, FLIPS_TABLE, CLASSES_TABLE, JUNIT_FILE)
# What makes a result, the summary first: without it, the others claim nothing.
RESULT_FILES = (
    SUMMARY_FILE,
    RUN_FILE,
    PAGE_FILE,
    PREDICTIONS_FILE,
    PER_CLASS_FILE,
    CONFUSIONS_FILE,
    BAD_IMAGES_FILE,
    LATENCY_FILE,
    CONSOLE_FILE,
    DIAGNOSIS_FILE,
    *COMPARISON_FILES,
)


@dataclass(frozen=True)
class Column:
    """A column of ``summary.csv``.

    Attributes:
        meaning: for people; units included.
        value: from an evaluation and one of its forms.
    """

    name: str
    meaning: str
    value: Callable[[Record, FormResult], Any]


SUMMARY: tuple[Column, ...] = (  # in the contract's order and words
    Column("run_id", "name of the run", lambda e, _: e.provenance.run_id),
    Column(
        "started_at",
        "UTC, ISO 8601",
        lambda e, _: e.provenance.started_at.isoformat(timespec="seconds"),
    ),
    Column("variant", "what was evaluated", lambda e, _: e.subject.name),
    Column(
        "form",
        "`unfused` (as trained), `reparameterized` (as deployed), `exported` (a file of another "
        "runtime) or `scored` (predictions made elsewhere)",
        lambda _, f: f.form,
    ),
    Column("backend", "what computed the logits", lambda e, _: e.setup.backend),
    Column("device", "where they were computed", lambda e, _: e.setup.device),
    Column(
        "precision",
        "what was computed in: `fp32`, `bf16`, `fp16`, `int8`, ...; `fp16 weights` and the like "
        "where only the weights are stored in less than fp32; `unknown` where a file does not show "
        "it",
        lambda e, _: e.setup.precision,
    ),
    Column(
        "preprocess", "the recipe, as of `--preprocess`", lambda e, _: e.subject.preprocess.name
    ),
    Column("images", "images that were evaluated", lambda _, f: f.images),
    Column("images_expected", "images of the whole set", lambda _, f: f.images_expected),
    Column(
        "bad_images",
        "images that could not be decoded; they count as wrong",
        lambda e, _: len(e.measured.bad),
    ),
    Column("top1_correct", "images whose label is the top-1 prediction", lambda _, f: f.correct[1]),
    Column(
        "top5_correct",
        "images whose label is among the five best; empty if only top-1 predictions are known",
        lambda _, f: f.correct.get(TOP),
    ),
    Column("top1", "accuracy in percent: top1_correct / images", lambda _, f: f.accuracy(1)),
    Column("top5", "accuracy in percent: top5_correct / images", lambda _, f: f.figures(TOP)[0]),
    Column("top1_ci_low", "95 % Wilson interval of top1, in percent", lambda _, f: f.interval()[0]),
    Column("top1_ci_high", "its upper end", lambda _, f: f.interval()[1]),
    Column(
        "reference_top1",
        "reported accuracy in percent; empty if there is none",
        lambda _, f: f.reference[1],
    ),
    Column("reference_top5", "the same for top-5", lambda _, f: f.reference[TOP]),
    Column("reference_source", "where it is reported", lambda _, f: f.reference_source),
    Column("delta_top1", "measured minus reported, in percentage points", lambda _, f: f.delta(1)),
    Column("delta_top5", "the same for top-5", lambda _, f: f.delta(TOP)),
    Column(
        "tolerance",
        "images by which a count may differ from the reported one; empty if nothing is compared",
        lambda _, f: f.tolerance,
    ),
    Column(
        "verdict",
        "`PASS`, `FAIL`, `PARTIAL`, `INCOMPLETE`, `NO_REFERENCE` or `DISAGREE`",
        lambda _, f: f.verdict.value,
    ),
    Column(
        "nll",
        "mean negative log-likelihood of the label, in nats",
        lambda e, f: e.measured.scores[f.form].mean_nll,
    ),
    Column(
        "max_abs_logit_diff",
        "largest difference of a logit between the two forms",
        lambda e, _: e.measured.max_logit_diff,
    ),
    Column(
        "prediction_flips",
        "images whose top-1 prediction differs between the two forms",
        lambda e, _: len(e.measured.flips) if len(e.measured.scores) > 1 else None,
    ),
    Column(
        "images_per_second",
        "rate of the images measured in this run; empty if there were none",
        lambda e, _: e.measured.images_per_second,
    ),
    Column("seconds", "wall time of those images", lambda e, _: e.measured.seconds),
    Column(
        "params", "number of learned parameters of the form", lambda e, f: e.subject.params[f.form]
    ),
    Column(
        "macs", "multiply-accumulate operations for one image", lambda e, f: e.subject.macs[f.form]
    ),
    Column("weights", "the checkpoint or exported file", lambda e, _: e.subject.weights),
    Column(
        "weights_sha256",
        "SHA-256 of the file; of several files, that of the sorted list of their hashes and names",
        lambda e, _: e.subject.sha256,
    ),
    Column(
        "dataset_sha256",
        "SHA-256 over the names, labels and contents of the images",
        lambda e, _: e.measured.dataset_sha256,
    ),
    Column("torch", "version", lambda e, _: e.provenance.versions["torch"]),
    Column("torchvision", "version", lambda e, _: e.provenance.versions["torchvision"]),
    Column("timm", "version", lambda e, _: e.provenance.versions["timm"]),
    Column(
        "git_commit",
        "commit of the code, with `+` if it was modified; empty outside a checkout",
        lambda e, _: e.provenance.git_commit,
    ),
    Column("command", "how the run was started", lambda e, _: e.provenance.command),
    Column(
        "balanced_accuracy",
        "mean recall of the classes that have images, in percent",
        lambda e, f: _class_figures(e, f.form).balanced_accuracy,
    ),
    Column(
        "macro_precision",
        "mean precision of these classes, in percent; 0 of one that is never predicted",
        lambda e, f: _class_figures(e, f.form).macro_precision,
    ),
    Column(
        "macro_f1",
        "mean F1 of these classes, in percent",
        lambda e, f: _class_figures(e, f.form).macro_f1,
    ),
)
SUMMARY_COLUMNS: tuple[str, ...] = tuple(column.name for column in SUMMARY)
# Columns that results of earlier versions do not have.
ADDED_COLUMNS = ("balanced_accuracy", "macro_precision", "macro_f1")


def _class_figures(evaluation: Record, form: str) -> ClassFigures:
    measured = evaluation.measured
    return ClassFigures.of(measured.scores[form], measured.labels, len(measured.valset.classes))


# Name and meaning; `{form}` stands for each form of the run.
PREDICTIONS: tuple[tuple[str, str], ...] = (
    ("index", "position of the image in the set, sorted by path"),
    ("path", "inside the validation set, with forward slashes"),
    ("label", "index of its class"),
    (
        "{form}_rank",
        (
            "classes before the label: those with a greater logit, and equal ones with a lower "
            "index; 0 is a correct prediction; empty for a bad image"
        ),
    ),
    *((f"{{form}}_top{k}", f"class number {k} of the ranking") for k in range(1, TOP + 1)),
    *((f"{{form}}_prob{k}", "its probability (softmax)") for k in range(1, TOP + 1)),
)
PER_CLASS: tuple[tuple[str, str], ...] = (
    ("synset", "the class: its WordNet id, or the name of its folder"),
    ("name", "its name in plain words"),
    ("images", "images of the class"),
    ("{form}_correct@1", "of those, images whose label is the top-1 prediction"),
    (
        "{form}_correct@5",
        "of those, images whose label is among the five best; empty if that is unknown",
    ),
    (
        "{form}_precision",
        "correct@1 of the images that are predicted as the class, in percent; empty if none are",
    ),
    ("{form}_recall", "correct@1 of the images of the class, in percent; empty if it has none"),
    (
        "{form}_f1",
        "harmonic mean of precision and recall, in percent; empty without images and predictions",
    ),
)
CONFUSIONS: tuple[tuple[str, str], ...] = (
    ("form", "as in summary.csv"),
    ("label", "index of the class of the images"),
    ("prediction", "index of the class that they are predicted as (top-1), another one"),
    ("count", "number of such images"),
)
BAD_IMAGES: tuple[tuple[str, str], ...] = (
    ("index", "as in predictions.csv"),
    ("path", "as in predictions.csv"),
    ("label", "as in predictions.csv"),
    ("reason", "why the image cannot be decoded"),
)
LATENCY: tuple[tuple[str, str], ...] = (
    ("form", "as in summary.csv"),
    ("threads", "threads that the runtime may use for one image"),
    ("batch", "images per call: always 1"),
    (
        "stage",
        (
            "`model`: from the uint8 crop to the logits; `model+preprocess`: from the bytes of the "
            "image file to the logits"
        ),
    ),
    ("median_ms", "median over the images, in milliseconds"),
    ("p90_ms", "90th percentile"),
    ("p99_ms", "99th percentile"),
    ("images", "images that were timed, after a warm-up"),
)


@dataclass(frozen=True)
class Key:
    """A key of ``run.json``.

    Attributes:
        group: the heading under which it is shown.
        meaning: for people.
        value: from an evaluation.
        shown: whether the HTML page lists it; the others are shown there in words of their own.
    """

    name: str
    group: str
    meaning: str
    value: Callable[[Record], Any]
    shown: bool = True


RUN: tuple[Key, ...] = (
    Key("run_id", "Run", "name of the run", lambda e: e.provenance.run_id),
    Key("verdict", "Run", "of the whole run: the most severe of its forms",
        lambda e: e.verdict.value, shown=False),
    Key("exit_code", "Run", "of the command", lambda e: e.exit_code, shown=False),
    Key("started_at", "Run", "UTC, ISO 8601",
        lambda e: e.provenance.started_at.isoformat(timespec="seconds")),
    Key("seconds", "Run", "wall time of the images measured in this run",
        lambda e: e.measured.seconds),
    Key("images_per_second", "Run", "their rate", lambda e: e.measured.images_per_second),
    Key("images_measured_now", "Run", "their number; the others were kept from an interrupted run",
        lambda e: e.measured.measured_now),
    Key("crops_from_cache", "Run", "how many of these had their pixels from --cache",
        lambda e: e.measured.from_cache),
    Key("machine", "Run", "operating system and processor", lambda e: e.provenance.machine),
    Key("command", "Run", "how the run was started", lambda e: e.provenance.command, shown=False),
    Key("request", "Run", "all options", lambda e: e.provenance.request, shown=False),
    Key("model", "Model", "what was evaluated", lambda e: e.subject.title),
    Key("weights", "Model", "the checkpoint or exported file", lambda e: e.subject.weights),
    Key("weights_layout", "Model", "its format", lambda e: e.subject.layout),
    Key("weights_sha256", "Model", "of all files of the model", lambda e: e.subject.sha256),
    Key("files", "Model", "each file, with its size in bytes and its SHA-256",
        lambda e: {str(f.path): f"{f.size:,} bytes, {f.sha256}" for f in e.subject.files}),
    Key("params", "Model", "number of learned parameters of each form",
        lambda e: dict(e.subject.params)),
    Key("macs", "Model", "multiply-accumulate operations for one image",
        lambda e: dict(e.subject.macs)),
    Key("data", "Images", "the validation set", lambda e: e.data),
    Key("image_set", "Images", "which set they are, and who says so where they do not show it",
        lambda e: e.measured.valset.image_set.title),
    Key("layout", "Images", "its layout, and where the labels come from",
        lambda e: e.measured.valset.layout),
    Key("images", "Images", "images that were evaluated",
        lambda e: len(e.measured.valset.samples)),
    Key("bad_images", "Images", "those that could not be decoded", lambda e: len(e.measured.bad)),
    Key("dataset_sha256", "Images", "SHA-256 over names, labels and contents",
        lambda e: e.measured.dataset_sha256),
    Key("preprocess", "Pipeline", "the recipe, as of `--preprocess`",
        lambda e: e.subject.preprocess.name),
    Key("preprocess_description", "Pipeline", "the preprocessing in one line",
        lambda e: e.subject.preprocess.description),
    Key("backend", "Pipeline", "what computed the logits", lambda e: e.setup.backend),
    Key("device", "Pipeline", "where they were computed", lambda e: e.setup.device),
    Key("precision", "Pipeline", "number format of the computation", lambda e: e.setup.precision),
    Key("batch_size", "Pipeline", "images in a batch", lambda e: e.setup.batch_size),
    Key("workers", "Pipeline", "threads per process", lambda e: e.setup.workers),
    Key("processes", "Pipeline", "processes of the run", lambda e: e.setup.processes),
    Key("settings", "Pipeline", "settings that results may depend on",
        lambda e: dict(e.setup.settings)),
    Key("versions", "Code", "of Python and the libraries", lambda e: dict(e.provenance.versions)),
    Key("code_sha256", "Code", "of this project's own code", lambda e: e.provenance.code_sha256),
    Key("git_commit", "Code", "of the checkout, with + if it was modified",
        lambda e: e.provenance.git_commit),
    Key("identity", "Code", "what the run was: only one that is the same continues it",
        lambda e: dict(e.provenance.identity), shown=False),
    Key("published", "Reference", "the reported figures, tolerances and third-party results",
        lambda e: msgspec.to_builtins(e.subject.published), shown=False),
    Key("results", "Reference", "figures, verdict and reason of each form",
        lambda e: [_result(f) for f in e.judgment.forms], shown=False),
    Key("disagreement", "Reference", "how the two forms disagree; empty if they do not",
        lambda e: e.judgment.disagreement, shown=False),
    Key("stopped", "Reference", "why the run ended before its last image; empty if it did not",
        lambda e: e.measured.stopped, shown=False),
    Key("bound", "Reference", "the figures behind that decision", lambda e: e.measured.bound,
        shown=False),
    Key("by_other_labels", "Reference", "accuracies by other sets of labels, such as ReaL",
        lambda e: [{"form": f, **asdict(score)} for f, score in e.by_other_labels], shown=False),
    Key("tied", "Forms", "images in which several classes have the largest output",
        lambda e: {form: int(s.tied.sum()) for form, s in e.measured.scores.items()}, shown=False),
    Key("largest_logit", "Forms", "largest absolute logit", lambda e: e.measured.largest_logit,
        shown=False),
    Key("max_abs_logit_diff", "Forms", "largest difference of a logit between the two forms",
        lambda e: e.measured.max_logit_diff, shown=False),
    Key("flips", "Forms", "images whose top-1 prediction differs between the two forms",
        lambda e: _flips(e), shown=False),
)  # fmt: skip


def _result(result: FormResult) -> dict[str, Any]:
    return {**asdict(result), "top1": result.accuracy(1), "top5": result.figures(TOP)[0]}


def _flips(evaluation: Record) -> list[dict[str, Any]]:
    measured = evaluation.measured
    if len(measured.scores) < 2:
        return []
    return [
        {
            "path": measured.valset.samples[index].path,
            "label": measured.valset.samples[index].label,
            **{form: int(scores.top[index, 0]) for form, scores in measured.scores.items()},
        }
        for index in measured.flips
    ]


def summary_table(evaluation: Record) -> pd.DataFrame:
    """One row per form."""
    rows = [
        {column.name: column.value(evaluation, result) for column in SUMMARY}
        for result in evaluation.judgment.forms
    ]
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS), dtype=object)


def predictions_table(evaluation: Record) -> pd.DataFrame:
    """One row per image; what a bad image has no value for is empty."""
    measured = evaluation.measured
    columns: dict[str, Any] = {
        "index": range(len(measured.valset.samples)),
        # Not pandas' own text: names may hold bytes that are not text.
        "path": pd.Series([sample.path for sample in measured.valset.samples], dtype=object),
        "label": measured.labels,
    }
    for form, scores in measured.scores.items():
        columns[f"{form}_rank"] = _empty_if_negative(scores.rank)
        for k in range(TOP):
            columns[f"{form}_top{k + 1}"] = _empty_if_negative(scores.top[:, k])
        for k in range(TOP):
            columns[f"{form}_prob{k + 1}"] = scores.prob[:, k]
    return pd.DataFrame(columns)


def per_class_table(evaluation: Record) -> pd.DataFrame:
    """One row per class of the model."""
    measured = evaluation.measured
    classes = measured.valset.classes
    columns: dict[str, Any] = {
        "synset": [row.folder for row in classes.rows],
        "name": [row.title for row in classes.rows],
        "images": np.bincount(measured.labels, minlength=len(classes)),
    }
    for form, scores in measured.scores.items():
        for k in (1, TOP):
            columns[f"{form}_correct@{k}"] = (
                scores.correct_per_class(measured.labels, k, len(classes))
                if k <= scores.known
                else np.full(len(classes), np.nan)
            )
        figures = _class_figures(evaluation, form)
        columns[f"{form}_precision"] = figures.precision
        columns[f"{form}_recall"] = figures.recall
        columns[f"{form}_f1"] = figures.f1
    return pd.DataFrame(columns)


def confusions_of(measured: Measurement, form: str) -> pd.DataFrame:
    """See `confusions`; of the images that have a prediction."""
    best = measured.scores[form].top[:, 0]
    return confusions(measured.labels[best >= 0], best[best >= 0])


def confusions_table(evaluation: Record) -> pd.DataFrame:
    """One row per form and pair of classes that were confused, most frequent first."""
    measured = evaluation.measured
    tables = []
    for form in measured.scores:
        pairs = confusions_of(measured, form)
        pairs = pairs.rename(columns={"predicted": "prediction", "images": "count"})
        tables.append(pairs.assign(form=form))
    return pd.concat(tables)[[name for name, _ in CONFUSIONS]]


def bad_images_table(evaluation: Record) -> pd.DataFrame:
    """One row per image that could not be decoded."""
    samples = evaluation.measured.valset.samples
    rows = [
        {"index": i, "path": samples[i].path, "label": samples[i].label, "reason": reason}
        for i, reason in sorted(evaluation.measured.bad.items())
    ]
    return pd.DataFrame(rows, columns=[name for name, _ in BAD_IMAGES])


def latency_table(evaluation: Record) -> pd.DataFrame:
    """One row per form, number of threads and stage."""
    columns = [name for name, _ in LATENCY]
    rows = [[getattr(row, name) for name in columns] for row in evaluation.latency]
    return pd.DataFrame(rows, columns=columns)


def _empty_if_negative(values: NDArray[np.int64]) -> pd.Series[int]:
    return pd.Series(values, dtype="Int64").mask(values < 0)


def run_document(evaluation: Record) -> dict[str, Any]:
    """The content of ``run.json``."""
    return {key.name: key.value(evaluation) for key in RUN}


def shown_facts(evaluation: Record) -> Mapping[str, Sequence[tuple[str, Any]]]:
    """The keys of ``run.json`` that a person looks for, by heading: name in words, and value."""
    groups: dict[str, list[tuple[str, Any]]] = {}
    for key in RUN:
        if key.shown:
            words = key.name.replace("_", " ")
            groups.setdefault(key.group, []).append((words, key.value(evaluation)))
    return groups


_INTRODUCTION = """\
# The files of a result

`python -m eval.imagenet --output DIR` writes them, and so does `Record.save(DIR)`. This page is
printed by `python -m eval.results.schema`.

`summary.csv` is written last: where it stands, all other files of its run stand beside it. Files
are UTF-8; percentages are unrounded numbers (`80.07`), counts are integers, and an empty cell is a
value that does not exist. A text that begins with `=`, `+`, `-` or `@` has a `'` before it, so that
no spreadsheet program takes it for a formula.
"""


def document() -> str:
    """``docs/results.md``."""
    per_form = "`{form}` stands for each form of the run."
    run = [(key.name, f"{key.meaning} ({key.group.lower()})") for key in RUN]
    sections = [
        (SUMMARY_FILE, "One row per form.", [(c.name, c.meaning) for c in SUMMARY]),
        (PREDICTIONS_FILE, f"One row per image. {per_form}", PREDICTIONS),
        (PER_CLASS_FILE, f"One row per class. {per_form}", PER_CLASS),
        (
            CONFUSIONS_FILE,
            "One row per form and pair of classes that were confused, most frequent first.",
            CONFUSIONS,
        ),
        (BAD_IMAGES_FILE, "One row per bad image; only where there are any.", BAD_IMAGES),
        (
            LATENCY_FILE,
            "One row per form, number of threads and stage; only with `--latency`.",
            LATENCY,
        ),
        (RUN_FILE, "One object: the options, the environment, the results.", run),
    ]
    lines = [_INTRODUCTION]
    for name, about, columns in sections:
        kind = "key" if name == RUN_FILE else "column"
        lines += [f"## {name}", "", about, "", f"| {kind} | meaning |", "|---|---|"]
        lines += [f"| `{column}` | {meaning} |" for column, meaning in columns]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(document(), end="")
