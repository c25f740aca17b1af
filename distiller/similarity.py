#!/usr/bin/env python
"""The command distiller/similarity.py: which of a teacher's layers have similar representations."""

import sys
from pathlib import Path

if __name__ == "__main__":  # runs uninstalled and from any directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import re
import shlex
import warnings
from collections.abc import Sequence

from distiller.common.command import Parser, comma_separated, complain, run_command
from distiller.common.files import check_writable
from upstream.config import SAMPLE_RATE
from upstream.errors import UserError, require

BATCH_SECONDS = 100.0  # of audio
DESCRIPTION = """\
Compare a teacher's layers by linear CKA, cluster them, and print how well each clustering separates. Trains nothing.

Writes cka.csv, clusters.json and similarity.png. With several counts, the first one's files have these names; -COUNT is
appended to the others.
"""

EPILOG = """\
examples:
  python distiller/similarity.py --teacher bundled --corpus synthetic
  python distiller/similarity.py --teacher microsoft/wavlm-base-plus --corpus /data/LibriSpeech --clusters 4,6,8
"""


def parser() -> Parser:
    built = Parser(prog="distiller/similarity.py", description=DESCRIPTION, epilog=EPILOG)
    teachers, corpora = "bundled, a hub name, a folder or file", "synthetic, a folder or a manifest; all of it is used"
    built.add_argument("--teacher", default="bundled", help=f"{teachers} (default: bundled)")
    built.add_argument("--corpus", default="synthetic", help=f"{corpora} (default: synthetic)")
    counts = {"type": comma_separated(int, auto=[]), "default": [], "metavar": "4,6,8|auto"}
    built.add_argument("--clusters", **counts, help="numbers of clusters (default: auto, the best silhouette)")
    built.add_argument("--linkage", default="average", help="average, complete, single or weighted (default: average)")
    built.add_argument("--contiguous", action="store_true", help="only allow clusters of consecutive layers")
    layers = {"type": comma_separated(int), "metavar": "1,2,..."}
    built.add_argument("--layers", **layers, help="teacher layers to compare (default: all, including layer 0)")
    zero = "state to use as layer 0: feature_projection (P, the default) or transformer_input (F^0)"
    built.add_argument("--layer-zero", "--zeroth", default="feature_projection", metavar="STATE", help=zero)
    built.add_argument(
        "--frames", type=int, help="minimum number of frames (default: 20 for each channel of the teacher)"
    )
    built.add_argument("--stride", type=int, default=5, help="take every n-th frame (default: 5)")
    built.add_argument("--debiased", action="store_true", help="use the debiased estimator, for few frames")
    built.add_argument("--seed", type=int, default=1, help="random seed for choosing utterances (default: 1)")
    built.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    built.add_argument("--output", type=Path, default=Path("exp/similarity"), help="default: exp/similarity")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    warnings.showwarning = lambda message, *_, **__: complain(f"warning: {message}")
    return run_command(lambda: _main(parser().parse_args(argv)), "run the same command to start again")


def _main(options: argparse.Namespace) -> None:
    require(0 <= options.seed < 2**32, "--seed", options.seed, "an integer from 0 to 4294967295")
    check_writable(options.output)
    try:
        _compare(options)
    except UserError as error:  # about keys of a recipe, renamed to the options
        option = re.sub(r"objective\.(?:calibration\.)?(\w+)", lambda key: f"--{key[1].replace('_', '-')}", str(error))
        raise UserError(option) from error


def _compare(options: argparse.Namespace) -> None:
    from distiller.audio.decoding import Decoder
    from distiller.clustering.calibrate import CalibrationAudio
    from distiller.clustering.compare import compare, usable_device  # takes seconds
    from distiller.common.strict import typed
    from distiller.corpora.corpus import open_audio
    from distiller.objectives.config import ClustersConfig
    from distiller.recipes.yaml_files import renewed
    from distiller.teachers.teacher import load_teacher

    calibration = {name: getattr(options, name) for name in ("corpus", "frames", "stride", "debiased")}
    section = {name: getattr(options, name) for name in ("layers", "linkage", "contiguous", "layer_zero")}
    words = renewed({"objective": section | {"calibration": calibration}})
    config = typed(ClustersConfig, words["objective"], "objective")
    device = usable_device(options.device)
    teacher = load_teacher(options.teacher)
    corpus = config.calibration.corpus or options.corpus
    longest = min(BATCH_SECONDS, teacher.config.max_samples / SAMPLE_RATE or BATCH_SECONDS)
    audio = CalibrationAudio(corpus, open_audio(corpus, longest, Decoder(teacher.config.min_samples)), BATCH_SECONDS)
    settings = (options.clusters, options.seed, device, options.output, options.teacher)
    clusters = compare(config, teacher, audio, *settings)
    print(f"\nNext\n  {skill_command(options, clusters)}")


def skill_command(options: argparse.Namespace, clusters: list[list[int]]) -> str:
    """For a shell: SKILL with these clusters, on the teacher and corpus compared; defaults are left out."""
    changed = {key: value for key, value in vars(options).items() if value != parser().get_default(key)}
    words = [f"--{key}={changed[key]}" for key in ("teacher", "corpus") if key in changed]
    values = {key: changed[key] for key in ("layer_zero", "layers") if key in changed}
    values |= {"count": len(clusters), "clusters": clusters}  # the recipe's count may be above the number of layers
    words += [f"objective.{key}={value}".replace(" ", "") for key, value in values.items()]
    return shlex.join(["python", "distiller/run.py", "--method=skill", *words, f"--output={options.output}-skill"])


if __name__ == "__main__":
    sys.exit(main())
