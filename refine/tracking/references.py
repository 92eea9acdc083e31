"""References to models of MLflow's registry: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``models:/NAME/latest``.

A reference is taken apart and checked here, without MLflow, before any work.
"""

from __future__ import annotations

import re

from refine import paths
from refine.errors import ServiceError, reason
from refine.system.names import fault

FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION or models:/NAME/latest"
LATEST = "latest"
_REFERENCE = re.compile(r"models:/(?P<name>[^/@]*)(@(?P<alias>[\w-]{1,100})|/(?P<version>[0-9]{1,9}|latest))")


def is_reference(model: object) -> bool:
    """Whether `model` is meant as a reference: anything that begins with `models:`, well formed or not."""
    return str(model).startswith(paths.REGISTERED)


def parse_reference(reference: str) -> tuple[str, str]:
    """(name, version number, `latest` or alias). Raises ServiceError: not one of the forms, or the name is a path."""
    found = _REFERENCE.fullmatch(reference)
    if found is None or fault(found["name"]):
        why = f" (the name {fault(found['name'])})" if found is not None else ""
        raise ServiceError(f"{reason(repr(reference), 100)}: expected {FORMS}{why}")
    return found["name"], found["alias"] or found["version"]
