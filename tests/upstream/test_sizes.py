"""Parameters, multiply-accumulates and frames of the papers' encoders, from their configurations alone."""

import pytest
import torch

from upstream.config import BASE_CONV_LAYERS, EncoderConfig
from upstream.cost import count_macs
from upstream.encoder import SpeechEncoder


def narrow(width: int, ffn_dim: int) -> EncoderConfig:
    """STaR's students (methods.md): the last convolution as wide as the encoder, so that nothing is projected."""
    return EncoderConfig(
        embed_dim=width,
        num_heads=12,
        head_dim=width // 12,
        attention_heads=(tuple(range(12)),) * 12,
        ffn_dims=(ffn_dim,) * 12,
        conv_layers=((128, 10, 5), (256, 1, 1), *((256, 3, 2),) * 4, (width, 1, 1), *((width, 2, 2),) * 2),
        projection=False,
    )


def base(family: str = "hubert") -> EncoderConfig:
    return EncoderConfig(
        family=family,
        embed_dim=768,
        num_heads=12,
        head_dim=64,
        attention_heads=(tuple(range(12)),) * 12,
        ffn_dims=(3072,) * 12,
    )


def parameters(config: EncoderConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in SpeechEncoder(config).parameters())


@pytest.mark.parametrize(
    ("width", "ffn_dim", "count"),
    [(432, 976, 22_308_592), (432, 1392, 26_626_672), (336, 792, 14_114_800), (288, 504, 9_393_472)],
    ids=["base", "L", "S", "XS"],
)
def test_parameters_of_the_paper_sizes(width, ffn_dim, count) -> None:
    assert parameters(narrow(width, ffn_dim)) == count


@pytest.mark.parametrize(("family", "count"), [("hubert", 94_370_944), ("wavlm", 94_381_168)])
def test_parameters_of_base_models(family, count) -> None:
    """`transformers`' count without its mask embedding (94,371,712 and 94,381,936 less 768)."""
    assert parameters(base(family)) == count


@pytest.mark.parametrize(
    ("config", "giga"), [(base(), 74.07), (narrow(432, 976), 20.62), (narrow(432, 1392), 22.77)], ids=["Base", "S", "L"]
)
def test_macs_of_ten_seconds(config, giga) -> None:
    """The printed figures; the paper-size student counts 20.615."""
    assert count_macs(config, 160_000) / 1e9 == pytest.approx(giga, abs=0.006)


def test_frame_count_is_that_of_the_convolutions() -> None:
    config = narrow(432, 976)
    assert (config.samples_per_frame, config.min_samples) == (320, 400)
    assert [config.frame_count(samples) for samples in (400, 719, 720, 16000, 160_000)] == [1, 1, 2, 49, 499]
    samples = torch.arange(400, 4000)
    assert torch.equal(config.frame_count(samples), (samples - 400) // 320 + 1)
    assert config.frame_count(399) < 1


def test_the_extractor_of_published_models() -> None:
    config = base()
    assert config.conv_layers == BASE_CONV_LAYERS
    assert (config.samples_per_frame, config.min_samples) == (320, 400)


def whisper(width: int, heads: int, layers: int, **changes) -> EncoderConfig:
    values = {"mel_bins": 80, "max_frames": 1500, "attends_to_padding": True, **changes}
    return EncoderConfig(
        family="whisper",
        embed_dim=width,
        num_heads=heads,
        head_dim=width // heads,
        attention_heads=(tuple(range(heads)),) * layers,
        ffn_dims=(4 * width,) * layers,
        conv_layers=((width, 3, 1), (width, 3, 2)),
        conv_bias=True,
        feature_norm=False,
        projection=False,
        layer_norm_first=True,
        **values,
    )


@pytest.mark.parametrize(
    ("config", "count"), [(whisper(384, 6, 4), 8_208_384), (whisper(1280, 20, 32, mel_bins=128), 636_968_960)]
)
def test_parameters_of_whisper(config, count) -> None:
    """tiny.en's as `transformers` counts them (its encoder alone), large-v3's likewise."""
    assert parameters(config) == count


@pytest.mark.parametrize("padding", [True, False], ids=["published", "masked"])
def test_macs_of_whisper_are_those_of_its_modules(padding) -> None:
    config = whisper(24, 2, 2, max_frames=50, attends_to_padding=padding)
    encoder, counted = SpeechEncoder(config).eval(), []

    def count(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        counted.append(output.numel() * module.weight[0].numel())

    for module in encoder.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv1d):
            module.register_forward_hook(count)
    encoder(torch.randn(9600))
    frames = 50 if padding else 30
    beyond = 0 if padding else 2 * 3 * 24 * (2 * 80 + 24)  # two frames more in the convolutions, which do not count
    attention = 2 * 2 * frames**2 * 24
    assert count_macs(config, 9600) == sum(counted) - beyond + attention
