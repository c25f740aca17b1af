"""The entries of Lhotse manifests, checked one by one: Lhotse itself accepts any JSON value for any field."""

import math
import os
from pathlib import Path
from typing import Any

from lhotse import AudioSource, Recording
from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from lhotse.lazy import LazyManifestIterator
from lhotse.utils import fastcopy

from distiller.audio.skipped import Skipped
from distiller.common.files import disk_error
from upstream.errors import UserError


def read_items(path: Path) -> list[Any]:
    """The entries of a manifest, as Lhotse's objects.

    Raises:
        UserError: it cannot be read, or Lhotse does not recognise a line of it.
    """
    try:
        return list(LazyManifestIterator(path))
    except OSError as error:
        raise disk_error(path, error, "read") from error
    except Exception as error:  # gzip, JSON and Lhotse raise several kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"manifest {path} is not a Lhotse manifest: {reason:.200}") from error


def plain(item: Any, manifest: Path) -> DataCut | Skipped:
    """A cut reduced to what distillation uses. Its audio must be in files: URLs and shell commands are set aside.

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
    if not isinstance(item, DataCut) or item.recording is None:
        return Skipped(where, f"a {type(item).__name__} that is not a part of one recording")
    if problem := problem_of(item):
        return Skipped(where, problem)
    other = {source.type for source in item.recording.sources} - {"file"}
    if other:
        return Skipped(where, f"its audio is of type {other.pop()!r:.80}; only files are read")
    files = [fastcopy(source, source=os.path.abspath(str(source.source))) for source in item.recording.sources]
    recording = fastcopy(item.recording, sources=files)
    return fastcopy(item, recording=recording, supervisions=[], features=None, custom=None)


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
