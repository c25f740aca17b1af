"""Where a run takes place: what is asked for against what there is, against what a launcher started, and how
much audio fills a device that is made up."""

from contextlib import nullcontext

import pytest

from distiller.common.process import LAUNCHERS
from distiller.training import devices
from distiller.training.config import TrainerConfig
from distiller.training.devices import fitting_seconds
from upstream.config import SAMPLE_RATE
from upstream.errors import UserError

GB = 1e9


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher around the tests."""
    for variable in {name for names in LAUNCHERS.values() for name in names} | {"SLURM_JOB_NAME", "SLURM_NNODES"}:
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("wanted", "counts", "said"),
    [
        (
            {"devices": 4, "accelerator": "gpu"},
            {"cuda": 2},
            "trainer.devices is 4, .* 2 of kind cuda: give a count up to 2",
        ),
        ({"devices": "0,2", "accelerator": "cuda"}, {"cuda": 2}, "trainer.devices is 0,2, .* indices up to 1"),
        ({"devices": "0,0", "accelerator": "cuda"}, {"cuda": 2}, "trainer.devices is '0,0', .* different indices"),
        ({"strategy": "ddp", "accelerator": "mps"}, {"mps": 1}, "trainer.strategy is 'ddp', .* auto on mps"),
        ({"accelerator": "mps"}, {"cuda": 1}, "trainer.accelerator is 'mps', but this machine has only cuda and cpu"),
    ],
)
def test_devices_that_are_not_there(wanted: dict, counts: dict, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_available", lambda: {"cuda": 0, "mps": 0, **counts, "cpu": 2})
    with pytest.raises(UserError, match=f"^{said}"):
        devices.place(TrainerConfig(steps=1, **wanted))


def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_available", lambda: {"cuda": 4, "mps": 0, "cpu": 2})
    placed = [
        devices.place(TrainerConfig(steps=1, accelerator=accelerator, devices=number))
        for accelerator, number in [("auto", "auto"), ("gpu", "1,3"), ("cuda", "2"), ("cpu", "auto")]
    ]
    assert [(one.accelerator, one.devices) for one in placed] == [("cuda", 4), ("cuda", "1,3"), ("cuda", 2), ("cpu", 1)]
    assert [devices.device_count(one.devices) for one in placed] == [4, 2, 2, 1]


TORCHRUN = "TORCHELASTIC_RUN_ID=x LOCAL_WORLD_SIZE=4 WORLD_SIZE=8 RANK=0 LOCAL_RANK=0"
SLURM = "SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_NAME=job"


@pytest.mark.parametrize(
    ("settings", "keys", "said"),
    [
        (TORCHRUN, {}, "trainer.devices is 1, but torchrun started 4: add trainer.devices=4"),
        (TORCHRUN, {"devices": 4}, "add trainer.num_nodes=2, or start it with torchrun --nnodes=1"),
        (TORCHRUN, {"devices": 4, "num_nodes": 2}, None),
        (
            f"{SLURM} SLURM_NTASKS=1",
            {"devices": 4},
            "trainer.devices is 4, but SLURM started 1: .* --ntasks-per-node=4",
        ),
        (f"{SLURM} SLURM_NTASKS=8", {"devices": 4, "num_nodes": 2}, "trainer.devices is 4, but SLURM started 8"),
        (f"{SLURM} SLURM_NTASKS=8 SLURM_NNODES=2 SLURM_NTASKS_PER_NODE=1", {"devices": 4, "num_nodes": 2}, None),
        (f"{SLURM} SLURM_NTASKS=8 SLURM_NNODES=2", {"devices": 4}, "trainer.num_nodes is 1, but SLURM started 2"),
        (f"{SLURM} SLURM_NTASKS=1", {}, None),
        ("SLURM_NTASKS=1 SLURM_JOB_NAME=job", {"devices": 4}, None),  # of salloc: nothing was started
        (f"{SLURM}_bash SLURM_JOB_NAME=bash SLURM_NTASKS=1", {"devices": 4}, None),
        ("RANK=3", {"devices": 2}, None),
        ("RANK=1 WORLD_SIZE=4", {"devices": 2}, "WORLD_SIZE is 4, but it must be .* set by torchrun"),
        ("RANK=0 WORLD_SIZE=1", {}, None),
        ("", {"num_nodes": 2}, "trainer.num_nodes is 2, but neither torchrun nor srun"),
    ],
)
def test_the_launcher_has_the_last_word_on_processes(
    settings: str, keys: dict, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting in settings.split():
        monkeypatch.setenv(*setting.split("="))
    with nullcontext() if said is None else pytest.raises(UserError, match=said):
        placed = devices.place(TrainerConfig(steps=1, accelerator="cpu", **keys))
        assert placed.devices == keys.get("devices", 1)


# --- how much audio fills a device


def made_up(quadratic: float):
    """2 GB of weights, 40 MB for each second of audio, and `quadratic` bytes for each second, squared, of a wav."""

    def peak(utterances: int, samples: int) -> float:
        seconds = samples / SAMPLE_RATE
        return 2 * GB + utterances * (0.04 * GB * seconds + quadratic * seconds**2)

    return peak


@pytest.mark.parametrize("quadratic", [0.0, 2e6])
@pytest.mark.parametrize("longest", [0.7, 3.0, 15.6, 35.2])
@pytest.mark.parametrize("memory", [8 * GB, 68 * GB])
def test_memory_is_filled_and_never_exceeded(memory: float, longest: float, quadratic: float) -> None:
    peak = made_up(quadratic)
    seconds = fitting_seconds(longest, memory, peak)
    whole = round(seconds / longest)
    assert seconds == pytest.approx(whole * longest)
    samples = int(longest * SAMPLE_RATE)
    assert peak(whole, samples) <= memory * (1 + 1e-6) < peak(whole + 1, samples + 1) * (1 + 2e-6)
    for shorter in (longest / 2, longest / 5):
        assert peak(int(seconds / shorter), int(shorter * SAMPLE_RATE)) <= memory * (1 + 1e-6)


def test_one_utterance_at_least() -> None:
    assert fitting_seconds(35.0, 2.1 * GB, made_up(0.0)) == 35.0
    assert fitting_seconds(35.0, 80 * GB, lambda utterances, samples: GB) > 1e6  # nothing that grows: no limit


def test_no_large_step_is_tried() -> None:
    tried = []

    def peak(utterances: int, samples: int) -> float:
        tried.append(utterances * samples / SAMPLE_RATE)
        return sum(tried)

    for longest in (0.5, 15.6, 29.0, 35.0):
        fitting_seconds(longest, GB, peak)
    assert max(tried) <= 70.0
    assert len(tried) == 8
