"""The Hugging Face hub: its cache first, then the network if there is one."""

import re
from collections.abc import Callable
from pathlib import Path

from .errors import UserError, first_line
from .formats import huggingface

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WITHOUT_CLIENT = "hub names need the package huggingface_hub (uv pip install huggingface_hub)"


def model_folder(name: str) -> Path:
    """The folder in the hub's cache that holds a model; missing files are fetched.

    A model that is complete in the cache is not looked up again: it works without a network, and a teacher never
    changes.

    Raises:
        UserError: no such name, a hub that cannot be reached, or a cache that cannot be written.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"{name} does not exist, and is not a hub name of the form ORG/NAME")
    try:
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError:
        raise UserError(f"{name} does not exist; {WITHOUT_CLIENT}") from None

    def cached(file: str) -> Path | None:
        path = huggingface_hub.try_to_load_from_cache(name, file)
        return Path(path) if isinstance(path, str) else None

    def fetched(file: str) -> Path | None:
        try:
            return Path(huggingface_hub.hf_hub_download(name, file))
        except LocalEntryNotFoundError:  # the network has gone
            raise
        except EntryNotFoundError:
            return None

    try:
        folder = _gather(cached)
        # None: it is unknown whether the model has this file, which says if waveforms are normalised
        if folder is not None and huggingface_hub.try_to_load_from_cache(name, PREPROCESSOR) is not None:
            return folder
        if not (reason := why_unreachable(name, CONFIG)):
            folder, reason = _gather(fetched), f"the hub has no {CONFIG} or no weights of that name"
    except UserError:
        raise
    except (OSError, ValueError) as error:  # an answer of the hub, a full disk, an impossible model name
        if isinstance(error, OSError) and error.filename:
            hint = "HF_HOME names another folder"
            raise UserError(f"{error.filename} cannot be written: {error.strerror}; {hint}") from None
        folder, reason = None, type(error).__name__
    if folder is None:
        raise UserError(f"{name} does not exist locally, on the Hugging Face hub or in its cache ({reason})")
    return folder


def download(repository: str, name: str, folder: Path) -> Path:
    """Fetch a file of a repository into a folder.

    Raises:
        ConnectionError: the hub cannot be reached.
        ImportError: huggingface_hub is not installed. Also any error of that client.
    """
    from huggingface_hub import hf_hub_download

    if reason := why_unreachable(repository, name):
        raise ConnectionError(reason)
    return Path(hf_hub_download(repository, name, local_dir=folder))


def why_unreachable(name: str, file: str) -> str:
    """Why the hub does not answer; '' if it does. This takes one request; a download would retry for 24 s."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        get_hf_file_metadata(hf_hub_url(name, file))
    except (HfHubHTTPError, HFValidationError):  # an answer, or an invalid name: the download explains both
        return ""
    except Exception as error:  # the client's many network errors share no base class
        return f"it cannot be reached: {first_line(error)}"
    return ""


def _gather(get: Callable[[str], Path | None]) -> Path | None:
    """The folder of a model if `get` finds its configuration and all of its weights."""
    config = get(CONFIG)
    if config is None:
        return None
    get(PREPROCESSOR)
    weights = next((file for file in huggingface.WEIGHTS if get(file)), "")
    shards = huggingface.shards(config.parent / weights) if weights.endswith(".index.json") else [weights]
    return config.parent if weights and all(get(file) for file in shards) else None
