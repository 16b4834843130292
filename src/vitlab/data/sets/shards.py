"""Images that `src/prepare.py` packed into shards, or indexed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitlab.data.source import Facts, Source


def problems(**settings: Any) -> Iterator[str]:
    """What is wrong with the settings, as far as names and sizes of files say."""
    from vitlab.data import shards as data_shards

    return data_shards.problems(**settings)


def count(*, data_dir: str, test_fraction: float, **_: Any) -> tuple[int, bool] | None:
    """Images of the train split, and whether there is a validation split, as the manifest says."""
    from vitlab.data.shards import known_samples

    return known_samples(data_dir, test_fraction)


@Facts(
    channels=3,
    in_memory=False,
    problems=problems,
    count=count,
    label=lambda source: Path(str(source.get("data_dir"))).name,
)
def shards(
    *,
    data_dir: str,
    shuffle_buffer: int | None = 10_000,
    verify: bool = False,
    test_fraction: float = 0.2,
    cache_dir: str | None = None,
    cache_gb: float = 100.0,
) -> Source:
    """Images that `src/prepare.py` packed into shards, or indexed.

    Args:
        data_dir: The folder, or a URL of LitData's (s3://, gs://, ...), from which shards are fetched when needed.
        shuffle_buffer: Among about how many images those of a step are drawn, shard after shard; None: among all,
            which reads a local disk at random places.
        verify: Compare every checksum before training.
        test_fraction: Share of the images that becomes the test split, if the set has none.
        cache_dir: Where fetched shards are kept; None: in the user's cache.
        cache_gb: About how many gigabytes of them are kept.
    """
    from vitlab.data.shards import load

    return load(
        data_dir=data_dir,
        shuffle_buffer=shuffle_buffer,
        verify=verify,
        test_fraction=test_fraction,
        cache_dir=cache_dir,
        cache_gb=cache_gb,
    )
