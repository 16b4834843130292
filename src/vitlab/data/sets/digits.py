"""Handwritten digits of 8 x 8 pixels, in scikit-learn's wheel."""

from vitlab.data.source import Facts, Source, Split


@Facts(native_size=8, channels=1, num_classes=10, train_samples=1437, in_memory=True, epochs=120)
def digits() -> Source:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (UCI, test part of Optical Recognition).

    The set has no published split: a fixed stratified fifth (360 images, seed 0) is the test split, for good. Gray
    values 0..16 become 0..255, rounded.
    """
    import torch
    from sklearn.datasets import load_digits

    from vitlab.data.splitting import stratified_split

    data = load_digits()
    images = (torch.from_numpy(data.images) * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(data.target).long()
    train, test = stratified_split(labels, 360, seed=0, knob="test samples of digits")
    everything = Split(images, labels)
    classes = tuple(str(name) for name in data.target_names)
    return Source("digits", classes, 1, (0.3054,), (0.3760,), 8, everything.subset(train), everything.subset(test))
