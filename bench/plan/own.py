"""The user's own settings: the folder ``conf`` where the command is run, searched after the package's."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

CONF = Path(__file__).resolve().parents[2] / "conf"


class OwnConf(SearchPathPlugin):
    """Hydra asks it whenever it begins; a launcher's workers are handed settings that are already composed."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        own = Path("conf").resolve()
        if own.is_dir() and own != CONF:
            search_path.append("own", f"file://{own}")


def search_own() -> None:
    """From now on, Hydra finds the files of ``./conf``, too."""
    if OwnConf not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(OwnConf)
