"""Small val sets for tests: the first official images, in every layout that people have."""

from __future__ import annotations

import csv
import functools
import io
import json
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
from PIL import Image

from eval.images.classes import imagenet_classes
from eval.images.labels import official_labels

IMAGES = 6


def name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def synset(number: int) -> str:
    return imagenet_classes()[official_labels()[number - 1]].synset


@functools.cache
def jpeg(number: int, mode: str = "RGB") -> bytes:
    """A small photo that no other number has."""
    image = Image.linear_gradient("L").resize((40 + number, 30)).convert("RGB").convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def flat(root: Path, images: int = IMAGES) -> Path:
    root.mkdir(parents=True)
    for number in range(1, images + 1):
        (root / name(number)).write_bytes(jpeg(number))
    return root


def renamed(root: Path) -> Path:
    """As the Hugging Face copy and other tools name the files."""
    for path in flat(root).iterdir():
        number = int(path.stem[-8:])
        suffix = "jpeg" if number % 2 else "JPG"
        path.rename(root / f"{path.stem}_{synset(number)}.{suffix}")
    return root


def folders(root: Path) -> Path:
    for number in range(1, IMAGES + 1):
        (root / synset(number)).mkdir(parents=True, exist_ok=True)
        (root / synset(number) / name(number)).write_bytes(jpeg(number))
    return root


def tar(path: Path, names: list[str] | None = None, kind: int = tarfile.DEFAULT_FORMAT) -> Path:
    """A tar of the first images under other names, if any are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        # As the official one, not sorted.
        numbers = [*range(1, IMAGES + 1)]
        for number in reversed(numbers):
            member = tarfile.TarInfo(names[number - 1] if names else name(number))
            member.size = len(jpeg(number))
            archive.addfile(member, io.BytesIO(jpeg(number)))
    return path


def tar_of_folders(path: Path) -> Path:
    names = [f"./val/{synset(number)}/{name(number)}" for number in range(1, IMAGES + 1)]
    return tar(path, names)


def kaggle(root: Path) -> Path:
    flat(root / "ILSVRC" / "Data" / "CLS-LOC" / "val")
    solution(root / "LOC_val_solution.csv")
    return root


def solution(path: Path, images: int = IMAGES) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageId", "PredictionString"])
        for number in reversed(range(1, images + 1)):
            boxes = f"{synset(number)} 1 2 3 4 {synset(number)} 5 6 7 8 "
            writer.writerow([name(number).removesuffix(".JPEG"), boxes])
    return path


def parquet(root: Path, **columns: list[object]) -> Path:
    """Two shards, the first of two row groups."""
    shards = {0: [5, 2, 4], 1: [6, 1, 3]}
    (root / "data").mkdir(parents=True)
    for shard, numbers in shards.items():
        found = rows(numbers)
        table = pyarrow.table({"image": found["image"], "label": found["label"]} | columns)
        path = root / "data" / f"validation-{shard:05d}-of-00002.parquet"
        pyarrow.parquet.write_table(table, path, row_group_size=2)
    return root


def hugging_face(table: pyarrow.Table, names: list[str] | None = None) -> pyarrow.Table:
    """With what `datasets` notes about its columns: the names of a `ClassLabel`, if any."""
    label = {"names": names, "_type": "ClassLabel"} if names else {"_type": "Value"}
    features = {"image": {"_type": "Image"}, "label": label}
    return table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


def stream(path: Path, table: pyarrow.Table, **options: object) -> Path:
    """As `datasets` writes its files: Arrow's stream format, in batches."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pyarrow.ipc.new_stream(path, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def rows(numbers: list[int], labels: list[object] | None = None) -> pyarrow.Table:
    """Images of the validation set, in this order, as ILSVRC/imagenet-1k has them."""
    images = [{"bytes": jpeg(n), "path": name(n).replace(".", f"_{synset(n)}.")} for n in numbers]
    return pyarrow.table(
        {"image": images, "label": labels or [official_labels()[n - 1] for n in numbers]}
    )


def saved_to_disk(root: Path) -> Path:
    """Two splits, as `DatasetDict.save_to_disk` writes them; the classes as a `ClassLabel`."""
    names = sorted({synset(n) for n in range(1, IMAGES + 1)})
    for split, numbers in {"validation": [5, 2, 4, 6, 1, 3], "train": [5, 5]}.items():
        table = rows(numbers, [names.index(synset(n)) for n in numbers])
        stream(root / split / "data-00000-of-00001.arrow", hugging_face(table, names))
        (root / split / "state.json").write_text("{}")
        (root / split / "dataset_info.json").write_text("{}")
    (root / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    return root


def hub_cache(root: Path) -> Path:
    """The cache of the Hub: a snapshot of links to the files."""
    repository = root / "datasets--ILSVRC--imagenet-1k"
    shards = parquet(root / "downloaded") / "data"
    snapshot = repository / "snapshots" / "49e2ee26f3810fb5a7536bbf732a7b07389a47b5" / "data"
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    for number, path in enumerate(sorted(shards.iterdir())):
        (snapshot / path.name).symlink_to(f"../../../blobs/{number}")
        path.rename(repository / "blobs" / str(number))
    (repository / "refs" / "main").write_text(snapshot.parent.name)
    return repository


LAYOUTS = {
    "folders": folders,
    "flat": flat,
    "renamed": renamed,
    "tar": lambda root: tar(root / "ILSVRC2012_img_val.tar"),
    "tar of folders": lambda root: tar_of_folders(root / "val.tar"),
    "kaggle": kaggle,
    "parquet": parquet,
    "save_to_disk": saved_to_disk,
    "hub cache": hub_cache,
}
