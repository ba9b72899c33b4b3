"""Predictions as tools print them: VastModelZOO's, PaddleClas's, MLPerf's."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eval.errors import DataError, UsageError
from eval.images.labels import shown
from eval.measure.given.answers import Answers, Ranked, logits, ranked

RELAY = re.compile(
    r"(?P<name>.+): Relay top-(?P<place>[0-9]{1,3}) id: (?P<id>-?[0-9]{1,9}), "
    r"prob: (?P<prob>[^,]+), class name: .*"
)
PREDICT_CLS = re.compile(
    r"(?P<name>.+):\s+class id\(s\): \[(?P<ids>[0-9, ]*)\], score\(s\): \[(?P<scores>[^\]]*)\]"
    r"(, label_name\(s\): .*)?"
)
_COMMAND = re.compile(
    r"class_ids: \[(?P<ids>[0-9, ]*)\], scores: \[(?P<scores>[^\]]*)\]"
    r"(, label_names: .*)?, filename: (?P<name>.+)"
)
LIST = re.compile(r"-{20,}$")  # begins the list of models that the command prints first,
_LIST_ENDS = "Powered by PaddlePaddle!"  # and its last line but one of dashes
_LOGGED = re.compile(r"(?:\[[^\]]{1,60}\] )?\S{1,30} (?:INFO|DEBUG|WARNING): ?")
_RESULT = "{'class_ids'"
_LONGEST = 1 << 16  # characters of one result of infer.py


def read_relay(path: Path, text: str, count: int) -> Ranked:
    """``NAME: Relay top-0 id: 65, prob: 0.9, class name: ...``, then top-1, ..., for each image."""
    names: list[str] = []
    classes: list[list[str]] = []
    prob: list[list[str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        found = RELAY.fullmatch(line.rstrip())
        if not found:
            _refuse_other_output(path, number, line)
            continue
        if int(found["place"]) == 0:
            names.append(found["name"])
            classes.append([])
            prob.append([])
        if not names or found["name"] != names[-1] or int(found["place"]) != len(classes[-1]):
            raise DataError(
                f"{path}, line {number}: top-{found['place']} of {shown(found['name'])} is out of "
                "order.\nWas the file written by two processes at once, or truncated?"
            )
        classes[-1].append(found["id"])
        prob[-1].append(found["prob"])
    return ranked(path, names, classes, prob, count)


def read_paddle(path: Path, text: str, count: int) -> Ranked:
    r"""What PaddleClas prints, with the lines of its log between.

    predict_cls.py: ``NAME:\tclass id(s): [8, 7], score(s): [0.89, 0.07], label_name(s): [...]``,
    rounded to two decimals; infer.py: ``[{'class_ids': [8, 7], 'file_name': NAME, ...}, ...]``, for
    each batch; the command paddleclas: ``class_ids: [8, 7], scores: [0.89, 0.07], label_names:
    [...], filename: NAME``, after a list of all its models.
    """
    rows: list[_Row] = []
    lines: Iterator[tuple[int, str]] = enumerate(text.splitlines(), 1)
    if LIST.match(text.lstrip().partition("\n")[0]):
        lines = itertools.dropwhile(lambda each: _LIST_ENDS not in each[1], lines)
        lines = itertools.islice(lines, 2, None)
    for number, line in lines:
        content = _LOGGED.sub("", line, count=1).strip()
        if found := PREDICT_CLS.fullmatch(content) or _COMMAND.fullmatch(content):
            rows.append(_Row(found["name"], _words(found["ids"]), _words(found["scores"])))
        elif content.startswith(f"[{_RESULT}"):
            rows += _results(path, number, content)
        elif not _LOGGED.match(line):
            _refuse_other_output(path, number, line)
    return ranked(
        path,
        [row.name for row in rows],
        [row.classes for row in rows],
        None
        if any(len(row.scores) != len(row.classes) for row in rows)
        else [row.scores for row in rows],
        count,
    )


class _Row(NamedTuple):
    name: str
    classes: list[str]
    scores: list[str]


def _results(path: Path, number: int, line: str) -> Iterator[_Row]:
    """The results of a batch, of which only literals are read."""
    try:
        for part in line.removeprefix("[").split(_RESULT)[1:]:
            if len(part) > _LONGEST:
                raise ValueError("longer than any real one")
            row = ast.literal_eval(_RESULT + part[: part.rindex("}") + 1])
            yield _Row(
                str(row["file_name"]),
                [str(value) for value in row["class_ids"]],
                [str(value) for value in row.get("scores", ())],
            )
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError):
        raise DataError(
            f"{path}, line {number} is not what infer.py prints: {shown(line)}.\n"
            "The file is damaged or was cut off: predict again."
        ) from None


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _refuse_other_output(path: Path, number: int, line: str) -> None:
    if line.strip():
        raise DataError(
            f"{path}, line {number} is not a prediction: {shown(line)}.\n"
            "Remove other output of the tool from the file."
        )


def is_mlperf(document: Any) -> bool:
    """Whether a JSON document is the accuracy log of MLPerf's LoadGen."""
    first = document[0] if isinstance(document, list) and document else None
    return isinstance(first, dict) and {"qsl_idx", "data"} <= first.keys()


def read_mlperf(
    path: Path, document: Sequence[Any], count: int, names: Sequence[str] | None
) -> Answers:
    """``mlperf_log_accuracy.json``: the bytes of each answer, by the number of the image.

    An answer is the top-1 class, as int32, int64 or float32, or a float32 for each class. Which it
    is follows from its length and from all values together: no class is so large as one read as
    another type.

    Args:
        path: for messages.
        document: the entries.
        count: how many classes there are.
        names: the list of images that the numbers count in, such as ``val_map.txt``.
    """
    if names is None:
        raise UsageError(
            f"{path} numbers the images.\nAdd --names FILE: the list that was measured, such as "
            "val_map.txt."
        )
    answers: dict[int, bytes] = {}
    for place, entry in enumerate(document):
        try:
            number, data = entry["qsl_idx"], bytes.fromhex(entry["data"])
        except (TypeError, KeyError, ValueError):
            raise DataError(
                f"{path}: entry {place} has no qsl_idx and data.\nThe log is damaged: run again."
            ) from None
        if not isinstance(number, int) or not 0 <= number < len(names):
            raise DataError(
                f"{path}: entry {place} is of image {shown(str(number))}, and --names lists "
                f"{len(names):,}.\nGive the list that was measured."
            )
        if answers.setdefault(number, data) != data:  # LoadGen may ask twice
            raise DataError(f"{path} has two different answers for {shown(names[number])}.")
    listed = [names[number] for number in answers]
    lengths = {len(data) for data in answers.values()}
    whole = b"".join(answers.values())
    if lengths == {4 * count} and count > 2:
        return logits(listed, np.frombuffer(whole, "<f4").reshape(len(listed), count))
    kinds = {4: ("<i4", "<f4"), 8: ("<i8", "<f8")}.get(lengths.pop() if len(lengths) == 1 else 0)
    for kind in kinds or ():
        values = np.frombuffer(whole, kind)
        if ((values >= 0) & (values < count) & (values == np.floor(values))).all():
            return ranked(path, listed, [[str(int(value))] for value in values], None, count)
    raise DataError(
        f"{path}: its answers are no classes from 0 to {count - 1}.\n"
        "Needed: the top-1 class as int32, int64 or float32, or a float32 for each class."
    )
