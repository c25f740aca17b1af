"""Checks of a device: the same results as a CPU, up to rounding; the same run after a kill; and, on a GPU, a step in
which the host never waits."""

import math
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from distiller.benchmarks.encoders import HUBERT_BASE
from distiller.benchmarks.processes import require_device
from distiller.benchmarks.tables import print_table, three, write_table
from distiller.common.command import Failed
from distiller.common.progress import progress
from distiller.steps.loop import write_noise
from distiller.steps.step import OURS, Step, TrainSetting, distillation, function_of, recipe_of
from upstream.checkpoint import save
from upstream.config import BASE_CONV_LAYERS, EncoderConfig
from upstream.encoder import SpeechEncoder

RUN = Path(__file__).parents[1] / "run.py"
ROUNDING, HALF_ROUNDING, TF32_ROUNDING = 1e-4, 1e-2, 1e-3  # relative: fp32 elsewhere, bf16, Gram products in TF32
RESUMED = 1e-2  # limit for a resumed run, which is not bit-identical on devices that add in any order
CHECKPOINT = 2  # steps; a run has four times as many, and is killed while it renames its third checkpoint
KILLED = f"""
import os, runpy, signal, sys
sys.argv[:] = sys.argv[1:]

def audit(name, arguments):
    if name == "os.rename" and "step-{3 * CHECKPOINT:08d}" in str(arguments):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(audit)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
BOTH = """
import ast, sys
sys.path.insert(0, sys.argv[1])
from distiller import run
sys.exit(any([run.main(ast.literal_eval(argv)) for argv in sys.argv[2:]]))
"""
SMALL = EncoderConfig(  # of the run that is killed
    embed_dim=64,
    num_heads=4,
    head_dim=16,
    attention_heads=((0, 1, 2, 3),) * 2,
    ffn_dims=(128,) * 2,
    conv_layers=tuple((32, kernel, stride) for _, kernel, stride in BASE_CONV_LAYERS),
)

Row = dict[str, Any]  # of correctness.csv


@dataclass(frozen=True)
class Micro:
    """The loss of a micro-batch: its method, device and precision."""

    method: str
    device: str
    seconds: float
    half: bool = False
    changes: tuple[str, ...] = ()


def check_device(methods: tuple[str, ...], seconds: float, threads: int, device: str, output: Path) -> None:
    """Compare `device` with the CPU, at paper scale; print a table, write correctness.csv.

    Args:
        seconds: of the longest of two utterances.

    Raises:
        UserError: there is no such device.
        Failed: a check did not pass.
    """
    require_device(device)
    torch.set_num_threads(threads)
    rows: list[Row] = []
    for name, limit, measure in progress(checks(methods, seconds, device), "Checking"):
        try:
            value = measure()
        except RuntimeError as error:  # from the device: the other checks may still pass
            print(f"{name}: {error}")
            value = math.nan
        rows.append({"check": name, "device": device, "value": value, "limit": limit, "passed": value <= limit})
        write_table(output / "correctness.csv", rows, tell=False)
    lines = [[row["check"], three(row["value"]), three(row["limit"]), str(row["passed"])] for row in rows]
    print_table("check", ["relative\nerror", "limit", "passed"], lines, f"{device}, {seconds:g} s")
    print(f"{output / 'correctness.csv'} written")
    if failed := [row["check"] for row in rows if not row["passed"]]:
        raise Failed(*(f"{name}: not within its limit" for name in failed))


def checks(methods: tuple[str, ...], seconds: float, device: str) -> list[tuple[str, float, Callable[[], float]]]:
    """Each check's name, limit, and function."""
    found: list[tuple[str, float, Callable[[], float]]] = [
        ("states in fp32 against the CPU's", ROUNDING, partial(states_apart, seconds, device)),
    ]
    for method in methods:
        here, there = Micro(method, device, seconds), Micro(method, "cpu", seconds)
        half = replace(here, half=True)
        found += [
            (f"{method}: loss in fp32 against the CPU's", ROUNDING, partial(losses_apart, here, there)),
            (f"{method}: gradients in fp32 against the CPU's", ROUNDING, partial(gradients_apart, here, there)),
            (f"{method}: loss in bf16 against fp32", HALF_ROUNDING, partial(losses_apart, half, here)),
        ]
        if method == "star":
            reduced = replace(here, changes=("objective.gram_precision=tf32",))
            title = f"{method}: gradients, Gram products in TF32 against fp32"
            found.append((title, TF32_ROUNDING, partial(gradients_apart, reduced, here)))
        if device == "cuda":
            found.append((f"{method}: errors as the host waits in a step", 0.0, partial(host_waits, method, seconds)))
    return [*found, ("student of a run resumed after SIGKILL", RESUMED, partial(resumed_apart, device))]


