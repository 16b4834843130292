"""Build the objects that configuration nodes describe."""

from typing import Any

from hydra.utils import instantiate

from vitlab.config import allowlist
from vitlab.config.schema import Node


def build_object(node: Node, **supplied: Any) -> Any:
    """Build what a node describes. Raises `allowlist.NotTrusted` if it would call what no configuration may."""
    allowlist.require_allowed(node)
    return instantiate(node, _convert_="all", **supplied)
