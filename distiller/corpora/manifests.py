"""The entries of file lists and of Lhotse manifests, as written by editors and other tools.

Entries of manifests are checked one by one: Lhotse itself accepts any JSON value for any field.
"""

import codecs
import gzip
import math
import os
import re
from pathlib import Path
from typing import Any

from lhotse import AudioSource, Recording
from lhotse.cut import Cut, MixedCut, PaddingCut
from lhotse.cut.data import DataCut
from lhotse.serialization import decode_json_line, deserialize_item
from lhotse.utils import fastcopy

from distiller.audio.headers import TOLERANCE, Header
from distiller.audio.skipped import Skipped
from distiller.common.files import disk_error, disk_errors, expanded
from upstream.errors import UserError


def read_list(path: Path) -> tuple[Path, list[tuple[int, Path]]]:
    """The folder that the entries of a list are in, and the line number and path of each.

    Comments, blank lines and anything after a tab are ignored. A fairseq list has the folder in its first line, and the
    number of samples after tabs.

    Raises:
        UserError: it cannot be read, or a line is not UTF-8.
    """
    with disk_errors(path, "read"):
        content = path.read_bytes()
    try:
        text = content.decode(
            "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        )
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"list {path}, line {line} cannot be read: it is not UTF-8") from error
    lines = [(number, line.strip()) for number, line in enumerate(re.split("\r\n|\n|\r", text), 1)]
    lines = [(number, line) for number, line in lines if line and (line[0] != "#" or (path.parent / line).exists())]
    folder = path.parent
    if len(lines) > 1 and "\t" not in lines[0][1] and re.search(r"\t\d+$", lines[1][1]):
        (number, root), *lines = lines
        folder = next((one for one in (folder / root, Path(root).absolute()) if one.is_dir()), None)
        if folder is None:
            raise UserError(f"list {path}, line {number}: {root} is not a folder, but fairseq lists begin with one")
    elif path.suffix == ".tsv":
        raise UserError(
            f"{path} is not a corpus; a corpus is a folder, or a file; a .tsv must be in fairseq's format, one line "
            "with a folder and then lines of PATH<TAB>SAMPLES"
        )
    names = [(number, re.sub('^"(.+)"$', r"\1", line.split("\t")[0].strip())) for number, line in lines]
    return folder, [(number, folder / expanded(name)) for number, name in names]


def read_items(path: Path) -> list[Any]:
    """The entries of a manifest, as Lhotse's objects.

    Raises:
        UserError: it cannot be read, or Lhotse does not recognise a line of it.
    """
    items: list[Any] = []
    number = 0
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            for line in file:
                number += 1
                if line.strip() and line[0] != "#":
                    items.append(deserialize_item(decode_json_line(line)))
    except OSError as error:
        raise disk_error(path, error, "read") from error
    except Exception as error:  # gzip, JSON and Lhotse raise several kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"manifest {path} is not a Lhotse manifest: line {number}: {reason:.200}") from error
    return items


def plain(item: Any, manifest: Path) -> DataCut | Skipped:
    """A cut reduced to what distillation uses. Its audio must be in files: URLs and shell commands are skipped.

    Raises:
        UserError: the item is neither a recording nor a cut.
    """
    if not isinstance(item, (Recording, Cut)):
        raise UserError(f"manifest {manifest} holds a {type(item).__name__}; it must hold recordings or cuts")
    where = f"{manifest}:{item.id}"
    if isinstance(item, Recording):
        if problem := problem_of_recording(item):
            return Skipped(where, problem)
        item = item.to_cut()
    if isinstance(item, MixedCut) and not item.transforms:
        item = _without_padding(item)
    if not isinstance(item, DataCut) or item.recording is None:
        return Skipped(where, f"a {type(item).__name__} that is not part of a single recording")
    if problem := problem_of(item):
        return Skipped(where, problem)
    other = {source.type for source in item.recording.sources} - {"file"}
    if other:
        return Skipped(where, f"its audio is of type {other.pop()!r:.80}; only files are read")
    files = [fastcopy(source, source=os.path.abspath(str(source.source))) for source in item.recording.sources]
    recording = fastcopy(item.recording, sources=files)
    return fastcopy(item, recording=recording, supervisions=[], features=None, custom=None)


def _without_padding(cut: MixedCut) -> Cut:
    """The one cut that was padded, under the id of the whole; unchanged if there are several."""
    cuts = [track.cut for track in cut.tracks if not isinstance(track.cut, PaddingCut)]
    return fastcopy(cuts[0], id=cut.id) if len(cuts) == 1 and isinstance(cuts[0], DataCut) else cut


def as_filed(cut: DataCut, header: Header, manifest: Path) -> DataCut | Skipped:
    """A cut whose recording is corrected to the header of its file, if the manifest differs.

    A cut of a whole recording stays whole. Parts, and cuts that exceed the file, must lie within the file.
    """
    recording = cut.recording
    assert recording is not None
    rate, seconds = header.samplerate, header.frames / header.samplerate
    if recording.transforms or len(recording.sources) > 1:
        return cut
    if recording.sampling_rate == rate and abs(recording.duration - seconds) <= TOLERANCE:
        return cut
    whole = cut.start == 0 and abs(cut.duration - recording.duration) <= TOLERANCE
    whole = whole and (recording.sampling_rate != rate or seconds > recording.duration)
    if not whole and cut.end > seconds + TOLERANCE:
        said = f"at {cut.end:.2f} s of a recording at {recording.sampling_rate} Hz"
        return Skipped(f"{manifest}:{cut.id}", f"it ends {said}, but the file has {seconds:.2f} s at {rate} Hz")
    recording = fastcopy(recording, sampling_rate=rate, num_samples=header.frames, duration=seconds)
    return fastcopy(cut, recording=recording, duration=seconds if whole else cut.duration)


def problem_of(cut: DataCut) -> str | None:
    """What is wrong with a cut that has a recording, if anything."""
    if not isinstance(cut.id, str):
        return f"its id is {cut.id!r:.80}, not text"
    if not (_is_number(cut.start) and cut.start >= 0):
        return f"its start is {cut.start!r:.80}, not a number of seconds"
    if not (_is_number(cut.duration) and cut.duration > 0):
        return f"its duration is {cut.duration!r:.80}, not a number of seconds"
    if not (_is_integer(cut.channel) or _are_integers(cut.channel)):
        return f"its channel is {cut.channel!r:.80}, neither a number nor a list of them"
    return problem_of_recording(cut.recording)


def problem_of_recording(recording: Any) -> str | None:
    """What is wrong with a recording, if anything."""
    if not isinstance(recording, Recording) or not isinstance(recording.id, str):
        return "its recording has no id"
    if not (_is_number(recording.duration) and recording.duration > 0):
        return f"its recording's duration is {recording.duration!r:.80}, not a number of seconds"
    for name in ("sampling_rate", "num_samples"):
        if not (_is_integer(getattr(recording, name)) and getattr(recording, name) > 0):
            return f"its recording's {name} is {getattr(recording, name)!r:.80}, not a number above 0"
    if not (recording.channel_ids is None or _are_integers(recording.channel_ids)):
        return f"its recording's channel_ids are {recording.channel_ids!r:.80}, not a list of numbers"
    if not (recording.sources and all(map(_is_source, recording.sources))):
        return "its recording has no audio source"
    return None


def _is_source(source: Any) -> bool:
    if not (isinstance(source, AudioSource) and isinstance(source.type, str) and isinstance(source.source, str)):
        return False
    return "\0" not in source.source and _are_integers(source.channels)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_integers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_integer, value))
