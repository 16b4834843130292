"""A download that fails says what to put where."""

from pathlib import Path

import pytest

from vitlab.data.sets.download import download


def test_what_is_fetched_is_returned_and_a_failure_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert download("mine", str(folder), lambda: [folder.is_dir()], "buy it") == [True]

    def fetch() -> None:
        raise RuntimeError("the server\nhung up")

    with pytest.raises(FileNotFoundError) as caught:
        download("mine", str(folder), fetch, "buy it")
    assert str(caught.value) == f"mine isn't in data_dir={folder} and can't be downloaded (the server hung up); buy it"
