"""Measurements and evaluations made by hand: what the judge, the reports and the gate are given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from conftest import jpeg

from eval.config import OtherResult, Reference, Tolerance, VariantConfig
from eval.images.classes import imagenet_classes
from eval.images.preprocess import PREPROCESS
from eval.images.sets import VAL
from eval.images.valset import Sample, ValSet
from eval.judge.verdict import judge
from eval.measure.measurement import Measurement
from eval.measure.setup import Computation
from eval.metrics import Scores
from eval.models import ModelFile, Subject
from eval.provenance import Provenance
from eval.results.evaluation import Evaluation

FORMS = ("unfused", "reparameterized")


def counted(top1: int, top5: int, images: int = 50_000, **changes: Any) -> Measurement:
    """A measurement of one form in which the first images are right."""
    scores = Scores.empty(images)
    scores.rank[:] = 10
    scores.rank[:top5] = 3
    scores.rank[:top1] = 0
    samples = (Sample("n01440764/x.JPEG", 0),) * images
    valset = ValSet(Path("x"), "x", samples, lambda _: b"", VAL)
    values: dict[str, Any] = {
        "valset": valset,
        "scores": {"unfused": scores},
        "logit_diff": np.zeros(images),
        "largest_logit": 10.0,
        "digests": [""] * images,
        "seconds": 1.0,
    }
    return Measurement(**(values | changes))


def picture(path: str) -> bytes:
    """An image of its own for each path."""
    seed = int.from_bytes(hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()[:4])
    coarse = np.random.RandomState(seed).randint(0, 256, (5, 6, 3), dtype=np.uint8)
    return jpeg(coarse.repeat(50, 0).repeat(50, 1))


def random_measurement(
    n: int, forms: Sequence[str] = FORMS, read: Callable[[str], bytes] = picture
) -> Measurement:
    """Answers drawn at random, about three of four right; both forms give the same ones."""
    rng = np.random.default_rng(0)
    labels = np.sort(np.arange(n) % 1000)
    synsets = [row.synset for row in imagenet_classes()]
    rank = np.where(rng.random(n) < 0.76, 0, rng.integers(1, 1000, n))
    top = (
        labels[:, np.newaxis] + rng.permuted(np.tile(np.arange(1, 21), (n, 1)), axis=1)[:, :5]
    ) % 1000
    rows = np.flatnonzero(rank < 5)
    top[rows, rank[rows]] = labels[rows]
    prob = np.sort(rng.dirichlet(np.ones(6) / 2, n), axis=1)[:, :0:-1]
    scores = Scores(rank, top, prob, rng.exponential(1.0, n))
    samples = tuple(
        Sample(f"{synsets[label]}/photo_{i:05d}.JPEG", int(label)) for i, label in enumerate(labels)
    )
    return Measurement(
        valset=ValSet(Path("/data/val"), "1000 synset folders", samples, read, VAL),
        scores={
            form: Scores(rank.copy(), top.copy(), prob.copy(), scores.nll.copy()) for form in forms
        },
        logit_diff=rng.uniform(0, 1e-4, n) if len(forms) > 1 else np.full(n, np.nan),
        largest_logit=12.0,
        digests=["00" * 32] * n,
        seconds=10.0,
        measured_now=n,
    )


def reported_as_measured(measured: Measurement, **changes: Any) -> VariantConfig:
    """A configuration whose reported figures are what is measured."""
    scores = next(iter(measured.scores.values()))
    n = len(measured.valset.samples)
    reference = Reference(
        "a paper", top1=100 * scores.correct(1) / n, top5=100 * scores.correct(5) / n
    )
    config = VariantConfig(
        name="base",
        model="base",
        images=n,
        reference={"": reference},
        tolerance={"torchvision": Tolerance(10, "float noise")},
        others=(OtherResult("Vast fp16", "a model zoo", 76.482, 93.172),),
    )
    return replace(config, **changes)


def evaluation_of(
    measured: Measurement, published: VariantConfig | None = None, **changes: Any
) -> Evaluation:
    """An evaluation of a measurement, judged as every run is.

    Args:
        measured: the predictions.
        published: what is reported; the measured figures if None.
        changes: values of the fields of the subject, the setup, the provenance or the evaluation.
    """
    published = published or reported_as_measured(measured)
    subject = {
        "name": published.name,
        "title": f"PP-LCNetV2 {published.model}",
        "weights": "/weights/base.pdparams",
        "layout": "paddle layout",
        "files": (ModelFile(Path("/weights/base.pdparams"), 26_748_832, "ab" * 32),),
        "forms": {},
        "preprocess": replace(
            PREPROCESS["torchvision"], description="Resize(256); CenterCrop(224)"
        ),
        "published": published,
        "params": dict.fromkeys(measured.scores, 6_687_208),
        "macs": dict.fromkeys(measured.scores, 600_076_712),
    }
    setup = {
        "backend": "torch",
        "device": "cpu",
        "precision": "fp32",
        "batch_size": 8,
        "workers": 2,
        "processes": 1,
        "settings": {"cudnn.benchmark": False},
    }
    provenance = {
        "run_id": "base-20260101T000000Z",
        "started_at": datetime(2026, 1, 1, tzinfo=UTC),
        "command": "python -m eval.imagenet --data '/data/my val'",
        "request": {"data": "/data/my val"},
        "versions": {"torch": "2.9", "torchvision": "0.24", "timm": ""},
        "code_sha256": "cd" * 32,
        "git_commit": "c0ffee",
        "machine": "Linux",
    }
    evaluation: dict[str, Any] = {"data": "/data/val"}
    for name, value in changes.items():
        parts = [part for part in (subject, setup, provenance) if name in part or name == "caution"]
        (parts[0] if parts else evaluation)[name] = value
    made = Subject(**subject)  # type: ignore[arg-type]
    how = Computation(**setup)  # type: ignore[arg-type]
    return Evaluation(
        **{
            "subject": made,
            "setup": how,
            "provenance": Provenance(**provenance),  # type: ignore[arg-type]
            "measured": measured,
            "judgment": judge(measured, published, made.preprocess.name, how.precision),
        }
        | evaluation
    )
