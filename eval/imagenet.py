"""``python -m eval.imagenet``: does this model give the reported ImageNet accuracy?

`run` is the whole path: val set, weights, both forms, measurement, reports, verdict, exit code.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from eval.backends import BACKENDS
from eval.backends.exported import FORM as EXPORTED
from eval.backends.exported import RUNTIMES, is_exported, precision_of
from eval.config import VariantConfig, builtin_variants, load_config, load_variant
from eval.errors import EvalError, ModelError, UsageError
from eval.history import append_history
from eval.images.valset import image_list_sha256, open_valset
from eval.measure.journal import Journal
from eval.measure.processes import Group, process_group
from eval.measure.progress import Progress
from eval.regression import check_baseline, check_regression

if TYPE_CHECKING:  # torch takes seconds to import: --help and wrong options do without
    from torch import nn

    from eval.images.preprocess import Preprocess
    from pplcnet import PPLCNetV2

FORMS = ("unfused", "reparameterized")
PREPROCESSES = ("torchvision", "paddle", "squash")
TIMM = "timm"  # a model's own preprocessing, with --model
PRECISIONS = ("fp32", "bf16", "fp16")
INTERRUPTED = 130
CRASHED = 70  # EX_SOFTWARE of sysexits.h


@dataclass(frozen=True)
class Options:
    """The command line, checked; a None is chosen for the machine."""

    data: Path
    demo: bool
    model: str | None
    variant: VariantConfig
    weights: str
    exported: bool
    forms: tuple[str, ...]
    preprocess: str
    backend: str
    device: str
    precision: str
    batch_size: int | None
    workers: int | None
    limit: int | None
    on_bad_image: str
    labels: Path | None
    output: Path
    history: Path | None
    baseline: str | None
    cache: Path | None
    real_labels: bool
    quiet: bool
    verbose: bool
    started: datetime
    command: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code (eval/errors.py, eval/judge/verdict.py)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = None
    try:
        options = parse_options(arguments)
        return run(options)
    except EvalError as error:
        print(f"error: {error}", file=sys.stderr)
        if options and options.verbose:
            traceback.print_exc()
        return error.exit_code
    except KeyboardInterrupt:
        print(f"interrupted{_what_is_kept(options)}", file=sys.stderr)
        return INTERRUPTED
    except Exception:  # a crash must not look like exit code 1, a measured difference
        traceback.print_exc()
        return CRASHED


def _what_is_kept(options: Options | None) -> str:
    if options is None or not (options.output / "journal").is_dir():
        return ": nothing was measured yet"
    return (
        f": what was measured is kept in {options.output}.\n"
        f"The same command with --output {options.output} continues."
    )


def run(options: Options) -> int:
    """Measure, report, and only then let a difference become an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    with process_group() as group:
        options = group.agree(options)
        if options.demo:
            options = group.agree(_with_demo(options) if group.is_first else options)
        return _run(options, group)


