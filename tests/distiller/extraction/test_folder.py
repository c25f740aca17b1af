"""Names of features in a folder, and what is damaged."""

import re
from pathlib import Path, PurePosixPath

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distiller.common.files import write_json
from distiller.extraction.folder import INDEX, VERSION, FeatureFolder, file_names, write_features
from upstream.errors import UserError


def test_a_name_is_the_path_without_the_ending() -> None:
    assert file_names(["a/b.wav", "a/c.FLAC", "talk.v2", "d.mp3"]) == ["a/b", "a/c", "talk.v2", "d"]


def test_names_that_are_taken_keep_their_ending_or_get_a_digest() -> None:
    names = file_names(["a.wav", "a.flac", ".a.flac"])
    assert names[:2] == ["a", "a.flac"]
    assert re.fullmatch(r"a\.flac-[0-9a-f]{16}", names[2])


def test_a_recording_beside_a_folder_of_its_name() -> None:
    names = file_names(["talk/one.wav", "talk.wav"])
    assert names == ["talk/one", "talk.wav"]  # HDF5 has no dataset in a dataset


ids = st.lists(st.text(st.sampled_from("ab./\0\n\ud800é-"), min_size=1, max_size=12), unique=True, max_size=8)


@given(ids)
def test_names_are_different_visible_and_stay_in_the_folder(names: list[str]) -> None:
    found = file_names(names)
    assert len(found) == len(set(found)) == len(names)
    for name in found:
        path = PurePosixPath(name)
        assert not path.is_absolute()
        assert all(not part.startswith(".") and part.isprintable() for part in path.parts)
        assert not {str(parent) for parent in path.parents} & set(found)  # none is a folder of another
        name.encode()


@pytest.mark.parametrize(("kind", "file"), [("npy", "a/b.npy"), ("safetensors", "features.000003.safetensors")])
def test_a_damaged_file_is_named(tmp_path: Path, kind: str, file: str) -> None:
    values = {"a/b": torch.arange(6.0).reshape(3, 2)}
    assert write_features(tmp_path, kind, 3, values) == [file]
    write_json(tmp_path / INDEX, {"version": VERSION, "utterances": [{"id": "x", "name": "a/b", "file": file}]})
    assert torch.equal(FeatureFolder(tmp_path)["x"], values["a/b"])
    (tmp_path / file).write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match="is missing or damaged"):
        FeatureFolder(tmp_path)["x"]
    write_json(tmp_path / INDEX, {"version": VERSION + 1})
    with pytest.raises(UserError, match=f"format version {VERSION + 1}, not {VERSION}"):
        FeatureFolder(tmp_path)
