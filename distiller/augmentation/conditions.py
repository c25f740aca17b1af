"""Speech degraded for evaluation: one effect at one level, always the same for the same recording."""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from distiller.augmentation.augmenter import Augmenter
from distiller.augmentation.config import AugmentConfig, NoiseConfig, ReverberationConfig, TelephoneConfig
from upstream.errors import require

CLEAN, TELEPHONE, ROOM = "clean", "telephone", "room"
MOST = 60  # dB

Degrade = Callable[[Tensor], Tensor]  # (sample,) -> (sample,)


def conditions(names: Sequence[str]) -> dict[str, Degrade | None]:
    """Test conditions by their title: clean speech first, then speech degraded as each of the names says.

    Args:
        names: signal-to-noise ratios in dB (coloured noise of the recipes' kinds), telephone (mu-law) or room.

    Raises:
        UserError: another name.
    """
    found: dict[str, Degrade | None] = {CLEAN: None}
    for name in (each.strip() for each in names):
        if name in (TELEPHONE, ROOM):
            found[name] = _degrade(name, None)
            continue
        try:
            level = float(name)
        except ValueError:
            level = None
        allowed = f"{TELEPHONE}, {ROOM}, or a signal-to-noise ratio from -{MOST} to {MOST} dB"
        require(level is not None and abs(level) <= MOST, "--degraded", name, allowed)
        found[f"{name} dB"] = _degrade("noise", level)
    return found


def _degrade(effect: str, level: float | None) -> Degrade:
    """The recipes' effect with a probability of 1, at one level; the random seed depends on the waveform alone."""
    config = AugmentConfig()
    if effect == TELEPHONE:
        config.telephone = TelephoneConfig(probability=1.0, codecs=["mu-law"])
    elif effect == ROOM:
        config.reverberation = ReverberationConfig(probability=1.0)
    elif level is not None:
        config.noise = NoiseConfig(probability=1.0, snr=[level, level])
    augmenter = Augmenter(config, seed=0)

    def degrade(waveform: Tensor) -> Tensor:
        samples = np.ascontiguousarray(waveform.numpy(), dtype=np.float32)
        random = np.random.default_rng(zlib.crc32(samples.tobytes()))
        return torch.from_numpy(np.ascontiguousarray(augmenter.degraded(samples, [], random), dtype=np.float32))

    return degrade
