"""A reference to a registered model has one of three forms; anything else is refused without MLflow."""

from __future__ import annotations

import pytest

from refine.errors import ServiceError
from refine.tracking.references import is_reference, parse_reference


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("models:/refine-sample@champion", ("refine-sample", "champion")),
        ("models:/refine-sample/3", ("refine-sample", "3")),
        ("models:/refine-sample/latest", ("refine-sample", "latest")),
    ],
)
def test_name_and_version(reference, parts):
    assert parse_reference(reference) == parts


@pytest.mark.parametrize(
    "reference",
    [
        "models:/../x@champion",
        "models:/..@champion",
        "models:/a/b/c",
        "models:/a/b/1",
        "models:/a@b@c",
        "models:/a@../b",
        "models:/a/-1",
        "models:/a/champion",
        "models:/a",
        "models:/",
        "models:",
        "models:a@b",
        "models://host/a@b",
        "models:/a\0@champion",
        "models:/a\n@champion",
        "models:/a@champion\n",
        "models:/" + "a" * 10_000 + "@champion",
        "models:/a/" + "9" * 10_000,
        "models:/a'; DROP@champion",
    ],
)
def test_anything_else_is_one_line(reference):
    assert is_reference(reference)
    with pytest.raises(ServiceError, match="expected models:/NAME@ALIAS, models:/NAME/VERSION") as refused:
        parse_reference(reference)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_folders_and_hub_names_are_no_references():
    assert not any(map(is_reference, ["models", "./models:/x", "org/models", "sample/delta_net"]))
