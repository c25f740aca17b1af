import argparse

import pytest
import torch

from downstream_recipes.adaptation.s3prl_output import best_score, is_better, last_scores, read_checkpoint
from upstream.errors import UserError

# As s3prl 0.4.18 prints, progress bars' remains included.
PHONES = """[Featurizer] - Take a list of 7 features and weighted sum them.
train loss: 3.51
train per: 0.9998
dev loss: 3.1
dev per: 0.9120879120879121
dev loss: 2.9
dev per: 0.8
dev loss: 2.95
dev per: 0.85
test loss: 3.2
test per: 0.9640000000000001
"""


def test_the_last_test_score_in_percent():
    assert last_scores("pr", "test", PHONES) == {"per": pytest.approx(96.4)}
    assert last_scores("asr", "test-clean", "test-clean uer: 90.1\ntest-clean wer: 100.0\n") == {"wer": 100.0}
    assert last_scores("ks", "test", "test acc: 0.07\n") == {"acc": pytest.approx(7)}
    text = "sv-voxceleb1/train-loss: 7.1\nsv-voxceleb1/test-EER: 0.517\n"
    assert last_scores("asv", "test", text) == {"eer": pytest.approx(51.7)}
    text = "test loss: 3.0\ntest slot_type_f1: 0.25\ntest slot_value_cer: 0.9\ntest slot_value_wer: 1.0\n"
    assert last_scores("sf", "test", text) == {"f1": pytest.approx(25), "cer": pytest.approx(90)}
    assert last_scores("sd", "test", "mode test acc 0.75 der 0.5\n") == {"frame_acc": pytest.approx(75)}
    text = "Average si_sdr of 8 utts is 1.5000\nAverage stoi of 8 utts is 0.8100\nAverage pesq of 8 utts is 1.2000\n"
    assert last_scores("se", "test", text) == {"pesq": 1.2, "stoi": 0.81}
    assert last_scores("ss", "test", "Average si_sdr of 8 utts: 3.5000\n") == {"si_sdr": 3.5}


def test_the_best_dev_score_of_a_training():
    assert best_score("pr", "dev", PHONES) == pytest.approx(80)
    assert best_score("sid", "dev", "dev acc: 0.1\ndev acc: 0.3\ndev acc: 0.2\n") == pytest.approx(30)
    assert best_score("sid", "dev", "train acc: 0.1\n") is None
    assert is_better("pr", 10, 20)
    assert is_better("sf", 20, 10)


def test_what_was_not_printed_is_named():
    with pytest.raises(UserError, match="sf: s3prl printed no cer for test"):
        last_scores("sf", "test", "test slot_type_f1: 0.25\n")
    with pytest.raises(UserError, match="asr: s3prl printed no wer for test-clean"):
        last_scores("asr", "test-clean", "dev-clean wer: 50\n")


def test_a_checkpoint_of_the_runner_is_read_in_a_process_that_runs_nothing(tmp_path):
    torch.save({"Args": argparse.Namespace(mode="train"), "Step": 40}, tmp_path / "states-40.ckpt")
    torch.serialization.clear_safe_globals()  # the runner's patch is for the runner
    assert read_checkpoint(tmp_path / "states-40.ckpt")["Step"] == 40
    assert torch.load(tmp_path / "states-40.ckpt")["Step"] == 40  # as the runner does next, in the same process
