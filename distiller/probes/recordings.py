"""A folder of recordings for a probe: decoded, without the silence at both ends."""

from pathlib import Path

import torch
from torch import Tensor

from distiller.audio.decoding import Decoder, Undecodable, source_path
from distiller.audio.skipped import Skipped
from distiller.common.progress import progress
from distiller.corpora.scanning import scan
from upstream.config import SAMPLE_RATE
from upstream.errors import UserError

LONGEST = 10 * SAMPLE_RATE  # samples; only the first ones of a longer recording are used
HOP = SAMPLE_RATE // 100  # samples per frame when measuring energy
QUIET = 40.0  # dB below the loudest frame
MARGIN = 5  # frames that are kept before and after the speech


def load_recordings(folder: Path, min_samples: int) -> tuple[dict[str, Tensor], list[Skipped]]:
    """Every recording below a folder, (sample,), by its relative path without suffix; and those that cannot be used.

    Args:
        min_samples: length of the shortest recording that the probed models accept.

    Raises:
        UserError: the folder does not exist, cannot be read or holds no audio.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    cuts, skipped = scan(folder, folder)
    decoder = Decoder(min_samples)
    recordings: dict[str, Tensor] = {}
    for cut in progress(cuts, f"Reading {folder.name}"):
        name = str(Path(cut.id).with_suffix(""))
        try:
            if name in recordings:
                raise Undecodable(f"{name} also exists with another file extension")
            waveform = trimmed(decoder.decode(cut))[:LONGEST]
            decoder.check_length(len(waveform))
            recordings[name] = waveform
        except Undecodable as error:
            skipped.append(Skipped(source_path(cut), str(error)))
    return recordings, skipped


def trimmed(waveform: Tensor) -> Tensor:
    """From 50 ms before the first to 50 ms after the last 10 ms that are at most 40 dB below the loudest."""
    energy = waveform[: len(waveform) // HOP * HOP].view(-1, HOP).square().mean(dim=1)
    if not len(energy):
        return waveform
    loud = torch.nonzero(energy >= energy.max() * 10 ** (-QUIET / 10))[:, 0]
    return waveform[max(0, int(loud[0]) - MARGIN) * HOP : (int(loud[-1]) + 1 + MARGIN) * HOP]
