"""Encoders side by side: each in a process of its own, asked in turns, so that all meet the same machine."""

import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from distiller.benchmarks.shapes import RANDOM, random_encoder
from distiller.common.progress import progress
from distiller.common.provenance import parameter_count, peak_memory_mb
from upstream.checkpoint import load
from upstream.config import SAMPLE_RATE, EncoderConfig
from upstream.cost import count_macs
from upstream.encoder import SpeechEncoder
from upstream.errors import UserError
from upstream.formats import huggingface_writing

TRANSFORMERS = "transformers:"  # in front of a folder or hub name: run it with `transformers`' own classes
WEIGHTS = (".safetensors", ".bin", ".onnx", ".ckpt", ".pth", ".pt", ".pt2")

Run = Callable[[Tensor, Tensor], Any]  # (waveforms, lengths)


@dataclass
class Measured:
    """One encoder's row; times per batch size, memory in MB of the whole process (on a GPU: what torch took there)."""

    name: str
    kind: str  # "ours", "onnx" or "transformers"
    device: str
    parameters: int | None
    macs_per_second: float | None  # multiply-accumulates per second of audio
    file_mb: float | None
    real_time_factor: dict[int, float] = field(default_factory=dict)  # seconds of work per second of audio
    peak_mb: float = 0.0


@dataclass(frozen=True)
class Setting:
    """What every encoder is asked to do."""

    seconds: float = 10.0
    batches: tuple[int, ...] = (1, 8)
    threads: int = 1
    rounds: int = 7
    device: str = "cpu"


def measure(targets: Sequence[str], setting: Setting) -> list[Measured]:
    """
    Raises:
        UserError: a target that cannot be opened, or does not run on the device.
    """
    with ExitStack() as stack:
        connections = [stack.enter_context(process_of(_work, target, setting)) for target in targets]
        rows: list[Measured] = [receive(here, target) for here, target in zip(connections, targets, strict=True)]
        times = _in_turns(connections, targets, setting)
        for here, row, by_batch in zip(connections, rows, times, strict=True):
            here.send(None)
            row.peak_mb = receive(here, row.name)
            row.real_time_factor = {
                batch: median(taken) / (batch * setting.seconds) for batch, taken in by_batch.items()
            }
        return rows


