"""The audio on which the scales of an 8-bit file are measured."""

from torch import Tensor

from distiller.audio.decoding import Decoder, Undecodable
from distiller.common.progress import progress
from distiller.corpora.corpus import open_audio
from upstream.config import EncoderConfig
from upstream.errors import UserError

UTTERANCES = 67  # spread evenly over the corpus
LONGEST = 15.0  # seconds; longer recordings are split


def calibration_audio(corpus: str, config: EncoderConfig) -> list[Tensor]:
    """Some utterances of a corpus, (sample,) each, for an encoder of this shape.

    Args:
        corpus: as `open_audio`.

    Raises:
        UserError: as `open_audio`, or none of the chosen utterances can be decoded.
    """
    decoder = Decoder(config.min_samples)
    cuts = open_audio(corpus, LONGEST, decoder)
    chosen = cuts[:: -(-len(cuts) // UTTERANCES)]
    audio: list[Tensor] = []
    reasons: list[str] = []
    for cut in progress(chosen, "Reading the audio of --calibrate"):
        try:
            audio.append(decoder.decode(cut))
        except Undecodable as error:
            reasons.append(f"{cut.id}: {error}")
    if not audio:
        raise UserError(f"--calibrate is {corpus}, but none of its audio can be decoded; {reasons[0]}")
    return audio
