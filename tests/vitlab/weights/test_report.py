"""The report has a line for each kind of source and reason."""

from vitlab.weights.report import Report, format_grid, names_by_reason


def test_the_table_has_a_line_for_each_kind_even_if_it_is_none() -> None:
    report = Report("weights from x", matched=["a", "b"], numbers=1234)
    assert report.table().splitlines() == [
        "weights from x",
        "  matched      2 tensors as they are; 1,234 numbers in all",
        "  resampled    none",
        "  new          none",
        "  unused       none",
    ]


def test_names_that_share_a_reason_share_a_line() -> None:
    report = Report("t", new={"head.weight": "9 classes", "head.bias": "9 classes", "reg_token": "not there"})
    report.resampled["pos_embed"] = "14x14 -> 24x24"
    report.notes.append("assumed")
    report.problems.append("missing")
    lines = report.table().splitlines()
    assert "  new          head.weight, head.bias: 9 classes" in lines
    assert "  new          reg_token: not there" in lines
    assert "  resampled    pos_embed: 14x14 -> 24x24" in lines
    assert lines[-2:] == ["  note         assumed", "  note         missing"]


def test_long_lists_are_cut_and_counted() -> None:
    assert names_by_reason(dict.fromkeys(map(str, range(8)), "x")) == ["0, 1, 2, 3, 4, 5 and 2 more: x"]
    assert names_by_reason({"a": "x", "b": "y", "c": "x"}) == ["a, c: x", "b: y"]
    assert format_grid((14, 7)) == "14x7"
