"""A folder of recordings for a probe: decoded, without the silence at both ends."""

from pathlib import Path

import torch
from lhotse.cut.data import DataCut
from torch import Tensor

from distiller.audio.decoding import Decoder, Undecodable, source_path
from distiller.audio.skipped import Skipped
from distiller.common.progress import progress
from distiller.corpora.scanning import scan
from upstream.config import SAMPLE_RATE
from upstream.errors import UserError

HOP = SAMPLE_RATE // 100  # samples of a frame whose energy is measured
QUIET = 40.0  # dB below the loudest frame
MARGIN = 5  # frames that are kept before and after the speech

Recordings = dict[str, dict[str, Tensor]]  # by group (a folder) and name (a file without its ending): (sample,)


def load_recordings(folder: Path, min_samples: int, longest: float) -> tuple[Recordings, list[Skipped]]:
    """The recordings FOLDER/GROUP/NAME.flac (or any other audio), trimmed; and the files that cannot be used.

    Args:
        min_samples: of the shortest that the probed models take.
        longest: seconds; what is longer cannot be used.

    Raises:
        UserError: the folder does not exist, cannot be read, or has fewer than two groups.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    cuts, skipped = scan(folder, folder)
    decoder, recordings = Decoder(min_samples), Recordings()
    for cut in progress(cuts, f"Reading {folder.name}"):
        group, _, name = str(cut.id).partition("/")
        try:
            if name:  # files that lie beside the groups are none of its items
                recordings.setdefault(group, {})[name.rpartition(".")[0]] = _decoded(cut, decoder, longest)
        except Undecodable as error:
            skipped.append(Skipped(source_path(cut), str(error)))
    if len(recordings) < 2:
        found = ", ".join(recordings) or "none"
        raise UserError(f"{folder} must have two or more folders with usable recordings, but has {found}")
    return recordings, skipped


def _decoded(cut: DataCut, decoder: Decoder, longest: float) -> Tensor:
    if cut.duration > longest:
        raise Undecodable(f"it lasts {cut.duration:.1f} s, more than {longest:g} s")
    waveform = trimmed(decoder.decode(cut))
    decoder.check_length(len(waveform))
    return waveform


def trimmed(waveform: Tensor) -> Tensor:
    """From 50 ms before the first to 50 ms after the last 10 ms that are at most 40 dB below the loudest."""
    usable = waveform[: len(waveform) // HOP * HOP].view(-1, HOP)
    if not len(usable):
        return waveform
    energy = usable.square().mean(dim=1)
    loud = torch.nonzero(energy >= energy.max() * 10 ** (-QUIET / 10))[:, 0]
    return waveform[max(0, int(loud[0]) - MARGIN) * HOP : (int(loud[-1]) + 1 + MARGIN) * HOP]