def _run(options: Options, group: Group) -> int:
    if options.baseline:
        check_baseline(options.baseline, options.variant.name, options.preprocess)
    valset = open_valset(options.data, options.labels)
    if options.limit is not None:
        valset = valset.limited(options.limit)
    if options.real_labels:
        from eval.images.real import labels_of, score_real

        labels_of(valset)  # what is wrong with them is to be said before hours of work

    from eval.backends import create_predictor
    from eval.backends.device import choose_device, exact_float32
    from eval.images.cache import CropCache
    from eval.images.preprocess import PREPROCESS
    from eval.measure import engine
    from pplcnet import PPLCNetV2, count_macs, count_parameters

    settings = exact_float32()
    device = choose_device(options.device, group.local_number)
    weights: Loaded
    models: Mapping[str, nn.Module | Path]
    if options.model:
        weights, models, preprocess = load_timm(options)
    else:
        weights, models = load_exported(options) if options.exported else load_forms(options)
        preprocess = PREPROCESS[options.preprocess]
    precision = precision_of(Path(options.weights)) if options.exported else options.precision
    weights_sha256 = _sha256(Path(weights.source))
    batch_size = options.batch_size or engine.choose_batch_size(device)
    workers = options.workers or engine.choose_workers()
    quiet = options.quiet or not group.is_first
    if not quiet:
        print(
            f"{options.data}: {valset.layout}, {len(valset.samples):,} images\n"
            f"{preprocess.name}: {preprocess.description}\n"
            f"{weights.source}: {weights.layout} layout\n"
            f"{options.backend} on {device}: {workers} workers, batches of {batch_size}",
            file=sys.stderr,
        )

    identity = {
        "variant": options.variant.name,
        "model": options.variant.model,
        "weights_sha256": weights_sha256,
        "forms": list(models),
        "preprocess": preprocess.name,
        "preprocess_description": preprocess.description,
        "backend": options.backend,
        "device": device.type,
        "precision": precision,
        "on_bad_image": options.on_bad_image,
        "images": len(valset.samples),
        "image_list_sha256": image_list_sha256(valset),
    }
    predictor = engine.ShrinkOnOutOfMemory(
        create_predictor(
            options.backend,
            models,
            preprocess,
            device,
            options.precision,
            batch_size=batch_size,
            workers=workers,
        )
    )
    with (
        Journal(options.output, identity, models, group.number) as journal,
        CropCache(options.cache, valset, preprocess) if options.cache else nullcontext() as cache,
    ):
        with Progress(len(valset.samples) // group.count, quiet) as progress:
            part = engine.measure(
                valset,
                preprocess,
                predictor,
                list(models),
                batch_size=batch_size,
                workers=workers,
                journal=journal,
                cache=cache,
                share=(group.number, group.count),
                record_bad=options.on_bad_image == "record",
                progress=progress.add,
            )
        parts = group.gather(part)
        if not group.is_first:
            return 0
        measured = engine.assemble(valset, parts, list(models))

        # Not before: a run is to start quickly.
        from eval.judge.gate import Asked
        from eval.judge.verdict import check_forms_agree, judge
        from eval.results.html import write_html_report
        from eval.results.write import RunFacts, format_results, write_reports

        facts = RunFacts(
            run_id=f"{options.variant.name}-{options.started:%Y%m%dT%H%M%SZ}",
            started_at=options.started.isoformat(timespec="seconds"),
            command=options.command,
            variant=options.variant,
            preprocess=preprocess.name,
            preprocess_description=preprocess.description,
            backend=options.backend,
            device=str(device),
            precision=precision,
            batch_size=batch_size,
            workers=workers,
            processes=group.count,
            weights=weights.source,
            weights_sha256=weights_sha256,
            weights_layout=weights.layout,
            params={
                f: None if isinstance(m, Path) else count_parameters(m) for f, m in models.items()
            },
            # What it counts is all that our network has, and not all that others have.
            macs={
                f: count_macs(m) if isinstance(m, PPLCNetV2) else None for f, m in models.items()
            },
            data=str(options.data),
            layout=valset.layout,
            limit=options.limit,
            cache=str(options.cache) if options.cache else None,
            real=score_real(measured) if options.real_labels else None,
            settings=settings,
        )
        results = [
            judge(measured, form, options.variant, preprocess.name, precision) for form in models
        ]
        write_reports(options.output, facts, measured, results)
        write_html_report(options.output, facts, measured, results)
        journal.remove()
    print(format_results(facts, measured, results))
    tolerance = options.variant.tolerance.get(preprocess.name)
    if options.verbose and tolerance:
        print(f"Tolerance of {tolerance.images} images: {tolerance.reason}")
    print(f"Reports: {options.output}")
    if options.history:
        append_history(options.history, options.output)
    codes = [result.verdict.exit_code for result in results]
    if options.baseline:
        print()
        asked = Asked(form=next(iter(models))) if len(models) == 1 else Asked()
        codes.append(
            check_regression(options.baseline, options.output, asked, output=options.output)
        )
    check_forms_agree(measured, precision)
    return max(codes)


def _with_demo(options: Options) -> Options:
    """The options of the demo: its images, its weights, and its known answer as the reference."""
    from eval.images.classes import imagenet_classes
    from eval.models import demo

    synsets = [row.synset for row in imagenet_classes()]
    with Progress(demo.DEMO_IMAGES, options.quiet) as progress:
        progress.describe("making the demo")
        data, weights = demo.make_demo(options.output / "demo", synsets, lambda *_: progress.add(1))
    return replace(options, data=data, weights=str(weights), variant=demo.demo_variant())


class Loaded(NamedTuple):
    """Where a model came from."""

    source: str
    layout: str


def load_forms(options: Options) -> tuple[Loaded, dict[str, PPLCNetV2]]:
    """The weights and the forms that were asked for, in evaluation mode.

    Raises:
        ModelError: the weights are missing, damaged, refused or of another model.
    """
    from pplcnet import (
        WeightsError,
        create_model,
        fetch_weights,
        load_weights,
        read_weights,
        reparameterize,
    )

    variant = options.variant
    try:
        path = (
            fetch_weights(variant.name, progress=not options.quiet)
            if options.weights == "auto"
            else Path(options.weights)
        )
        weights = read_weights(path)
        model = create_model(variant.model)
        if weights.reparameterized and options.forms == ("reparameterized",):
            model = reparameterize(model)
        load_weights(model, weights)
    except WeightsError as error:
        raise ModelError(str(error)) from error
    model.eval()
    forms = {"unfused": lambda: model, "reparameterized": lambda: reparameterize(model)}
    loaded = Loaded(weights.source, weights.layout)
    return loaded, {form: forms[form]() for form in options.forms}


def load_exported(options: Options) -> tuple[Loaded, dict[str, Path]]:
    """An exported file; its runtime reads it."""
    path = Path(options.weights)
    return Loaded(str(path), f"exported {path.suffix.lower()}"), {EXPORTED: path}


def load_timm(options: Options) -> tuple[Loaded, dict[str, nn.Module], Preprocess]:
    """A model of timm's: its weights, its forms, and the preprocessing to evaluate it with.

    Raises:
        ModelError: the weights are missing, damaged, refused or of another model.
        UsageError: it has not the form that was asked for, or does not take such images.
    """
    from eval.images.preprocess import PREPROCESS
    from eval.models.timm import forms_of, load_model, preprocess_of, weights_path

    name = options.variant.model
    path = weights_path(name, options.weights)
    model = load_model(name, path)
    own = preprocess_of(model)
    preprocess = own if options.preprocess == TIMM else PREPROCESS[options.preprocess]
    if preprocess.size != own.size:
        raise UsageError(
            f"--preprocess {preprocess.name} gives {preprocess.size} pixels, {name} takes "
            f"{own.size}. Leave it out: timm's own is used."
        )
    forms = forms_of(model, options.forms, name)
    if len(forms) == 1 and not options.forms and not options.quiet:
        print(f"{name}: timm has no reparameterized form of it", file=sys.stderr)
    return Loaded(str(path), "timm"), forms, preprocess


def parse_options(arguments: Sequence[str]) -> Options:
    """Parse and check a command line.

    Raises:
        UsageError: options that do not go together, or a configuration that cannot be read.
        SystemExit: argparse's own, for --help (0) and mistyped options (2).
    """
    args = _parser().parse_args(arguments)
    if args.demo == (args.data is not None):
        raise UsageError("Name a val set with --data PATH, or use --demo (not both).")
    if args.demo and (args.variant or args.config or args.weights != "auto"):
        raise UsageError("--demo brings its own weights: leave --variant and --weights out.")
    if args.config and args.variant:
        raise UsageError("--config and --variant both name a configuration: use one.")
    if args.model and (args.demo or args.variant or args.config):
        raise UsageError("--model stands for itself: leave --variant, --config and --demo out.")
    if args.timm_results and not args.model:
        raise UsageError("--timm-results is shown beside a --model timm:NAME: name one.")
    exported = is_exported(args.weights)
    if args.model and exported:
        raise UsageError("--model with an exported file: leave --model out, the file is the model.")
    forms = _exported_forms(args) if exported else _forms(args.forms or ",".join(FORMS))
    if args.model and not args.forms:
        forms = ()  # those that it has
    backend = (
        args.backend or (RUNTIMES[Path(args.weights).suffix.lower()] if exported else BACKENDS)[0]
    )
    started = datetime.now(UTC)
    if args.model:
        from eval.models.timm import timm_variant

        variant = timm_variant(args.model, args.timm_results)
    elif args.config:
        variant = load_config(args.config)
    else:
        variant = load_variant(args.variant or "base_ssld")
    name = "demo" if args.demo else variant.name
    output = args.output or Path("results") / f"{name}-{started:%Y%m%dT%H%M%SZ}"
    return Options(
        data=args.data or output / "demo",
        demo=args.demo,
        model=args.model,
        variant=variant,
        weights=args.weights,
        exported=exported,
        forms=forms,
        preprocess=args.preprocess or (TIMM if args.model else PREPROCESSES[0]),
        backend=backend,
        device=args.device,
        precision=args.precision,
        batch_size=args.batch_size,
        workers=args.workers,
        limit=args.limit,
        on_bad_image=args.on_bad_image,
        labels=args.labels,
        output=output,
        history=args.history,
        baseline=args.baseline,
        cache=args.cache,
        real_labels=args.real_labels,
        quiet=args.quiet,
        verbose=args.verbose,
        started=started,
        command=shlex.join(["python", "-m", "eval.imagenet", *arguments]),
    )


def _forms(words: str) -> tuple[str, ...]:
    forms = words.split(",")
    if len(set(forms)) != len(forms) or not set(forms) <= set(FORMS):
        raise UsageError(f"--forms {words}: use unfused, reparameterized, or both.")
    return tuple(form for form in FORMS if form in forms)


def _exported_forms(args: argparse.Namespace) -> tuple[str, ...]:
    """An exported file is a form of its own, for its own runtimes."""
    runtimes = RUNTIMES[Path(args.weights).suffix.lower()]
    if args.forms:
        raise UsageError(f"--forms: {args.weights} is one form, as it was exported. Leave it out.")
    if args.backend and args.backend not in runtimes:
        raise UsageError(
            f"--backend {args.backend} cannot run {args.weights}: use {' or '.join(runtimes)}."
        )
    return (EXPORTED,)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval.imagenet",
        description="Measure PP-LCNetV2 on ImageNet, as trained and as deployed, and compare "
        "both with the reported accuracy.",
        epilog="Exit codes: 0 within tolerance or nothing to compare with; 1 outside; 2 usage; "
        "3 data; 4 weights; 5 useless or disagreeing answers; 70 a bug of ours; 130 interrupted.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        metavar="PATH",
        help="the val set: synset folders, flat, tar, Kaggle, parquet",
    )
    add(
        "--demo",
        action="store_true",
        help="run the whole job on a small val set and known-answer weights that it makes itself",
    )
    add("--variant", metavar="NAME", help=f"{', '.join(builtin_variants())} (default base_ssld)")
    add("--config", type=Path, metavar="FILE", help="a configuration of your own instead")
    add("--model", metavar="timm:NAME", help="any classifier of timm's instead")
    add(
        "--timm-results", type=Path, metavar="FILE", help="timm's table of results, to show its row"
    )
    add(
        "--weights",
        default="auto",
        metavar="FILE",
        help=".pdparams, .safetensors, .pth, .pt, or an exported .onnx or .xml; "
        "default auto: the cache, else download",
    )
    add("--forms", metavar="LIST", help=f"default {','.join(FORMS)}")
    add(
        "--preprocess",
        choices=PREPROCESSES,
        help=f"default {PREPROCESSES[0]}; with --model, timm's own for it",
    )
    add("--backend", choices=BACKENDS, help="default torch; an exported file's own runtime")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    add("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="default %(default)s")
    add("--batch-size", type=_positive, metavar="N", help="images per batch of a worker")
    add("--workers", type=_positive, metavar="N", help="default: one per core")
    add("--limit", type=_positive, metavar="N", help="first N images of a fixed shuffled order")
    add(
        "--on-bad-image",
        choices=("fail", "record"),
        default="fail",
        help="record: counts as wrong, listed, and the verdict is INCOMPLETE",
    )
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="default results/<variant>-<time>; continues an interrupted run there",
    )
    add("--labels", type=Path, metavar="FILE", help="a val list (name index) or a devkit file")
    add("--cache", type=Path, metavar="DIR", help="keep the crops there; later runs skip decoding")
    add("--real-labels", action="store_true", help="score against the ReaL labels, too")
    add("--history", type=Path, metavar="FILE", help="add the summary to a history, too")
    add("--baseline", metavar="PATH", help="compare with an earlier result at the end")
    add("--quiet", action="store_true", help="nothing on stderr but errors")
    add("--verbose", action="store_true", help="why the tolerance is what it is; tracebacks")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def _interrupt(*_: object) -> None:
    """SIGTERM ends a run as Ctrl-C does: what was measured is kept."""
    raise KeyboardInterrupt


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
