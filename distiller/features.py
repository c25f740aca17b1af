#!/usr/bin/env python
"""The command distiller/features.py: an encoder's hidden states for every recording of a corpus."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Sequence
from dataclasses import replace

from distiller.common.command import Parser, comma_separated, run_command
from distiller.common.files import check_writable
from distiller.common.provenance import public
from distiller.extraction.config import FeaturesConfig
from distiller.extraction.options import LAYER_ZERO, MODEL, add_options, check_options, tell_skipped

DESCRIPTION = """\
Write an encoder's hidden states for every recording of a corpus, unsplit, with one index.json: the layers, their mean,
or their weighted sum with a featurizer's weights. Run the same command again to continue after an interruption; under
torchrun, several processes and GPUs share the work.
"""

EPILOG = """\
examples:
  python distiller/features.py data/my-audio --model exp/star/student --layers 4 --output exp/features
  python distiller/features.py data/my-audio --mean --dtype fp16 --format safetensors --output exp/mean
  python distiller/features.py data/my-audio --model exp/star/student --output exp/weighted \\
      --weights result/downstream/EXPERIMENT/dev-best.ckpt
  torchrun --nproc-per-node 4 distiller/features.py /data/LibriSpeech --model facebook/hubert-base-ls960 \\
      --subsets train-clean-100 --layers 9 --dtype fp16 --format hdf5 --output exp/hubert
"""


def parser() -> Parser:
    built = Parser(prog="distiller/features.py", description=DESCRIPTION, epilog=EPILOG)
    option = built.add_argument
    add_options(built)
    option("--model", default="bundled", help=f"{MODEL} (default: bundled)")
    layers = "layers to write; 0 is the input of the first layer (default: all)"
    option("--layers", type=comma_separated(int, all=None), default="all", metavar="all|9|4,8", help=layers)
    option("--mean", action="store_true", help="write the mean of the layers instead of each layer")
    weights = "write a weighted sum instead of each layer: an s3prl downstream checkpoint, or a JSON list"
    option("--weights", type=Path, metavar="FILE", help=weights)
    option("--layer-zero", default="feature_projection", metavar="STATE", help=LAYER_ZERO)
    option("--dtype", default="fp32", help="fp32 (default) or fp16")
    option("--format", default="npy", help="npy: one file per recording (default); safetensors or hdf5: shards")
    option("--output", type=Path, required=True, help="folder")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _main(parser().parse_args(argv)))


def _main(options: argparse.Namespace) -> None:
    check_options(options)
    names = ("layers", "mean", "layer_zero", "dtype", "format", "chunk_seconds")
    config = FeaturesConfig(**{name: getattr(options, name) for name in names})
    check_writable(options.output)
    from distiller.audio.skipped import Skipped  # takes seconds
    from distiller.clustering.compare import usable_device
    from distiller.extraction.extract import extract_features
    from distiller.extraction.forward import Pace
    from distiller.extraction.ranks import joined
    from distiller.extraction.weights import read_weights
    from distiller.teachers.teacher import identity, load_teacher

    if options.weights is not None:
        config = replace(config, weights=read_weights(options.weights))
    device = usable_device(options.device)
    encoder = load_teacher(options.model)
    config = config.for_encoder(encoder.config.num_layers)
    with joined() as ranks:
        device = ranks.device(device)
        pace = Pace(device, options.batch_seconds, config.chunk_seconds, options.workers, ranks.on_machine)
        told = {"name": public(options.model), **identity(encoder)}
        index = extract_features(
            config, encoder.to(device), told, options.corpus, options.subsets, options.output, pace, ranks
        )
    if index is None:
        return
    tell_skipped([Skipped(**row) for row in index["skipped"]])
    frames = sum(row["frames"] for row in index["utterances"])
    print(f"{options.output} holds the features of {len(index['utterances'])} utterances, {frames:,} frames")


if __name__ == "__main__":
    sys.exit(main())
