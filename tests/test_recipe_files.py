"""Recipes from the files of other programs, and from our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.errors import UsageError
from eval.recipe import Recipe, parse
from eval.recipe_files import LARGEST_FILE, recipe_of

OWN = Recipe(size=288)


def read(tmp_path: Path, name: str, content: str | dict[str, Any]) -> str:
    """The text of the recipe that a file of this content says."""
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return recipe_of(path).text


def test_texts_are_no_files() -> None:
    assert recipe_of("paddle,crop=288") == parse("paddle,crop=288")
    assert recipe_of("own", OWN) == OWN
    assert recipe_of("paddle,scale=1/127.5").scale == 1 / 127.5


# --- TOML -----------------------------------------------------------------------------------------


def test_toml(tmp_path: Path) -> None:
    text = """recipe = "paddle"
exif = false
resize = "224x224"
interpolation = "bicubic"
mean = [0.5, 0.25, 1]
std = 0.5
scale = "1/256"
"""
    said = (
        "paddle,exif=off,resize=224x224,interpolation=bicubic,scale=1/256,mean=0.5/0.25/1,std=0.5"
    )
    assert read(tmp_path, "a.toml", text) == said
    assert recipe_of(tmp_path / "a.toml") == parse(said)
    assert read(tmp_path, "b.TOML", "crop = 288\ncrop-pct = 1.0\n") == (
        "torchvision,resize=288,crop=288"
    )
    assert read(tmp_path, "c.toml", "") == "torchvision"


# --- Hugging Face ---------------------------------------------------------------------------------

VIT = {
    "do_normalize": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5], "resample": 2, "size": 224,
    "feature_extractor_type": "ViTFeatureExtractor",
}  # fmt: skip
CLIP = {
    "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True,
    "do_normalize": True, "do_rescale": True, "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "CLIPImageProcessor", "resample": 3,
    "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 224},
}  # fmt: skip
CONVNEXT = {
    "crop_pct": 0.875, "do_normalize": True, "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3,
    "image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224},
}  # fmt: skip
MOBILEVIT = {
    "crop_size": {"height": 256, "width": 256}, "do_center_crop": True,
    "do_flip_channel_order": True, "do_resize": True, "resample": 2,
    "feature_extractor_type": "MobileViTFeatureExtractor", "size": {"shortest_edge": 288},
}  # fmt: skip
CLIP_NORM = "mean=0.48145466/0.4578275/0.40821073,std=0.26862954/0.26130258/0.27577711"


@pytest.mark.parametrize(
    ("base", "changes", "text"),
    [
        (VIT, {}, "torchvision,resize=224x224,offset=floored,mean=0.5,std=0.5"),
        (VIT, {"size": {"height": 384, "width": 384}, "resample": 3},
         "torchvision,resize=384x384,interpolation=bicubic,crop=384,offset=floored,mean=0.5,std=0.5"),
        (VIT, {"do_normalize": False}, "raw,resize=224x224,offset=floored,scale=255"),
        (VIT, {"do_rescale": False, "do_normalize": False},
         "raw,resize=224x224,offset=floored"),
        (VIT, {"rescale_factor": 0.00784313725490196, "image_mean": 1, "image_std": 1},
         "raw,resize=224x224,offset=floored,scale=127.5,mean=1"),
        (VIT, {"feature_extractor_type": "DeiTImageProcessorFast", "size": 256,
               "crop_size": 224, "resample": 1},
         "torchvision,resize=256x256,interpolation=lanczos,offset=floored,mean=0.5,std=0.5"),
        (CLIP, {}, f"torchvision,resize=224,interpolation=bicubic,offset=floored,{CLIP_NORM}"),
        (CLIP, {"size": 256, "crop_size": 224, "resample": 4},
         f"torchvision,interpolation=area,offset=floored,{CLIP_NORM}"),
        (CLIP, {"do_resize": False},
         f"torchvision,resize=none,offset=floored,{CLIP_NORM}"),
        (CONVNEXT, {}, "torchvision,interpolation=bicubic,offset=floored"),
        (CONVNEXT, {"crop_pct": 0.95},
         "torchvision,resize=235,interpolation=bicubic,offset=floored"),
        (CONVNEXT, {"size": {"shortest_edge": 384}},
         "torchvision,resize=384x384,interpolation=bicubic,crop=384,offset=floored"),
        (MOBILEVIT, {}, "raw,resize=288,crop=256,offset=floored,channels=bgr,scale=255"),
        (MOBILEVIT, {"do_flip_channel_order": False},
         "raw,resize=288,crop=256,offset=floored,scale=255"),
    ],
)  # fmt: skip
def test_hugging_face(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], text: str
) -> None:
    """As the files on the hub are; compared with transformers 5.24 bit for bit, by hand."""
    assert read(tmp_path, "preprocessor_config.json", base | changes) == text


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (VIT, {"feature_extractor_type": "LevitFeatureExtractor"},
         "image_processor_type is LevitFeatureExtractor, which no recipe can say.\nWrite the st"),
        (VIT, {"feature_extractor_type": None}, "image_processor_type is None, which"),
        (VIT, {"resample": 5}, "resample = 5, which"),
        (VIT, {"do_pad": True}, "it has do_pad = True, which"),
        (VIT, {"include_top": True}, "it has include_top = True, which"),
        (VIT, {"crop_pct": 0.9}, "it has crop_pct = 0.9, which"),
        (VIT, {"size": {"height": 224, "width": 256}}, "it has the size {'height': 224, 'width'"),
        (VIT, {"size": {"longest_edge": 224}}, "it has the size {'longest_edge': 224}, which"),
        (VIT, {"rescale_factor": 0.00392157}, "it has rescale_factor = 0.00392157, which"),
        (CLIP, {"do_center_crop": False}, "images keep their aspect and are not cropped, which"),
        (VIT, {"size": 0}, "cannot be read: a side is 0, not 1 to 4096 pixels"),
        (VIT, {"size": None}, "cannot be read: a side is None"),
        (VIT, {"image_mean": None}, "image_mean and image_std: None are not three numbers"),
        (VIT, {"image_std": [0, 1, 1]}, "image_mean and image_std: [0, 1, 1] are not three num"),
    ],
)  # fmt: skip
def test_hugging_face_refused(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, "preprocessor_config.json", base | changes)
    assert message in str(caught.value)


# --- PaddleClas -----------------------------------------------------------------------------------

DEPLOY = """Global:
  infer_imgs: "./images/ILSVRC2012_val_00000010.jpeg"
