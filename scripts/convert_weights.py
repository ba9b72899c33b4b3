"""Convert PP-LCNetV2 weights to safetensors: ``convert_weights.py IN OUT.safetensors``.

IN is a ``.pdparams``, ``.pth``, ``.pt`` or ``.safetensors`` file in Paddle's, timm's or this
package's layout; its variant and form are recognized. OUT has this package's names and float32
tensors, and a mark where those were stored in less before, so that it is judged as they were. It is
written to a temporary file, read back and compared, and only then renamed to OUT.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from eval.cli import run_command
from eval.errors import ModelError, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code, as ``python -m eval.imagenet`` does."""
    return run_command(_run, argv)


def _run(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="Exit codes: 0 OUT was written; 2 wrong options, or OUT cannot be written; 4 IN is "
        "missing, damaged, refused or not a PP-LCNetV2; 70 crash; 130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="IN", type=Path, help="checkpoint to read")
    parser.add_argument("target", metavar="OUT", type=Path, help=".safetensors file to write")
    parser.add_argument(
        "--reparameterize",
        action="store_true",
        help="write the deploy form: branches merged, batch normalization folded",
    )
    parser.add_argument(
        "--weights-entry",
        metavar="NAME",
        default="",
        help="which of the models in a training checkpoint",
    )
    args = parser.parse_args(arguments)
    if args.target.suffix != ".safetensors":
        raise UsageError(f"OUT must end in .safetensors: {args.target}")

    from pplcnet import WeightsError

    try:
        print(convert(args.source, args.target, args.reparameterize, args.weights_entry))
    except WeightsError as error:
        raise ModelError(str(error)) from error
    except OSError as error:
        raise UsageError(f"{args.target} cannot be written: {error}") from error
    return 0


def convert(source: Path, target: Path, deploy: bool, entry: str = "") -> str:
    """Convert a checkpoint; `target` is written atomically.

    Args:
        source: checkpoint to read.
        target: ``.safetensors`` file to write.
        deploy: write the deploy form.
        entry: which of the models in `source`; "" for the only one.

    Returns:
        One line that describes `target`.

    Raises:
        WeightsError: `source` is missing, damaged, refused, or not a PP-LCNetV2.
        OSError: `target` cannot be written.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from eval.models.stored import stored_precision
    from pplcnet import count_parameters, is_reparameterized, read_weights, reparameterize
    from pplcnet._checkpoint import STORED_KEY
    from pplcnet._weights import model_for

    weights = read_weights(source, entry)
    model = model_for(weights)
    if deploy:
        model = reparameterize(model)
    once = stored_precision(weights.tensors.values(), weights.stored)
    metadata = {"format": "pt", "source": source.name}
    if once != "fp32":
        metadata[STORED_KEY] = once
    state = {
        name: value.contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith(".num_batches_tracked")
    }
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        temporary = Path(folder) / target.name
        save_file(state, temporary, metadata=metadata)
        written = load_file(temporary)
        if written.keys() != state.keys() or not all(
            torch.equal(written[name], state[name]) for name in state
        ):
            raise OSError("the tensors read back differ from those written")
        temporary.chmod(0o644)
        temporary.replace(target)
    was = "" if once == "fp32" else f", marked as {once}"
    form = "reparameterized" if is_reparameterized(model) else "unfused"
    return (
        f"{target}: {form}, {count_parameters(model):,} parameters in {len(state)} tensors, "
        f"from {weights.layout} layout{was}"
    )


if __name__ == "__main__":
    sys.exit(main())
