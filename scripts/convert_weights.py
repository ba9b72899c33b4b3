"""Convert PP-LCNetV2 weights to safetensors: ``convert_weights.py IN OUT.safetensors``.

IN is ``.pdparams``, ``.pth``, ``.pt`` or ``.safetensors`` in Paddle's, timm's or this package's
layout; variant and form are recognised. OUT has this package's names, in float32, and is read
back and compared before it gets its name.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from eval.command import run_command
from eval.errors import ModelError, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code, as of ``python -m eval.imagenet``."""
    return run_command(_run, argv)


def _run(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="Exit codes: 0 OUT is written; 2 it cannot be written, or wrong options; 4 IN is "
        "missing, damaged or refused; 70 a crash; 130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="IN", type=Path, help="a checkpoint")
    parser.add_argument("target", metavar="OUT", type=Path, help="the .safetensors file to write")
    parser.add_argument(
        "--reparameterize", action="store_true", help="write the deploy form, branches merged"
    )
    args = parser.parse_args(arguments)
    if args.target.suffix != ".safetensors":
        raise UsageError(f"OUT must end in .safetensors: {args.target}")

    from pplcnet import WeightsError

    try:
        print(convert(args.source, args.target, args.reparameterize))
    except WeightsError as error:
        raise ModelError(str(error)) from error
    except OSError as error:
        raise UsageError(f"{args.target} cannot be written: {error}") from error
    return 0


def convert(source: Path, target: Path, deploy: bool) -> str:
    """Write `target`, atomically, and describe it in one line.

    Raises:
        WeightsError: `source` is missing, damaged, refused, or no PP-LCNetV2.
        OSError: `target` cannot be written.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from pplcnet import count_parameters, is_reparameterized, read_weights, reparameterize
    from pplcnet._weights import model_for

    weights = read_weights(source)
    model = model_for(weights)
    if deploy:
        model = reparameterize(model)
    state = {
        name: value.contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith(".num_batches_tracked")
    }
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        temporary = Path(folder) / target.name
        save_file(state, temporary, metadata={"format": "pt", "source": source.name})
        written = load_file(temporary)
        if written.keys() != state.keys() or not all(
            torch.equal(written[name], state[name]) for name in state
        ):
            raise OSError("what was read back differs from what was written")
        temporary.chmod(0o644)
        temporary.replace(target)
    form = "reparameterized" if is_reparameterized(model) else "unfused"
    return (
        f"{target}: {form}, {count_parameters(model):,} parameters in {len(state)} tensors, "
        f"from {weights.layout} layout"
    )


if __name__ == "__main__":
    sys.exit(main())
