"""Long wavs: how much overlapping chunks differ from the wav in one piece, and the memory of both methods."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distiller.benchmarks.encoders import open_encoder
from distiller.benchmarks.processes import fresh_process, require_device
from distiller.benchmarks.tables import three, write_table
from distiller.common.provenance import peak_memory_mb
from upstream.chunked import chunks
from upstream.config import SAMPLE_RATE
from upstream.encoder import SpeechEncoder


@dataclass(frozen=True)
class LongSetting:
    """The wav and its chunks, in seconds."""

    seconds: float = 600.0
    chunk: float = 30.0  # new audio of a chunk
    overlap: float = 5.0  # context on either side
    threads: int = 1
    device: str = "cpu"


def benchmark_long(targets: Sequence[str], setting: LongSetting, output: Path) -> None:
    """Measure, print a line for each encoder, write long.csv.

    Raises:
        UserError: a target cannot be opened, or there is no such device.
    """
    require_device(setting.device)
    rows = [measure_long(target, setting) for target in targets]
    for row in rows:
        print(
            f"{row['model']}: {setting.seconds:g} s in chunks of {setting.chunk:g} s with {setting.overlap:g} s of "
            f"overlap take {three(row['chunks_mb'])} MB and {three(row['chunks_seconds'])} s, in one piece "
            f"{three(row['whole_mb'])} MB and {three(row['whole_seconds'])} s ({three(row['loaded_mb'])} MB before); "
            f"relative error {three(row['largest_error'])} at worst, {three(row['last_error'])} of the last states"
        )
    write_table(output / "long.csv", rows)


def measure_long(target: str, setting: LongSetting) -> dict[str, Any]:
    """Memory and time of both methods, each in a fresh process, and the error of the chunks.

    Raises:
        UserError: the target cannot be opened.
    """
    row: dict[str, Any] = {"model": target} | vars(setting)
    for work in (in_chunks, in_one_piece):
        with fresh_process(target) as call:
            row |= call(work, target, setting)
    return row


def in_chunks(target: str, setting: LongSetting) -> dict[str, float]:
    encoder, waveform = _opened(target, setting)
    before, start = peak_memory_mb(setting.device), time.perf_counter()
    frames = sum(len(states[0]) for states in chunks(encoder, waveform, setting.chunk, setting.overlap))
    seconds, peak_mb = _since(start, setting), peak_memory_mb(setting.device)
    return {"frames": frames, "loaded_mb": before, "chunks_mb": peak_mb, "chunks_seconds": seconds}


def in_one_piece(target: str, setting: LongSetting) -> dict[str, float]:
    """Includes the chunks' errors, relative to the norm of these states: of the worst hidden state and of the last."""
    encoder, waveform = _opened(target, setting)
    start = time.perf_counter()
    with torch.inference_mode():
        expected = encoder(waveform[None]).hidden_states
    seconds, peak_mb = _since(start, setting), peak_memory_mb(setting.device)
    squares, norms = torch.zeros(2, len(expected), device=setting.device)
    done = 0
    for chunk in chunks(encoder, waveform, setting.chunk, setting.overlap):
        span = slice(done, done + len(chunk[0]))
        for layer, (states, whole) in enumerate(zip(chunk, expected, strict=True)):
            squares[layer] += (states - whole[0, span]).square().sum()
            norms[layer] += whole[0, span].square().sum()
        done = span.stop
    errors = (squares / norms).sqrt()
    return {
        "whole_mb": peak_mb,
        "whole_seconds": seconds,
        "largest_error": float(errors.max()),
        "last_error": float(errors[-1]),
    }


def _since(start: float, setting: LongSetting) -> float:
    """Seconds, the GPU's work included."""
    if setting.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _opened(target: str, setting: LongSetting) -> tuple[SpeechEncoder, Tensor]:
    """The encoder, and noise with the loudness and syllable rate of speech, (sample,), on the device; a GPU has been
    warmed up, so that neither its start-up nor its libraries' counts."""
    torch.set_num_threads(setting.threads)
    samples = int(setting.seconds * SAMPLE_RATE)
    times = torch.arange(samples) / SAMPLE_RATE
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(0))
    encoder = open_encoder(target).to(setting.device)
    waveform = (0.1 * noise * torch.sin(4 * torch.pi * times).abs()).to(setting.device)
    if setting.device == "cuda":
        with torch.inference_mode():
            encoder(waveform[None, :SAMPLE_RATE])
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    return encoder, waveform
