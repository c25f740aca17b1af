"""Long wavs: how far chunks with overlap are from the whole, and the memory that each takes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from distiller.benchmarks.inference import open_encoder, process_of, receive
from distiller.common.provenance import peak_memory_mb
from upstream.chunked import chunks
from upstream.config import SAMPLE_RATE
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError


@dataclass(frozen=True)
class LongSetting:
    """The wav and its chunks, in seconds."""

    seconds: float = 600.0
    chunk: float = 30.0  # new audio of a chunk
    overlap: float = 5.0  # context beside it
    threads: int = 1


def measure_long(targets: Sequence[str], setting: LongSetting) -> list[dict[str, Any]]:
    """A row for each encoder: memory and time of both ways, each in a fresh process, and the error of the chunks.

    Raises:
        UserError: a target that cannot be opened.
    """
    rows = []
    for target in targets:
        in_chunks = _in_a_process(_chunks, target, setting)
        whole = _in_a_process(_against_the_whole, target, setting)
        rows.append({"model": target} | vars(setting) | in_chunks | whole)
    return rows


def _in_a_process(work: Callable[..., Any], target: str, setting: LongSetting) -> dict[str, float]:
    """In a fresh process, so that its peak is that of this work alone."""
    with process_of(_answer, work, target, setting) as connection:
        return receive(connection, target)


def _answer(connection: Connection, work: Callable[..., Any], target: str, setting: LongSetting) -> None:
    torch.set_num_threads(setting.threads)
    try:
        connection.send(work(open_encoder(target), _audio(setting.seconds), setting))
    except UserError as error:
        connection.send(error)


def _chunks(encoder: SpeechEncoder, waveform: Tensor, setting: LongSetting) -> dict[str, float]:
    before, start = peak_memory_mb("cpu"), time.perf_counter()
    frames = sum(len(states[0]) for states in chunks(encoder, waveform, setting.chunk, setting.overlap))
    seconds = time.perf_counter() - start
    return {"frames": frames, "loaded_mb": before, "chunks_mb": peak_memory_mb("cpu"), "chunks_seconds": seconds}


def _against_the_whole(encoder: SpeechEncoder, waveform: Tensor, setting: LongSetting) -> dict[str, float]:
    """Errors relative to the whole's own norm: of the worst hidden state, and of the last."""
    start = time.perf_counter()
    with torch.inference_mode():
        whole = encoder(waveform[None]).hidden_states
    seconds, peak = time.perf_counter() - start, peak_memory_mb("cpu")
    squares, norms, done = torch.zeros(len(whole)), torch.zeros(len(whole)), 0
    for states in chunks(encoder, waveform, setting.chunk, setting.overlap):
        span = slice(done, done + len(states[0]))
        for layer, (found, expected) in enumerate(zip(states, whole, strict=True)):
            squares[layer] += (found - expected[0, span]).square().sum()
            norms[layer] += expected[0, span].square().sum()
        done = span.stop
    errors = (squares / norms).sqrt()
    return {
        "whole_mb": peak,
        "whole_seconds": seconds,
        "largest_error": float(errors.max()),
        "last_error": float(errors[-1]),
    }


def _audio(seconds: float) -> Tensor:
    """Noise of speech's loudness and syllable rate, (sample,)."""
    samples = int(seconds * SAMPLE_RATE)
    times = torch.arange(samples) / SAMPLE_RATE
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(0))
    return 0.1 * noise * torch.sin(4 * torch.pi * times).abs()
