"""YAML with a key given twice is refused with its lines; all other YAML is read as by PyYAML."""

from __future__ import annotations

import pytest
import yaml

from refine.system.unique_yaml import DuplicateKeyError, UniqueKeysLoader


def load_yaml(text: str):
    return yaml.load(text, Loader=UniqueKeysLoader)


MERGED = """
a: &a {x: 1, y: 2}
b: &b {<<: *a, y: 3}
c: {<<: [*a, *b], z: 4}
"""


@pytest.mark.parametrize("text", ["", "a: [1, 2.5, null, {b: yes}]", "1: a\n'1': b\n", MERGED])
def test_other_yaml_is_read_as_by_pyyaml(text):
    assert load_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", r"line 3: key 'a' is given twice \(first in line 1\)"),
        ("a:\n- {x: 1, x: 1}\n", r"line 2: key 'x' is given twice \(first in line 2\)"),
    ],
)
def test_a_key_given_twice_is_refused_at_any_depth(text, said):
    with pytest.raises(DuplicateKeyError, match=said):
        load_yaml(text)


def test_a_document_cannot_run_code():
    with pytest.raises(yaml.YAMLError):
        load_yaml("!!python/object/apply:os.system [true]")
