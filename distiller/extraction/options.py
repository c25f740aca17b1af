"""The options of all commands that run an encoder over a corpus."""

import argparse
import os
from collections.abc import Sequence

from distiller.common.command import comma_separated, complain
from distiller.common.files import expanded
from upstream.errors import UserError, require

MODEL = "bundled, a hub name, a folder, or any checkpoint that upstream.checkpoint.load opens"
LAYER_ZERO = "state to use as layer 0: feature_projection (P, the default) or transformer_input (F^0)"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add options for the corpus, and for how it is computed."""
    option = parser.add_argument
    option("corpus", metavar="CORPUS", help="synthetic, a folder, an audio file or a manifest")
    option("--subsets", type=comma_separated(str), default=[], help="subsets of the corpus (default: all of it)")
    chunks = "longer recordings are computed in overlapping chunks of this length (default: 60)"
    option("--chunk-seconds", type=float, default=60.0, help=chunks)
    option(
        "--batch-seconds",
        type=float,
        default=100.0,
        help="seconds of audio per forward pass, including padding (default: 100)",
    )
    option("--workers", type=int, default=2, help="decoding processes (default: 2)")
    option("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")


def check_options(options: argparse.Namespace) -> None:
    """Raises: UserError: an impossible value, or no such corpus."""
    check_subsets(options.subsets)
    chunk, batch = options.chunk_seconds, options.batch_seconds
    require(1 <= chunk < float("inf"), "--chunk-seconds", chunk, "at least 1")
    require(0 < batch < float("inf"), "--batch-seconds", batch, "above 0")
    require(options.workers >= 0, "--workers", options.workers, "an integer of at least 0")
    if options.corpus != "synthetic" and not os.path.exists(expanded(options.corpus)):
        raise UserError(f"CORPUS {options.corpus} does not exist; it could be synthetic, a folder or a manifest")


def check_subsets(subsets: Sequence[str]) -> None:
    """Raises: UserError: one of them occurs twice."""
    require(len(set(subsets)) == len(subsets), "--subsets", list(subsets), "different names")


def tell_skipped(skipped: Sequence[tuple[str, str]]) -> None:
    """A line about the audio that could not be used: path and reason of each."""
    if skipped:
        path, reason = skipped[0]
        complain(f"warning: {len(skipped)} utterances cannot be used; the first is {path} ({reason})")
