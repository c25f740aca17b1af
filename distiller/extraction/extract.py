"""From an encoder and a corpus to a folder of features."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lhotse.cut.data import DataCut
from torch import Tensor

from distiller.audio.decoding import source_path
from distiller.common.files import expanded, lock_folder, remove, write_json
from distiller.corpora.config import SYNTHETIC
from distiller.extraction.config import FeaturesConfig
from distiller.extraction.folder import INDEX, VERSION, check_format, file_names, is_features, write_features
from distiller.extraction.forward import Pace
from distiller.extraction.ranks import Ranks
from distiller.extraction.work import Row, Work, check_settings, read_json
from upstream.config import SAMPLE_RATE, EncoderConfig
from upstream.encoder import EncoderOutput, SpeechEncoder
from upstream.errors import UserError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
UNFINISHED = "unfinished"  # folder of an extraction that is not complete
MEL_FIELD = 1040  # samples under a Whisper frame: 400 of a column, and 160 for each of its four neighbours


def extract_features(
    config: FeaturesConfig,
    encoder: SpeechEncoder,
    identity: dict[str, Any],
    corpus: str,
    subsets: list[str],
    output: Path,
    pace: Pace,
    ranks: Ranks,
) -> dict[str, Any] | None:
    """Write the features of every utterance of a corpus, or those still missing.

    Args:
        config: with the numbers of the layers, see `FeaturesConfig.for_encoder`.
        encoder: in eval mode, on the device of `pace`.
        identity: of the encoder, for index.json; its "name" is only informative and may change.
        corpus, subsets: as `all_audio`.

    Returns:
        The content of index.json; None on ranks above 0.

    Raises:
        UserError: `output` holds something else or features with other settings; and as `Work.run`, `write_features`.
    """
    check_format(config.format)
    times = frame_times(encoder.config)
    place = {"corpus": absolute(corpus), "subsets": subsets}
    settings = {"version": VERSION, "encoder": identity, **place, **config.to_dict(), **times}
    with lock_folder(output) if ranks.rank == 0 else nullcontext():
        if is_features(output):
            index = read_json(output / INDEX)
            check_settings(output, index, settings)
            return index if ranks.rank == 0 else None
        unfinished = output / UNFINISHED
        select = partial(representation, config)
        width = encoder.config.embed_dim * (1 if config.single else len(config.layers or ()))
        size = width * DTYPES[config.dtype].itemsize
        work = Work(unfinished, settings, encoder, corpus, subsets, select, size, pace, ranks)
        audio = work.open()
        ids = [cut.id for cut in audio.cuts]
        names = dict(zip(ids, file_names(ids), strict=True))

        def finish(part: int, results: list[tuple[DataCut, Tensor]]) -> list[Row]:
            return _written(config, output, part, names, results)

        result = work.run(audio, finish)
        if result is None:
            return None
        index = settings | {"skipped": [row._asdict() for row in result.skipped], "utterances": result.rows}
        write_json(output / INDEX, index)
        remove(unfinished)
        return index


def representation(config: FeaturesConfig, output: EncoderOutput) -> Tensor:
    """The features of a batch: (batch, frame, channel), or (batch, frame, layer, channel) for several layers."""
    states = [output.layer(layer, config.layer_zero) for layer in config.layers or ()]
    if config.weights is not None:
        kept = torch.stack([weight * state for weight, state in zip(config.weights, states, strict=True)]).sum(dim=0)
    elif config.mean:
        kept = torch.stack(states).mean(dim=0)
    else:
        kept = states[0] if len(states) == 1 else torch.stack(states, dim=2)
    return kept.to(DTYPES[config.dtype])


def frame_times(config: EncoderConfig) -> dict[str, float]:
    """Seconds: from frame to frame, under a frame, and at the centre of the first frame."""
    hop = config.samples_per_frame
    field = MEL_FIELD if config.whisper else config.min_samples - (config.frame_multiple - 1) * hop
    centre = 0.0 if config.whisper else field / 2
    samples = {"frame_shift": hop, "receptive_field": field, "first_centre": centre}
    return {name: value / SAMPLE_RATE for name, value in samples.items()}


def absolute(corpus: str) -> str:
    """A name of the corpus that is valid in any folder."""
    return corpus if corpus == SYNTHETIC else str(expanded(corpus).absolute())


def _written(
    config: FeaturesConfig, output: Path, part: int, names: dict[str, str], results: list[tuple[DataCut, Tensor]]
) -> list[Row]:
    """Write the features of a part; returns the utterances' rows of the index."""
    features = {}
    for cut, values in results:
        if not values.isfinite().all():
            raise UserError(
                f"the features of {cut.id} are not finite in {config.dtype}; the largest fp16 number is 65504"
            )
        several = values.ndim == 3  # (frame, layer, channel)
        features[names[cut.id]] = (values.transpose(0, 1) if several else values).contiguous()
    files = write_features(output, config.format, part, features) if features else []
    return [
        {
            "id": cut.id,
            "audio": source_path(cut),
            "file": file,
            "name": names[cut.id],
            "frames": len(values),
            "seconds": cut.duration,
        }
        for (cut, values), file in zip(results, files, strict=True)
    ]
