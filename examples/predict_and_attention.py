"""What a trained network predicts for images, and where its last block looks.

    python examples/predict_and_attention.py runs/NAME/STAMP photos

Writes attention.png: the first image, and the attention of [cls] to its patches in each head of the last block.
"""

import sys

import matplotlib.pyplot as plt

import vitlab
from vitlab.evaluation.images import flat_images


def main() -> None:
    source, images = sys.argv[1:]
    model = vitlab.load(source)
    paths = list(flat_images(images))
    for path, top in zip(paths, model.predict(paths).top(3), strict=True):
        print(path, ", ".join(f"{name} {probability:.1%}" for name, probability in top))
    print("features:", tuple(model.embed(paths).shape))

    network = model.network
    heads = model.attention(paths[0])[-1, :, 0, network.prefix :]  # of the last block, from [cls] to the patches
    figure, axes = plt.subplots(1, len(heads) + 1, figsize=(2 * len(heads) + 2, 2.2), layout="constrained")
    axes[0].imshow(plt.imread(paths[0]), cmap="gray")
    for number, (axis, head) in enumerate(zip(axes[1:], heads, strict=True)):
        axis.imshow(head.view(network.grid))
        axis.set_title(f"head {number}")
    for axis in axes:
        axis.set_axis_off()
    figure.savefig("attention.png")


if __name__ == "__main__":
    main()
