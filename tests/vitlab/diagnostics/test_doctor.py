"""The report of a diagnosis: advice and lines of text."""

from vitlab.config.schema import Node
from vitlab.diagnostics import doctor
from vitlab.diagnostics.advise import Trial
from vitlab.diagnostics.measure import PARTS

SHARES = dict(zip(PARTS, (0.5, 0.01, 0.04, 0.12, 0.2, 0.03, 0.05, 0.05), strict=True))


def test_the_advice_names_the_bottleneck_and_the_largest_gain_first() -> None:
    trials = [
        Trial(overrides={"data.num_workers": 1}, gains=(1.2, 1.2)),
        Trial(overrides={"batch_size": 64}, gains=(1.5, 1.5)),
        Trial(overrides={"trainer.precision": "bf16-mixed"}, gains=(1.0, 1.0)),
    ]
    assert list(doctor.advice(SHARES, trials, True)) == [
        "waiting for data (decoding, augmenting files) is the bottleneck: 50% of a step",
        "large images load faster when packed at about the training size: src/prepare.py size=...",
        "batch_size=64: 1.50 x the images per second; changes the scores too: compare them",
        "data.num_workers=1: 1.20 x the images per second",
    ]
    computing = SHARES | {"data_wait": 0.1, "forward": 0.52}
    assert doctor.bottleneck(computing) == "step"
    assert list(doctor.advice(computing, trials[2:], False)) == [
        "the network is the bottleneck: 75% of a step is computing",
        "no tried change gains more than the noise",
    ]


def test_a_change_that_failed_has_a_line() -> None:
    report: Node = {"images_per_second": 10.0, "mfu": None, "step_ms": 1.0, "batch_size": 8, "workers": 0, "cores": 2}
    report |= {"shares": SHARES, "parts_ms": SHARES, "advice": ["rest"]}
    report["trials"] = [{"change": "batch_size=64", "gain": None, "spread": 0.0, "verdict": "out of memory"}]
    lines = list(doctor.report_lines(report))
    assert lines[0].startswith("as configured: 10 images/s; ")
    assert lines[-2].endswith("out of memory")
    assert lines[-1] == "- rest"
