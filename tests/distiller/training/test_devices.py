"""Where a run takes place: what is asked for against what there is, and against what a launcher started."""

import pytest

from distiller.training import devices
from distiller.training.config import TrainerConfig
from upstream.errors import UserError


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher around the tests."""
    for variable in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "TORCHELASTIC_RUN_ID"):
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


def test_torchrun_has_the_last_word_on_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
    for variable, value in torchrun.items():
        monkeypatch.setenv(variable, value)
    cpu = {"steps": 1, "accelerator": "cpu"}
    with pytest.raises(UserError, match=r"^trainer\.devices is 1, but torchrun started 4: add trainer\.devices=4"):
        devices.place(TrainerConfig(**cpu))
    with pytest.raises(UserError, match=r"add trainer\.num_nodes=2"):
        devices.place(TrainerConfig(**cpu, devices=4))
    assert devices.place(TrainerConfig(**cpu, devices=4, num_nodes=2)).devices == 4