def states_apart(seconds: float, device: str) -> float:
    """The worst hidden state's error over valid frames, of a padded batch."""
    torch.manual_seed(0)
    encoder, batch = SpeechEncoder(HUBERT_BASE).eval(), two_utterances(seconds).batch()
    outputs: list[list[Tensor]] = []
    for place in ("cpu", device):
        with torch.inference_mode(), plain_fp32():
            output = encoder.to(place)(batch.waveforms.to(place), batch.lengths)
        mask = output.frame_mask()
        outputs.append([states[mask].cpu() for states in output.hidden_states])
    return max(apart(states, expected) for expected, states in zip(*outputs, strict=True))


@cache
def loss_and_gradients(micro: Micro) -> tuple[Tensor, Tensor]:
    """Both on the CPU, the gradients as one vector. Weights and audio are the same everywhere; there is no dropout."""
    plain = ["objective.gram_precision=ieee"] if micro.method == "star" else []
    recipe = recipe_of(micro.method, HUBERT_BASE, [*plain, *micro.changes])
    torch.manual_seed(0)
    module = distillation(recipe, SpeechEncoder(HUBERT_BASE))
    module.eval()
    device = torch.device(micro.device)
    module.move_frozen(device, torch.bfloat16 if micro.half else None)
    module.to(device)
    batch = two_utterances(micro.seconds).batch()
    sizes = {"utterance": float(len(batch.lengths)), "frame": float(module.frame_lengths(batch).sum())}
    counts = {unit: torch.tensor(size, device=device) for unit, size in sizes.items()}
    with plain_fp32():
        with torch.autocast(micro.device, torch.bfloat16, enabled=micro.half):
            loss, _ = module(batch.to(device), counts)
        loss.backward()
    gradients = [p.grad.flatten().float().cpu() for p in module.parameters() if p.grad is not None]
    return loss.detach().cpu(), torch.cat(gradients)


def losses_apart(here: Micro, there: Micro) -> float:
    return apart(loss_and_gradients(here)[0], loss_and_gradients(there)[0])


def gradients_apart(here: Micro, there: Micro) -> float:
    return apart(loss_and_gradients(here)[1], loss_and_gradients(there)[1])


def apart(values: Tensor, expected: Tensor) -> float:
    """|values - expected| / |expected|; NaN, which passes no limit, if one of them contains NaN."""
    return float((values.double() - expected.double()).norm() / expected.double().norm())


def two_utterances(seconds: float) -> Step:
    torch.manual_seed(1)  # of the audio
    return Step(OURS, "star", 2, True, TrainSetting(seconds), HUBERT_BASE)


@contextmanager
def plain_fp32() -> Iterator[None]:
    """True fp32: neither products nor convolutions in TF32, the default for convolutions."""
    cudnn: Any = torch.backends.cudnn  # some of its attributes are set at import
    backends = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def host_waits(method: str, seconds: float) -> float:
    """1 if a step, padded and in the recipe's precision, makes the host wait for the GPU; 0 if none does."""
    setting = TrainSetting(seconds, device="cuda", overrides=("trainer.compile=false",))  # compiling would take long
    take = function_of(replace(two_utterances(seconds), method=method, setting=setting))
    for _ in range(3):
        take()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        take()
    except RuntimeError as error:
        print(f"{method}: {error}")
        return 1.0
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return 0.0


def resumed_apart(device: str) -> float:
    """Difference between the students of a run that was killed and continued and of an uninterrupted one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        save(SpeechEncoder(SMALL), folder / "teacher")
        write_noise(folder / "corpus", 0.02)
        precision = "bf16-mixed" if device == "cuda" else "32-true"
        argv = [
            "--method=star", "--teacher=teacher", "--corpus=corpus", "student.size=teacher", "student.dropout=0.1",
            "corpus.batch_seconds=20", "corpus.workers=0", "corpus.validation_share=0.2", "probe.enabled=false",
            f"trainer.accelerator={device}", f"trainer.precision={precision}", f"trainer.steps={4 * CHECKPOINT}",
            f"trainer.checkpoint_every={CHECKPOINT}",
        ]  # fmt: skip
        killed, whole = ([*argv, f"--output={output}"] for output in ("killed", "whole"))
        first = run_python([KILLED, str(RUN), *killed], folder)
        second = run_python([BOTH, str(RUN.parents[1]), repr(killed), repr(whole)], folder)
        if first.returncode != -signal.SIGKILL or second.returncode != 0:
            print(f"{first.returncode}, then {second.returncode}: {(first.stderr + second.stderr)[-2000:]}")
            return math.nan
        loaded = (load_file(folder / output / "student" / "model.safetensors") for output in ("killed", "whole"))
        students = [torch.cat([weights[key].flatten().float() for key in sorted(weights)]) for weights in loaded]
    return apart(*students)


def run_python(script: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", *script], cwd=folder, capture_output=True, text=True)