@contextmanager
def process_of(work: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """A fresh process for `work(connection, *arguments)`, and the other end of that connection.

    It ends with the block. Ctrl-C, which a terminal sends to it too, is left to this process.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(there, *arguments), daemon=True)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which it inherits
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    there.close()
    try:
        yield here
        process.join(5)
    finally:
        process.kill()
        here.close()


def _in_turns(
    connections: Sequence[Connection], targets: Sequence[str], setting: Setting
) -> list[dict[int, list[float]]]:
    times: list[dict[int, list[float]]] = [{batch: [] for batch in setting.batches} for _ in connections]
    turns: Iterable[tuple[int, int]] = [
        (turn, batch) for turn in range(setting.rounds + 1) for batch in setting.batches
    ]
    for turn, batch in progress(turns, "Measuring"):
        for connection, target, taken in zip(connections, targets, times, strict=True):
            connection.send(batch)
            elapsed = receive(connection, target)
            if turn:  # the first is warm-up
                taken[batch].append(elapsed)
    return times


def receive(connection: Connection, target: str) -> Any:
    """What the process of `target` sends next.

    Raises:
        UserError: what it raised, or that it has ended.
    """
    try:
        answer = connection.recv()
    except EOFError:
        raise UserError(f"{target}: its process ended before it was measured (out of memory?)") from None
    if isinstance(answer, UserError):
        raise answer
    return answer


def _work(connection: Connection, target: str, setting: Setting) -> None:
    """The process of one encoder: open it, then run a batch of the size that is asked for, until None comes."""
    try:
        torch.set_num_threads(setting.threads)
        row, run = open_target(target, setting)
        connection.send(row)
        samples = int(setting.seconds * SAMPLE_RATE)
        generator = torch.Generator().manual_seed(0)
        while (batch := connection.recv()) is not None:
            waveforms = (0.1 * torch.randn(batch, samples, generator=generator)).to(setting.device)
            lengths = torch.full((batch,), samples)
            start = time.perf_counter()
            with torch.inference_mode():
                run(waveforms, lengths)
            if setting.device == "cuda":
                torch.cuda.synchronize()
            connection.send(time.perf_counter() - start)
        connection.send(peak_memory_mb(setting.device))
    except UserError as error:
        connection.send(error)
    except EOFError:
        pass  # the parent went away


def open_target(target: str, setting: Setting) -> tuple[Measured, Run]:
    """
    Raises:
        UserError: nothing there that can be opened, or an ONNX file on a GPU.
    """
    if target.startswith(TRANSFORMERS):
        return _open_transformers(target, setting)
    if target.endswith(".onnx"):
        return _open_onnx(Path(target), setting)
    encoder = open_encoder(target).to(setting.device)
    return _row(target, "ours", setting, encoder.config, parameter_count(encoder), Path(target)), encoder


def open_encoder(target: str) -> SpeechEncoder:
    """A checkpoint, or `random:SHAPE`.

    Raises:
        UserError: nothing there that can be opened.
    """
    return random_encoder(target.removeprefix(RANDOM)) if target.startswith(RANDOM) else load(target)


def _open_transformers(target: str, setting: Setting) -> tuple[Measured, Run]:
    name = target.removeprefix(TRANSFORMERS)
    if name.startswith(RANDOM):
        return _open_random_transformers(target, name, setting)
    config = load(name).config  # for the cost, and to say in one sentence what is wrong with it
    from transformers import AutoModel

    from distiller.exporters.transformers import has_only_our_code

    try:
        model = AutoModel.from_pretrained(name, trust_remote_code=has_only_our_code(Path(name)))
    except ValueError:  # it would have to run what is there
        raise UserError(f"{name}: its Python files are not those of our export, so they are not run") from None
    model = model.to(setting.device).eval()
    row = _row(target, "transformers", setting, config, parameter_count(model), Path(name))
    return row, lambda waveforms, lengths: model(waveforms, output_hidden_states=True)


def _open_random_transformers(target: str, name: str, setting: Setting) -> tuple[Measured, Run]:
    """The same weights in `transformers`' own class, as far as it has the shape."""
    from transformers import HubertConfig, HubertModel

    encoder = open_encoder(name)
    values, _, state = huggingface_writing.write(encoder)
    model = HubertModel(HubertConfig.from_dict(values))
    model.load_state_dict(state, strict=False)
    model.to(torch.device(setting.device)).eval()  # type: ignore[arg-type]  # its decorator hides the signature
    row = _row(target, "transformers", setting, encoder.config, parameter_count(model), Path(name))
    return row, lambda waveforms, lengths: model(waveforms, output_hidden_states=True)


def _open_onnx(path: Path, setting: Setting) -> tuple[Measured, Run]:
    from distiller.exporters.onnx import metadata, session

    if setting.device != "cpu":
        raise UserError(f"{path}: ONNX files are measured on the CPU, not on {setting.device}")
    facts = metadata(path)
    config = EncoderConfig.from_dict(json.loads(facts["encoder"]), str(path)) if "encoder" in facts else None
    parameters = int(facts["parameters"]) if "parameters" in facts else None
    return _row(str(path), "onnx", setting, config, parameters, path), session(path, setting.threads)


def _row(
    name: str, kind: str, setting: Setting, config: EncoderConfig | None, parameters: int | None, path: Path
) -> Measured:
    samples = int(setting.seconds * SAMPLE_RATE)
    macs = None if config is None else count_macs(config, samples) / setting.seconds
    return Measured(name, kind, setting.device, parameters, macs, _file_mb(path))


def _file_mb(path: Path) -> float | None:
    """What the weights take on disk; None for a hub name."""
    files = [path] if path.is_file() else [file for file in path.glob("*") if file.suffix in WEIGHTS]
    return sum(file.stat().st_size for file in files) / 1e6 if files else None
