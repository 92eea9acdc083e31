"""Readers of settings, and of the files of DVC."""

from __future__ import annotations

from pathlib import Path

from tests.hostile import mutations as bad
from tests.hostile.reader import CHECKOUT, Reader, yaml_of


def _load_params(path: Path) -> None:
    from refine import settings
    from refine.identity import hash_of

    hash_of(settings.load(path).model_dump(mode="json"))


def _load_recipe(path: Path) -> None:
    from refine import settings
    from refine.identity import hash_of

    hash_of(settings.load_recipe(path).model_dump(mode="json"))


def _data_version(path: Path) -> None:
    from refine.data.corpus import version
    from refine.identity import data_version

    data_version(path)
    found = version.recorded(path)
    if found is not None:
        version.differences(found, version.Version("0.dir", {"train.parquet": "0"}))


def _dvc_stages(path: Path) -> None:
    from refine.data.corpus.dvc_stages import stages

    assert all(isinstance(name, str) for name in stages(path))


SETTINGS = (
    Reader("params.yaml", "params.yaml", yaml_of(CHECKOUT / "params.yaml"), bad.write_yaml, _load_params),
    Reader("recipe", "recipe.yaml", yaml_of(CHECKOUT / "refine/settings/recipes/delta_net.yaml"), bad.write_yaml,
           _load_recipe),
    Reader("data.dvc", "data.dvc", yaml_of(CHECKOUT / "data.dvc"), bad.write_yaml, _data_version),
    Reader("dvc.yaml", "dvc.yaml", yaml_of(CHECKOUT / "dvc.yaml"), bad.write_yaml, _dvc_stages),
)  # fmt: skip
