"""A node becomes the object that it describes."""

from torch.optim import SGD

from vitlab.config.instantiate import build_object
from vitlab.models.vit import VisionTransformer


def test_a_node_is_built_with_plain_lists_and_with_what_the_program_passes() -> None:
    node = {"_target_": "vitlab.models.vit.VisionTransformer", "patch_size": [2, 2], "dim": 16, "depth": 1, "heads": 2}
    network = build_object(node, image_size=[8, 8], num_classes=3)
    assert isinstance(network, VisionTransformer)
    optimizer = build_object({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5})(network.parameters())
    assert isinstance(optimizer, SGD)
    assert optimizer.defaults["lr"] == 0.5
