"""Train without the command line, then use the trained network.

    python examples/train_in_python.py trainer.max_epochs=20

The arguments are overrides, as of train.py.
"""

import sys

import vitlab
from vitlab.data.sets.digits import digits


def main() -> None:
    config = vitlab.compose(["data=digits", "model=vit_mini", "logger=csv", *sys.argv[1:]])  # checked, a plain dict
    results = vitlab.train(config)
    print(f"{results['status']}: test accuracy {results['test/acc']:.1%}, in {config['run_dir']}")

    model = vitlab.load(config["run_dir"])  # the best checkpoint, with its classes and preprocessing
    test = digits().test
    predicted = model.predict(test.images_at(slice(0, 5)))
    for label, top in zip(test.labels, predicted.top(2), strict=False):
        print(f"label {label}: {top}")


if __name__ == "__main__":
    main()
