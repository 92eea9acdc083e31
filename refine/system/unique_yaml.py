"""YAML in which no key is given twice. PyYAML would take the last one without a word."""

from __future__ import annotations

from typing import Any

import yaml


class DuplicateKeyError(yaml.YAMLError):
    """A mapping gives a key twice. The message names the key and both lines."""


class UniqueKeysLoader(yaml.SafeLoader):
    """PyYAML's SafeLoader, which refuses a key that is given twice."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                raise DuplicateKeyError(f"line {line}: key {key.value!r} is given twice (first in line {lines[name]})")
            lines[name] = line
        return node
