"""ImageNet evaluation of PP-LCNetV2: ``python -m eval.imagenet``."""
