#!/usr/bin/env python
"""The command distiller/features.py: an encoder's hidden states for every recording of a corpus."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace

from distiller.common.command import Parser, comma_separated, complain, run_command
from distiller.common.files import check_writable, expanded
from distiller.common.provenance import public
from distiller.extraction.config import FeaturesConfig
from upstream.errors import UserError, require

DESCRIPTION = """\
Write an encoder's hidden states for every recording of a corpus, complete and unsplit, with one index.json: layers,
their mean, or their sum with a featurizer's weights. The same command again continues an interrupted one; under
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
    option("corpus", metavar="CORPUS", help="synthetic, a folder, an audio file or a manifest")
    option("--subsets", type=comma_separated(str), default=[], help="of the corpus (default: all of it)")
    model = "bundled, a hub name, a folder, or any checkpoint that upstream.checkpoint.load opens (default: bundled)"
    option("--model", default="bundled", help=model)
    layers = "which: 0 is the input of the first (default: all)"
    option("--layers", type=comma_separated(int, all=None), default="all", metavar="all|9|4,8", help=layers)
    option("--mean", action="store_true", help="of the layers, in place of each")
    weights = "of the layers' sum, in place of each: s3prl's checkpoint of a downstream task, or a JSON list"
    option("--weights", type=Path, metavar="FILE", help=weights)
    zero = "what layer 0 is: feature_projection (P, the default) or transformer_input (F^0)"
    option("--layer-zero", default="feature_projection", metavar="STATE", help=zero)
    option("--dtype", default="fp32", help="fp32 (default) or fp16")
    option("--format", default="npy", help="npy: a file for each recording (default); safetensors or hdf5: shards")
    chunks = "of a longer recording, which is computed in overlapping chunks (default: 60)"
    option("--chunk-seconds", type=float, default=60.0, help=chunks)
    option("--batch-seconds", type=float, default=100.0, help="audio in a forward pass, with padding (default: 100)")
    option("--workers", type=int, default=2, help="processes that decode (default: 2)")
    option("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    option("--output", type=Path, required=True, help="folder")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(lambda: _main(parser().parse_args(argv)))


def _main(options: argparse.Namespace) -> None:
    for name in ("chunk_seconds", "batch_seconds"):
        value = getattr(options, name)
        require(0 < value < float("inf"), f"--{name.replace('_', '-')}", value, "above 0")
    require(options.workers >= 0, "--workers", options.workers, "an integer of at least 0")
    names = ("layers", "mean", "layer_zero", "dtype", "format", "chunk_seconds")
    config = FeaturesConfig(**{name: getattr(options, name) for name in names})
    if options.corpus != "synthetic" and not os.path.exists(expanded(options.corpus)):
        raise UserError(f"CORPUS {options.corpus} does not exist; it could be synthetic, a folder or a manifest")
    check_writable(options.output)
    from distiller.clustering.compare import usable_device  # takes seconds
    from distiller.distillation.teacher import identity, load_teacher
    from distiller.extraction.extract import extract_features
    from distiller.extraction.forward import Pace
    from distiller.extraction.ranks import joined
    from distiller.extraction.weights import read_weights

    if options.weights is not None:
        config = replace(config, weights=read_weights(options.weights))
    device = usable_device(options.device)
    encoder = load_teacher(options.model)
    config = config.for_encoder(encoder.config.num_layers)
    with joined() as ranks:
        device = ranks.device(device)
        pace = Pace(device, options.batch_seconds, options.chunk_seconds, options.workers, ranks.on_machine)
        told = {"name": public(options.model), **identity(encoder)}
        index = extract_features(
            config, encoder.to(device), told, options.corpus, options.subsets, options.output, pace, ranks
        )
    if index is None:
        return
    if skipped := index["skipped"]:
        first = f"{skipped[0]['path']} ({skipped[0]['reason']})"
        complain(f"warning: {len(skipped)} utterances cannot be used; the first is {first}")
    frames = sum(row["frames"] for row in index["utterances"])
    print(f"{options.output} holds the features of {len(index['utterances'])} utterances, {frames:,} frames")


if __name__ == "__main__":
    sys.exit(main())
