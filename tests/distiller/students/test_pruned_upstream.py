"""A student that was cut, deployed: the hub entries give P and F^1..F^L of the gated student, whatever the batch."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distiller.students.config import UNITS
from distiller.students.gates import GatedEncoder, GateSite
from distiller.students.prune import remove_closed_units
from upstream import hubconf
from upstream.checkpoint import save
from upstream.config import EncoderConfig
from upstream.encoder import SpeechEncoder

ROOT = Path(__file__).parents[3]
HUBERT = EncoderConfig(
    embed_dim=48, num_heads=4, head_dim=12, attention_heads=((0, 1, 2, 3),) * 3, ffn_dims=(64,) * 3,
    conv_layers=((24, 10, 5), *((24, 3, 2),) * 4, (24, 2, 2), (32, 2, 2)), positional_kernel=8, positional_groups=4,
)  # fmt: skip
FAMILIES = {
    "skhubert": HUBERT,
    "skwavlm": replace(HUBERT, family="wavlm", relative_buckets=32, relative_max_distance=80),
}
LENGTHS = (16_000, 11_231, 7_040, 400)


def gated_student(config: EncoderConfig) -> GatedEncoder:
    """About a third of every kind of unit closed, the first layer's attention and the last's feed-forward emptied."""
    torch.manual_seed(0)
    student = GatedEncoder(SpeechEncoder(config), dict.fromkeys(UNITS, 0.3)).eval()
    for site, gate in student.by_site().items():
        with torch.no_grad():
            gate.log_alpha += 4 * torch.rand_like(gate.log_alpha) - 2
            if site in (GateSite("heads", 0), GateSite("ffn_units", 2)):
                gate.log_alpha.fill_(-20.0)
    return student


@pytest.fixture
def wavs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, generator=generator) for length in LENGTHS]


@pytest.mark.parametrize("entry", FAMILIES)
@torch.no_grad()
def test_the_entry_exposes_what_the_gated_student_computed_whatever_the_batch(
    entry: str, wavs: list[Tensor], tmp_path: Path
) -> None:
    student = gated_student(FAMILIES[entry])
    left = remove_closed_units(student)
    assert left.config.attention_heads[0] in (None, ())
    assert left.config.unpruned_channels
    assert left.config.feature_scale
    save(left, tmp_path / "student")
    model = getattr(hubconf, entry)(ckpt=str(tmp_path / "student"))
    batch = model(wavs)
    assert len(batch["hidden_states"]) == 4
    for index, wav in enumerate(wavs):
        alone, gated = model([wav])["hidden_states"], student(wav[None])
        expected = [gated.projected, *gated.hidden_states[1:]]
        for single, together, truth in zip(alone, batch["hidden_states"], expected, strict=True):
            frames = single.shape[1]
            assert (single - truth).abs().max() < 1e-4
            assert (together[index, :frames] - single[0]).abs().max() < 1e-4


WITHOUT_S3PRL = """
import sys, torch
sys.modules["s3prl"] = None
model = torch.hub.load(sys.argv[1], sys.argv[2], source="local", ckpt=sys.argv[3])
features = model([torch.arange(16000.0).sin()])
assert not [name for name in sys.modules if name.startswith("distiller")]
torch.save(features["hidden_states"], "states.pt")
"""


@pytest.mark.slow
@torch.no_grad()
def test_torch_hub_loads_it_without_s3prl_and_without_distiller(tmp_path: Path) -> None:
    left = remove_closed_units(gated_student(HUBERT))
    save(left, tmp_path / "student")
    command = [sys.executable, "-c", WITHOUT_S3PRL, str(ROOT), "skhubert", str(tmp_path / "student")]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    output = left(torch.arange(16_000.0).sin()[None])
    states = torch.load(tmp_path / "states.pt", weights_only=True)
    for state, truth in zip(states, [output.projected, *output.hidden_states[1:]], strict=True):
        torch.testing.assert_close(state, truth, atol=1e-4, rtol=0)
