"""Published sizes have the names that the literature gives them."""

from conftest import Configure
from vitlab.jobs.compose import CONF
from vitlab.models.sizes import SIZES


def test_every_preset_of_a_published_size_has_its_name(configure: Configure) -> None:
    presets = sorted(file.stem for file in (CONF / "model").glob("vit_*.yaml") if file.stem != "vit_mini")
    assert len(presets) > len(SIZES)
    for preset in presets:
        assert configure(f"model={preset}")["name"] == f"digits-{preset}-224px"
