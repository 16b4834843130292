"""Let any Hydra program with `vitlab.CONF` on its search path find what is in no file there: defaults, resolvers."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from vitlab.cli import register


class VitlabSearchPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        register.register_signatures()
        register.register_resolvers()
