import pytest

from downstream_recipes.tasks.tasks import TASKS, find_task
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


def scores(code: str, split: str, text: str) -> dict[str, float]:
    return {metric.name: value for metric, value in TASKS[code].printed_scores(split, text).items()}


def test_the_last_test_score_in_percent():
    assert scores("pr", "test", PHONES) == {"per": pytest.approx(96.4)}
    assert scores("asr", "test-clean", "test-clean uer: 90.1\ntest-clean wer: 100.0\n") == {"wer": 100.0}
    assert scores("ks", "test", "test acc: 0.07\n") == {"acc": pytest.approx(7)}
    text = "sv-voxceleb1/train-loss: 7.1\nsv-voxceleb1/test-EER: 0.517\n"
    assert scores("asv", "test", text) == {"eer": pytest.approx(51.7)}
    text = "test loss: 3.0\ntest slot_type_f1: 0.25\ntest slot_value_cer: 0.9\ntest slot_value_wer: 1.0\n"
    assert scores("sf", "test", text) == {"f1": pytest.approx(25), "cer": pytest.approx(90)}
    assert scores("sd", "test", "mode test acc 0.75 der 0.5\n") == {}  # SUPERB's DER is computed from the predictions
    text = "Average si_sdr of 8 utts is 1.5000\nAverage stoi of 8 utts is 0.8100\nAverage pesq of 8 utts is 1.2000\n"
    assert scores("se", "test", text) == {"pesq": 1.2, "stoi": 0.81}
    assert scores("ss", "test", "Average si_sdr of 8 utts: 3.5000\n") == {"si_sdr": 3.5}


def test_the_best_dev_score_of_a_training():
    assert TASKS["pr"].best_on_dev(PHONES) == pytest.approx(80)
    assert TASKS["sid"].best_on_dev("dev acc: 0.1\ndev acc: 0.3\ndev acc: 0.2\n") == pytest.approx(30)
    assert TASKS["sd"].best_on_dev("mode dev acc 0.75 der 0.5\n") == pytest.approx(75)
    assert TASKS["asr"].best_on_dev("dev-clean wer: 40\ndev-clean wer: 30\n") == pytest.approx(30)
    assert TASKS["sid"].best_on_dev("train acc: 0.1\n") is None


def test_what_was_not_printed_is_named():
    with pytest.raises(UserError, match="sf: s3prl printed no cer for test"):
        scores("sf", "test", "test slot_type_f1: 0.25\n")
    with pytest.raises(UserError, match="asr: s3prl printed no wer for test-clean"):
        scores("asr", "test-clean", "dev-clean wer: 50\n")


def test_tasks_are_found_by_both_names():
    assert find_task("ks") is find_task("speech_commands") is TASKS["ks"]
    assert find_task("mosei") is None
    with pytest.raises(UserError, match="-d ctc is more than one task; choose -d pr or sf"):
        find_task("ctc")


def test_the_ten_tasks_of_the_table_come_first():
    assert list(TASKS) == ["pr", "asr", "ks", "qbe", "sid", "asv", "sd", "ic", "sf", "er", "se", "ss"]
    assert [code for code, task in TASKS.items() if task.extra] == ["se", "ss"]
    assert [code for code, task in TASKS.items() if not task.trained] == ["qbe"]
