"""Which files a model is: their hashes, and that they are still the ones that were read."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
from small_evaluations import evaluation_of, random_measurement

from eval.errors import ModelError
from eval.models import ModelFile, Subject, combined_sha256, identify

# SHA-256 of "abc", from FIPS 180-2, and of nothing.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    (tmp_path / "m.xml").write_bytes(b"abc")
    return tmp_path / "m.xml"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "m.bin").write_bytes(b"")
    return tmp_path / "m.bin"


def subject(*files: ModelFile) -> Subject:
    return dataclasses.replace(evaluation_of(random_measurement(4)).subject, files=files)


def test_files_by_hand(graph: Path, data: Path) -> None:
    assert identify([graph, data]) == (ModelFile(graph, 3, ABC), ModelFile(data, 0, NOTHING))
    assert identify([]) == ()


def test_files_larger_than_a_buffer(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4099
    (tmp_path / "large").write_bytes(content)
    (file,) = identify([tmp_path / "large"])
    assert (file.size, file.sha256) == (256 * 4099, hashlib.sha256(content).hexdigest())


def test_a_file_that_cannot_be_read(tmp_path: Path, graph: Path) -> None:
    with pytest.raises(ModelError) as caught:
        identify([graph, tmp_path / "none"])
    assert str(caught.value) == (
        f"{tmp_path / 'none'} cannot be read: No such file or directory.\n"
        "Give another file with --weights FILE."
    )
    with pytest.raises(ModelError, match="cannot be read: Is a directory"):
        identify([tmp_path])


def test_an_error_without_a_number_keeps_its_words(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("the share is gone")

    monkeypatch.setattr(hashlib, "file_digest", broken)
    with pytest.raises(ModelError, match="cannot be read: the share is gone"):
        identify([graph])


def test_one_file_has_its_own_hash(graph: Path) -> None:
    assert combined_sha256(identify([graph])) == ABC
    assert subject(*identify([graph])).sha256 == ABC


def test_several_files_have_the_hash_of_their_list(graph: Path, data: Path) -> None:
    """What ``sha256sum m.xml m.bin | LC_ALL=C sort | sha256sum`` prints."""
    listed = "6ab0fe1b1477394470c415a2883e48ba3babec78cf47267e09061c4d21dcec99"
    both = identify([graph, data])
    assert combined_sha256(both) == combined_sha256(both[::-1]) == listed
    assert subject(*both).sha256 == listed


def test_another_file_beside_the_graph_is_another_model(graph: Path, data: Path) -> None:
    """The graph alone is the same: it is the weights beside it that differ."""
    before = combined_sha256(identify([graph, data]))
    data.write_bytes(b"\0")
    assert combined_sha256(identify([graph, data])) != before
    data.rename(data.with_name("other.bin"))
    data.with_name("other.bin").write_bytes(b"")
    assert combined_sha256(identify([graph, data.with_name("other.bin")])) != before


def test_unknown_files_have_no_hash() -> None:
    assert subject().sha256 == ""
    subject().check_unchanged()


@pytest.mark.parametrize("changed", [0, 1])
def test_a_changed_file_is_noticed(graph: Path, data: Path, changed: int) -> None:
    known = subject(*identify([graph, data]))
    known.check_unchanged()
    (graph, data)[changed].write_bytes(b"abd")
    with pytest.raises(ModelError) as caught:
        known.check_unchanged()
    assert str(caught.value) == (
        f"{(graph, data)[changed]} changed during the evaluation, so the results cannot be "
        "trusted.\nRun the evaluation again."
    )


def test_a_file_that_is_gone_is_noticed(graph: Path) -> None:
    known = subject(*identify([graph]))
    graph.unlink()
    with pytest.raises(ModelError, match=r"m\.xml cannot be read: No such file"):
        known.check_unchanged()
