"""Figures of a run: what is in them."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt

from distiller.reports import figures
from distiller.reports.figures import distance_curves, loss_curves, remaining_units, smooth
from upstream.config import EncoderConfig

METRICS = """\
step,lr,gradient_norm,loss,term/layer_wise,term/target,target,sparsity,lambda1,audio_seconds,step_seconds
1,0.1,2,3,2,1,0.5,0.1,0,4,1
2,0.1,2,2,1,1,0.5,0.3,0,4,1
"""


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The figures that are saved, by name."""
    saved: dict[str, Any] = {}

    def save(figure: Any, path: Path) -> None:
        saved[path.name] = figure
        figure.savefig(path)
        plt.close(figure)

    monkeypatch.setattr(figures, "save_figure", save)
    return saved


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_loss_figure_shows_every_term_whatever_its_name(tmp_path: Path, drawn: dict[str, Any]) -> None:
    for stage in ("joint", "final"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.csv").write_text(METRICS)
    (tmp_path / "final" / "held_out.csv").write_text("step,loss,term/target\n1,3,2\n")
    loss_curves(tmp_path, [tmp_path / "joint", tmp_path / "final"])
    joint_loss, joint_terms, final_loss, _ = drawn["loss.png"].axes
    assert labels(joint_terms) == ["layer wise", "target"]
    assert (labels(joint_loss), labels(final_loss)) == (["training"], ["training", "held out"])
    assert joint_terms.get_title() == "Terms (unweighted), joint stage"
    assert (tmp_path / "loss.png").exists()


def test_remaining_units_are_those_of_both_encoders(tmp_path: Path, drawn: dict[str, Any]) -> None:
    layers = tuple((16, *layer[1:]) for layer in EncoderConfig.conv_layers)
    shape = {"embed_dim": 16, "num_heads": 2, "head_dim": 8, "positional_groups": 4, "conv_layers": layers}
    before = EncoderConfig(**shape, attention_heads=((0, 1), (0, 1)), ffn_dims=(8, 8))
    after = EncoderConfig(**shape, attention_heads=((1,), None), ffn_dims=(2, None))
    (tmp_path / "metrics.csv").write_text(METRICS)
    remaining_units(tmp_path, before, after, tmp_path)
    titles = [axes.get_title() for axes in drawn["remaining_units.png"].axes]
    assert titles == [
        "Convolution channels: 100% remaining", "Attention heads: 25% remaining", "Feed-forward units: 12% remaining",
        "Sparsity",
    ]  # fmt: skip


def test_distances_without_those_of_equal_widths(tmp_path: Path, drawn: dict[str, Any]) -> None:
    (tmp_path / "distances.csv").write_text("teacher_layer,student_layer,cka\n0,0,0.1\n6,1,nan\n")
    distance_curves(tmp_path)
    (axes,) = drawn["distances.png"].axes
    assert axes.get_title() == "1 - linear CKA"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["P", "6"]


def test_smooth_is_a_running_mean() -> None:
    assert smooth([1.0, 3.0, 5.0, 7.0], share=0.5) == [1.0, 2.0, 4.0, 6.0]
    assert smooth([1.0, 3.0]) == [1.0, 3.0]
