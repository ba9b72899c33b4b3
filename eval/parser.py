"""Command lines whose mistakes are answered in two lines, with the command that was meant."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from eval.cli import program
from eval.config import builtin_variants, meant_variant
from eval.errors import UsageError
from eval.text import examples, printable
from eval.values import Kind, OneOf, text

# Names that timm, torchvision's references, PaddleClas and others have for our options.
_OTHER_NAMES = {
    "--data": "--data-dir --data-path --dataset --dataset-path --val-dir --val-path --val --valdir "
    "--imagenet --root --image-root --images-dir --image-dir --images --input --dir --folder "
    "--path --datadir --test-dir -d -i",
    "--weights": "--checkpoint --ckpt --checkpoint-path --initial-checkpoint --resume -w "
    "--pretrained-model --pretrained-path --model-path --load --state-dict",
    "--batch-size": "-b --bs --batch --batchsize",
    "--workers": "-j --num-workers --threads --num-threads --jobs --nproc",
    "--model": "-m --arch -a --model-name",
    "--limit": "-n --num-samples --num-images --max-images --subset --count "
    "--performance-sample-count",
    "--output": "-o --out --out-dir --output-dir --save-dir --results-file --results-dir --log-dir",
    "--classes": "--class-map --class-file --class-names --classes-file --label-map",
    "--labels": "--ground-truth --gt --val-list --label-file --labels-file --annotations",
    "--preprocess": "--transform --transforms --preprocessing",
    "--precision": "--dtype --amp-dtype",
    "--forms": "--form",
    "--form": "--forms",
    "--format": "--formats --include",
    "--variant": "--variants --size",
    "--precision fp16": "--fp16 --half --amp",
    "--precision bf16": "--bf16",
    "--precision fp32": "--fp32",
    "--device cpu": "--cpu --no-cuda",
    "--device cuda": "--gpu --cuda",
    "--backend compile": "--torchcompile --torch-compile --compile",
    "--forms reparameterized": "--reparam --fuse --deploy",
    "--weights auto": "--pretrained",
    "--weights-entry state_dict_ema": "--use-ema --ema",
    "--calibrate": "--calibration-data --calib --calib-data",
    "--max-drop-top1": "--tolerance --threshold",
    "--classes FILE": "--num-classes --nb-classes",
    "--quiet": "-q --silent",
    "--verbose": "-v",
}
# Options of theirs for steps that are written as `--preprocess NAME,key=value` here.
_STEPS = {
    "crop": "--img-size --image-size --imgsz --input-size --crop-size --val-crop-size",
    "resize": "--resize --resize-size --val-resize-size --resize-short",
    "crop-pct": "--crop-pct",
    "interpolation": "--interpolation",
    "mean": "--mean",
    "std": "--std",
}
_STEP = {name: key for key, names in _STEPS.items() for name in names.split()}
# What needs no option here: all that is done is evaluation, the same in each run.
_NOTHING = (
    "--eval --evaluate -e --evaluate-only --eval-only --test-only --test --val-only --validate "
    "--channels-last --center-crop --seed --log-freq --print-freq -p --log-interval --pin-mem "
    "--no-prefetcher --split --mlperf-conf --scenario --profile --distributed --world-size "
    "--local-rank"
)
_NEEDLESS = frozenset(_NOTHING.split())
_DEVICES = frozenset(["--gpu", "--gpus", "--gpu-id", "--device-id", "--use-gpu"])
# What a command calls it that lacks an option of others here.
_ELSEWHERE = {"--model": "--variant", "--limit": "--images"}
_MEANT = {name: option for option, names in _OTHER_NAMES.items() for name in names.split()}

# PaddleClas's `-o KEY=VALUE`, by the last part of the key.
_PADDLE = {
    "pretrained_model": "--weights",
    "image_root": "--data",
    "infer_imgs": "--data",
    "batch_size": "--batch-size",
    "num_workers": "--workers",
    "device": "--device",
    "output_dir": "--output",
}
_PADDLE_DEVICES = {"gpu": "cuda"}

_DASHES = ("\u2014", "\u2013", "\u2212")
_MANY = {"-o", "--mean", "--std", *_STEPS["crop"].split()}  # of several words

_WEIGHTS = {
    *(".pdparams", ".safetensors", ".pth", ".pt", ".ckpt", ".bin"),
    *(".onnx", ".xml", ".tflite", ".param", ".mnn", ".pte"),
}


class Parser(argparse.ArgumentParser):
    """Options whose values are checked by their kinds (see `eval.values`)."""

    def __init__(
        self,
        command: str,
        description: str,
        epilog: str | None = None,
        *,
        is_laid_out: bool = False,
    ) -> None:
        super().__init__(
            prog=program(command),
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter
            if is_laid_out
            else argparse.HelpFormatter,
        )
        self._kinds: list[tuple[argparse.Action, Kind]] = []

    def add(self, name: str, kind: Kind = text, **details: Any) -> None:
        """Add an option or an argument that takes a value; `details` as of argparse."""
        if isinstance(kind, OneOf):
            details = {"metavar": f"{{{','.join(kind.names)}}}", **details}
        self._kinds.append((self.add_argument(name, **details), kind))

    def add_flag(self, name: str, about: str, **details: Any) -> None:
        """Add an option without a value."""
        self.add_argument(name, action="store_true", help=about, **details)

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse a command line.

        Raises:
            UsageError: it is none of this command; the message says what was meant, if it can be
                guessed.
            SystemExit: argparse's own, for ``--help``.
        """
        if not {"-h", "--help"} & set(words):
            self._refuse_unknown(words)
        values = self.parse_args(words)
        for action, kind in self._kinds:
            value = getattr(values, action.dest, None)
            if value is not None and value is not action.default:
                name = action.option_strings[0] if action.option_strings else str(action.metavar)
                checked = (
                    [kind(name, each) for each in value]
                    if isinstance(value, list)
                    else kind(name, value)
                )
                setattr(values, action.dest, checked)
        return values

    def said(self, option: str, words: Sequence[str]) -> str:
        """The last value that words give an option, whatever else is wrong with them; or ""."""
        reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        reader.add_argument(option, default="")
        try:
            known, _ = reader.parse_known_args(list(words))
        except (argparse.ArgumentError, SystemExit):  # it has no value
            return ""
        return str(vars(known)[option.lstrip("-").replace("-", "_")])

    def error(self, message: str) -> NoReturn:
        """What argparse finds wrong, as an error of ours."""
        missing = message.removeprefix("the following arguments are required: ")
        what = f"missing: {missing}" if missing != message else message.removeprefix("argument ")
        raise UsageError(f"{what}.\n{self.prog} --help explains the options.")

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        """Refuse what this command does not take, and say what was meant."""
        reading = _Reading(self, words)
        if not reading.unknown:
            return
        self._refuse_expanded(words, reading.unknown)
        what = ", ".join(map(printable, reading.unknown))
        advice = f"{self.prog} --help explains the options."
        if reading.meant is not None:
            advice = f"Did you mean: {self.prog} {printable(shlex.join(reading.meant))}"
        raise UsageError(f"{self.prog} does not take {what}.\n{advice}")

    def _refuse_expanded(self, words: Sequence[str], unknown: Sequence[str]) -> None:
        """Refuse the shards that a shell makes of one name with a star or braces."""
        first = Path(self.said("--data", words)) if self.action_of("--data") else Path()
        if first.suffix and all(
            (path.parent, path.suffix) == (first.parent, first.suffix)
            for path in map(Path, unknown)
        ):
            raise UsageError(
                f"--data names {1 + len(unknown)} files: {examples([str(first), *unknown])}.\n"
                f"Give their folder, --data {printable(shlex.quote(str(first.parent)))}, or quote "
                f"the name: --data 'x-{{00..63}}{printable(first.suffix)}'"
            )

    def action_of(self, name: str) -> argparse.Action | None:
        """The option of this name."""
        return self._option_string_actions.get(name)

    def kind_of(self, action: argparse.Action) -> Kind:
        """What the values of an option may be."""
        return next((kind for own, kind in self._kinds if own is action), text)

    def arguments(self) -> int:
        """How many words it takes that are no options."""
        return len(self._get_positional_actions())

    def options(self) -> list[str]:
        """The names of all options but the help."""
        return [name for name in self._option_string_actions if name not in ("-h", "--help")]


