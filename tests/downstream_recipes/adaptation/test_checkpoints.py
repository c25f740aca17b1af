import argparse

import torch

from downstream_recipes.adaptation.checkpoints import is_complete, read_checkpoint, regular_checkpoints


def test_a_checkpoint_of_the_runner_is_read_without_running_code(tmp_path):
    torch.save({"Args": argparse.Namespace(mode="train"), "Step": 40}, tmp_path / "states-40.ckpt")
    torch.serialization.clear_safe_globals()  # the runner's patch is for the runner
    assert read_checkpoint(tmp_path / "states-40.ckpt")["Step"] == 40
    assert torch.load(tmp_path / "states-40.ckpt")["Step"] == 40  # as the runner does next, in the same process


def test_regular_checkpoints_come_in_the_order_of_their_steps(tmp_path):
    for name in ("states-9.ckpt", "states-100.ckpt", "states-20.ckpt", "best-states-dev.ckpt", "states-epoch.ckpt"):
        torch.save({}, tmp_path / name)
    assert [path.name for path in regular_checkpoints(tmp_path)] == [
        "states-9.ckpt",
        "states-20.ckpt",
        "states-100.ckpt",
    ]
    (tmp_path / "states-20.ckpt").write_bytes((tmp_path / "states-20.ckpt").read_bytes()[:100])
    assert [is_complete(path) for path in regular_checkpoints(tmp_path)] == [True, False, True]