PreProcess:
  transform_ops:
    - ResizeImage:
        resize_short: 256
    - CropImage:
        size: 224
    - NormalizeImage:
        scale: 0.00392157
        mean: [0.485, 0.456, 0.406]
        std: [0.229, 0.224, 0.225]
        order: ''
        channel_num: 3
    - ToCHWImage:
"""


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("", "", "paddle,scale=0.00392157"),
        ("0.00392157", "1.0/255.0", "paddle"),
        ("0.00392157", "0.00392156862745098", "paddle"),
        ("scale: 0.00392157", "order: hwc", None),  # given twice: the last one counts in YAML
        ("resize_short: 256", "size: 256", "squash,scale=0.00392157"),
        ("resize_short: 256", "size: [256, 256]", "squash,scale=0.00392157"),
        ("resize_short: 256",
         "resize_short: 256\n        interpolation: bicubic\n        backend: pil",
         "paddle,resizer=pillow,interpolation=bicubic,scale=0.00392157"),
        ("resize_short: 256", "resize_short: 256\n        interpolation: area",
         "paddle,interpolation=area,scale=0.00392157"),
        ("    - CropImage:\n        size: 224\n", "", None),
        ("resize_short: 256\n    - CropImage:\n        size: 224\n", "size: 224\n",
         "paddle,resize=224x224,scale=0.00392157"),
        ("  - ResizeImage:", "  - DecodeImage: {to_rgb: False, to_np: False}\n    - ResizeImage:",
         "paddle,channels=bgr,scale=0.00392157"),
        ("PreProcess:\n  transform_ops:", "PreProcess:", "paddle,scale=0.00392157"),
    ],
)  # fmt: skip
def test_paddle(tmp_path: Path, old: str, new: str, text: str | None) -> None:
    content = DEPLOY.replace(old, new)
    if text is None:
        if "CropImage" in content:
            assert read(tmp_path, "inference.yml", content) == "paddle"
            return
        with pytest.raises(UsageError, match="images keep their aspect and are not cropped"):
            read(tmp_path, "inference.yml", content)
    else:
        assert read(tmp_path, "inference_cls.yaml", content) == text


def test_paddle_without_normalization(tmp_path: Path) -> None:
    text = "PreProcess:\n  - ResizeImage: {size: 299}\n"
    assert read(tmp_path, "a.yml", text) == "paddle,resize=299x299,crop=299,scale=1,mean=0,std=1"
    everything = text + "  - NormalizeImage:\n"
    assert read(tmp_path, "b.yml", everything) == "paddle,resize=299x299,crop=299"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ToCHWImage", "RandFlipImage", "it has RandFlipImage, which no recipe can say.\nWrite"),
        ("ResizeImage:\n        resize_short", "CropImage:\n        size", "it has CropImage af"),
        ("order: ''", "output_fp16: True", "its NormalizeImage has output_fp16, which"),
        ("channel_num: 3", "channel_num: 4", "its NormalizeImage has channel_num other than 3"),
        ("channel_num: 3", "gamma: 2", "its NormalizeImage has gamma = 2, which"),
        ("0.00392157", "2.0", "its NormalizeImage has scale = 2.0, which"),
        ("resize_short: 256", "size: [256, 224]", "a side is [256, 224], not"),
        ("resize_short: 256", "resize_short: 256\n        backend: pil",
         "its ResizeImage has backend pil without interpolation, which"),
        ("resize_short: 256", "resize_short: 256\n        interpolation: random",
         "its ResizeImage has interpolation random of cv2, which"),
        ("size: 224", "size: 0", "cannot be read: a side is 0, not 1 to 4096 pixels"),
        ("transform_ops", "other", "cannot be read: it has no PreProcess: transform_ops"),
        ("- ToCHWImage:", "- ToCHWImage", "cannot be read: not a step: 'ToCHWImage'"),
        ("- ToCHWImage:", "- [", "cannot be read: while parsing a flow"),
        ("- ToCHWImage:", "- !!python/object/apply:os.getcwd []",
         "cannot be read: could not determine a constructor"),
    ],
)  # fmt: skip
def test_paddle_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, "inference.yml", DEPLOY.replace(old, new))
    assert message in str(caught.value)


# --- Any file -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", "resize =", "a.toml cannot be read: Invalid value"),
        ("a.toml", "resiz = 3", "there is no key 'resiz'. Did you mean resize?\nUse one of dec"),
        ("a.toml", "exif = 1", "exif=1 cannot be read.\nWrite on or off."),
        ("a.toml", 'recipe = "own"', "recipe = own: there is no preprocessing 'own'."),
        ("a.json", "[]", "a.json cannot be read: not a JSON object"),
        ("a.json", "{", "a.json cannot be read: Expecting property name"),
        ("a.json", "[" * 100_000, "a.json cannot be read: it is nested too deeply."),
        ("a.yml", "[" * 5_000, "a.yml cannot be read: it is nested too deeply."),
        ("a.yml", "1", "a.yml cannot be read: it has no PreProcess: transform_ops"),
        ("a.json", " " * (LARGEST_FILE + 1), "has more than 1,048,576 bytes.\nName a recipe's"),
    ],
    ids=lambda value: value[:20],
)
def test_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, name, content)
    assert message in str(caught.value)


def test_files_that_are_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--preprocess .*x\.toml: there is no such file\."):
        recipe_of(tmp_path / "x.toml")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UsageError, match=r"b\.json cannot be read: 'utf-8' codec"):
        recipe_of(tmp_path / "b.json")
    (tmp_path / "d.json").mkdir()
    with pytest.raises(UsageError, match=r"d\.json cannot be read: .*directory"):
        recipe_of(tmp_path / "d.json")