class _Reading:
    """A command line read as its author may have meant it.

    Attributes:
        unknown: what is no option of the command, and words that belong to no option.
        meant: the command line that was meant; None if that cannot be guessed.
    """

    def __init__(self, parser: Parser, words: Sequence[str]) -> None:
        self._parser = parser
        self._rest = deque(words)
        self._named = {word.partition("=")[0] for word in words if _is_option(word)}
        self._steps: list[str] = []
        self.unknown: list[str] = []
        self.meant: list[str] | None = []
        arguments = parser.arguments()
        after_flag = False
        while self._rest:
            word = self._rest.popleft()
            name, equals, value = word.partition("=")
            if attached := re.fullmatch(r"(-[a-zA-Z])([0-9]+)", word):
                name, equals, value = attached[1], "=", attached[2]
            is_bare = not arguments and bool(equals) and f"--{name}" in {*parser.options(), *_MEANT}
            is_dash = word.startswith(_DASHES)  # as word processors change it
            action = parser.action_of(name)
            if word == "--":
                self._means([word, *self._rest])
                return
            if action is not None:
                many = action.nargs == "+"
                takes = action.nargs != 0 and not equals
                self._means([word, *(self._values(many=many) if takes else ())])
            elif _is_option(word) or is_bare or is_dash:
                self.unknown.append(name if _is_option(word) else word)
                name = name if _is_option(word) else f"--{name.lstrip(''.join(_DASHES))}"
                many = name in _MANY
                values = [value] if equals else list(self._values(many=many))
                self._means(self._option(name, values))
            elif arguments:
                arguments -= 1
                self._means([word])
            else:
                self.unknown.append(word)
                home = self._home(word)
                self._means([] if home is None and after_flag else home)
            after_flag = action is not None and action.nargs == 0
        if self._steps:
            base = "own" if "--model" in self._named else "torchvision"
            is_free = parser.action_of("--preprocess") and "--preprocess" not in self._named
            recipe = ",".join((base, *self._steps))
            self._means(["--preprocess", recipe] if is_free else None)
        if parser.action_of("--data") and not {"--data", "--demo"} & self._named:
            self._means(["--data", "PATH"])

    def _means(self, words: list[str] | None) -> None:
        if words is None or self.meant is None:
            self.meant = None
        else:
            self.meant += words
            self._named |= {word for word in words if _is_option(word)}

    def _values(self, *, many: bool) -> Iterator[str]:
        """The words that follow an option as its values."""
        while self._rest and not _is_option(self._rest[0]):
            yield self._rest.popleft()
            if not many:
                return

    def _option(self, name: str, values: list[str]) -> list[str] | None:
        """The option that is meant by a name that is none here."""
        if name in ("-c", "-o") and (name == "-c" or any("=" in value for value in values)):
            return self._paddle(name, values)
        plain = f"--{name.lstrip('-').replace('_', '-').lower()}"
        known = self._parser.options()
        if name in known and len(values) == 1:
            return self._with_values(name, [], values)
        if {name, plain} & _NEEDLESS or (plain == "--dataset" and self._names_data()):
            self._rest.extendleft(values if values and "/" in values[0] else [])
            return []
        if plain in _STEP and values:
            last = "/".join(values) if plain in ("--mean", "--std") else values[-1]
            self._steps.append(f"{_STEP[plain]}={last}")
            return []
        if plain in _DEVICES and "--device" in known and values:
            is_cpu = values[0].lower() in ("false", "-1", "none")
            number = f":{values[0]}" if values[0].isdecimal() and plain != "--gpus" else ""
            return ["--device", "cpu" if is_cpu else f"cuda{number}"]
        close = difflib.get_close_matches(plain, known, n=1, cutoff=0.8)
        guesses = [_MEANT.get(name, ""), plain, _MEANT.get(plain, ""), *close]
        guesses += [_ELSEWHERE[guess] for guess in guesses if guess in _ELSEWHERE]
        if (images := self._parser.action_of("--images")) and images.metavar == "PATH":
            guesses = [guess for guess in guesses if guess != "--images" or name == guess]
        for guess in guesses:
            option, _, value = guess.partition(" ")
            if option in known and option not in self._named:
                return self._with_values(option, [value] if value else [], values)
        return None

    def _names_data(self) -> bool:
        """Whether another word names the data, too."""
        others = {f"--{name.lstrip('-').replace('_', '-')}" for name in self._named} - {"--dataset"}
        return any(name == "--data" or _MEANT.get(name) == "--data" for name in others)

    def _with_values(self, option: str, fixed: list[str], values: list[str]) -> list[str]:
        """An option with its value; words that it does not take are read again."""
        action = self._parser.action_of(option)
        assert action is not None
        if fixed or action.nargs == 0:
            is_number = fixed == ["FILE"] and values[:1] and values[0].isdecimal()
            self._rest.extendleft(() if is_number else reversed(values))
            return [option, *fixed]
        kind = self._parser.kind_of(action)
        if isinstance(kind, OneOf):
            values = [kind.meant.get(value.lower(), value) for value in values]
        return [option, *(values or [str(action.metavar or option.lstrip("-").upper())])]

    def _home(self, word: str) -> list[str] | None:
        """The option to which a word alone may belong."""
        wanted = [
            ("--weights", Path(word.lower().removesuffix(".tar")).suffix in _WEIGHTS),
            ("--variant", word in builtin_variants() or meant_variant(word) is not None),
            ("--model", word.startswith(("timm:", "torchvision:"))),
            ("--data", True),
            *((name, True) for name in self._parser.options() if self._is_required(name)),
        ]
        for option, fits in wanted:
            if fits and self._parser.action_of(option) and option not in self._named:
                return [option, meant_variant(word) or word if option == "--variant" else word]
        return None

    def _is_required(self, name: str) -> bool:
        action = self._parser.action_of(name)
        return action is not None and action.required

    def _paddle(self, name: str, values: list[str]) -> list[str] | None:
        """PaddleClas's options: a configuration, and changes of it."""
        found = []
        for word in values:
            key, _, value = word.partition("=")
            option = "--variant" if name == "-c" else _PADDLE.get(key.rpartition(".")[2], "")
            if name == "-c":
                value = meant_variant(Path(word).stem) or ""
            elif option == "--weights" and not Path(value).suffix:
                value += ".pdparams"  # which PaddleClas adds
            elif option == "--device":
                value = _PADDLE_DEVICES.get(value, value)
            if not value or not self._parser.action_of(option) or option in self._named:
                return None
            found += [option, value]
        return found


def _is_option(word: str) -> bool:
    """Whether argparse takes a word for an option, known or not."""
    is_number = re.fullmatch(r"-\d+|-\d*\.\d+", word)
    return word.startswith("-") and len(word) > 1 and " " not in word and not is_number
