"""The files of a checkpoint, where its path is a folder, or one of several shards.

Hugging Face keeps large checkpoints in shards, ``model-00001-of-00002.safetensors``, with an index
beside them, ``model.safetensors.index.json``, which says which tensor is in which.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

from pplcnet._errors import WeightsError, quoted

_ENDINGS = (".pdparams", ".safetensors", ".pth", ".pt", ".pth.tar", ".ckpt", ".bin")
_BEST = ("model.safetensors", "pytorch_model.bin")  # of a model on the Hugging Face hub
_GRAPHS = (".onnx", ".xml", ".tflite", ".param", ".mnn", ".pte")
_INDEX = ".index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.(safetensors|bin)")
_LARGEST_INDEX = 1 << 24  # bytes


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that hold the tensors of a checkpoint: mostly the path itself.

    Args:
        path: a file; a folder with one checkpoint in it; or an index of shards.

    Raises:
        WeightsError: a folder has none, or several; a shard is given alone, or one is missing.
    """
    if path.is_dir():
        return files_of(_only(path))
    if path.name.endswith(_INDEX):
        return _shards(path)
    shard = _SHARD.fullmatch(path.name)
    if shard and int(shard["count"]) > 1:
        raise WeightsError(
            f"{path}: shard {int(shard['number'])} of {int(shard['count'])}, a part of the "
            f"weights.\nGive the folder: --weights {path.parent}"
        )
    return (path,)


def hashed_files_of(path: Path) -> tuple[Path, ...]:
    """All files that the tensors depend on: those of `files_of`, and the index that names them.

    Raises:
        WeightsError: as `files_of`.
    """
    if path.is_dir():
        return hashed_files_of(_only(path))
    return (*files_of(path), *([path] if path.name.endswith(_INDEX) else []))


def _only(folder: Path) -> Path:
    """The checkpoint in a folder, or its index."""
    entries = sorted(entry for entry in folder.iterdir() if entry.is_file())
    names = {entry.name: entry for entry in entries if entry.name[0] != "."}
    found = [entry for name, entry in names.items() if name.endswith(_INDEX)]
    graphs = [name for name in names if name.endswith(_GRAPHS)]
    beside = {f"{Path(name).stem}.bin" for name in graphs}
    found += [
        entry
        for name, entry in names.items()
        if name.endswith(_ENDINGS) and not _SHARD.fullmatch(name) and name not in beside
    ]
    best = [names[name] for stem in _BEST for name in (stem, stem + _INDEX) if name in names]
    if len(found) == 1 or best:
        return (best or found)[0]
    if found:
        listed = ", ".join(quoted(entry.name)[1:-1] for entry in found[:8])
        raise WeightsError(
            f"{folder}: a folder with {len(found)} checkpoints: {listed}.\nGive one of them."
        )
    advice = "Give the path of the file."
    if graphs:
        raise WeightsError(
            f"{folder}: a folder with exported models: {', '.join(graphs[:8])}.\nGive one of them."
        )
    if "saved_model.pb" in names:
        raise WeightsError(
            f"{folder}: a SavedModel of TensorFlow.\nExport it to ONNX: python -m tf2onnx.convert "
            f"--saved-model {folder} --output FILE.onnx"
        )
    if any(name.endswith(".distcp") for name in names):
        advice = (
            "torch.distributed.checkpoint wrote it; make one file of it: python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} NEW.pth"
        )
    elif below := sorted(
        path
        for path in itertools.islice(itertools.chain(folder.glob("*/*"), folder.glob("*/*/*")), 999)
        if path.name.endswith(_ENDINGS)
    ):
        advice = f"Did you mean {' or '.join(map(str, below[:3]))}?"
    raise WeightsError(
        f"{folder}: a folder without a checkpoint ({', '.join(_ENDINGS)}).\n{advice}"
    )


def _shards(index: Path) -> tuple[Path, ...]:
    """All files that an index names, in the order of their names."""
    try:
        if index.stat().st_size > _LARGEST_INDEX:
            raise ValueError
        table = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(table.values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{index}: not an index of shards: it has no weight_map of tensors and files.\n"
            "Download the folder again."
        ) from error
    paths = []
    for name in names:
        if not isinstance(name, str) or name != Path(name).name or not _SHARD.fullmatch(name):
            raise WeightsError(
                f"{index}: it names {quoted(str(name))}, which is no shard beside it.\n"
                "Download the folder again."
            )
        if not (index.parent / name).is_file():
            raise WeightsError(
                f"{index}: {name} is missing, one of {len(names)} shards.\n"
                "Download the folder again."
            )
        paths.append(index.parent / name)
    if not paths:
        raise WeightsError(f"{index}: it names no shards.\nDownload the folder again.")
    return tuple(paths)
