"""params.yaml as validated, documented settings. Only this package reads that file.

Each file holds related sections. A section refuses unknown names. `load` raises SettingError with one line that names
the wrong setting and the nearest known name.
"""

from refine.settings.base import Section, validated
from refine.settings.experiment import CommonSettings, Drill, PretrainingSettings, Settings
from refine.settings.loading import load, load_recipe
from refine.settings.objective import ObjectiveSettings

__all__ = [
    "CommonSettings",
    "Drill",
    "ObjectiveSettings",
    "PretrainingSettings",
    "Section",
    "Settings",
    "load",
    "load_recipe",
    "validated",
]
