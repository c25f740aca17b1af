"""s3prl's command line: its options by name, and the words that it parses."""

from collections.abc import Mapping
from typing import Any

Arguments = Mapping[str, Any]  # of s3prl's command line, by name; None and False are left out
MODES = ("train", "evaluate", "inference")
SHORT = {
    "mode": "-m", "evaluate_split": "-t", "override": "-o", "past_exp": "-e", "init_ckpt": "-i", "config": "-c",
    "downstream": "-d", "downstream_variant": "-v", "upstream": "-u", "upstream_ckpt": "-k",
    "upstream_model_config": "-g", "upstream_refresh": "-r", "upstream_trainable": "-f",
    "upstream_feature_selection": "-s", "upstream_layer_selection": "-l", "expname": "-n", "expdir": "-p",
    "auto_resume": "-a",
}  # fmt: skip


def flag(name: str) -> str:
    """The option of that name as typed by a user."""
    return SHORT.get(name, f"--{name}")


def command_line(arguments: Arguments) -> list[str]:
    """s3prl's command line, without the program."""
    words = []
    for name, value in arguments.items():
        if value is not None and value is not False:
            words += [flag(name), *([] if value is True else [str(value)])]
    return words
