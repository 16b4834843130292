"""The small ViT of the tests of models, and the arguments of timm's of the same sizes."""

from functools import partial
from typing import Any

from vitlab.models.vit import VisionTransformer

toy = partial(VisionTransformer, image_size=16, patch_size=4, dim=24, depth=3, heads=2, num_classes=5)
TIMM_TOY: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 2,
    "num_classes": 5,
}
