"""An exported folder on the Hugging Face hub: shown first, uploaded when asked."""

from pathlib import Path

from upstream.errors import UserError, first_line

LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"


def preview(folder: Path, name: str) -> str:
    """What an upload of the folder would put on the hub, file by file, and the head of its card."""
    files = sorted(folder.iterdir())
    lines = [f"  {path.name:<34}{path.stat().st_size / 1e3:>12,.1f} kB" for path in files]
    card = (folder / "README.md").read_text(encoding="utf-8")
    head = [f"  {line}" for line in card.split("---\n")[1].splitlines()]
    what = f"nothing is uploaded without --upload; it would upload these {len(files)} files to the hub as {name}:"
    return "\n".join([what, *lines, "with a model card that begins:", *head])


def push(folder: Path, name: str, private: bool) -> str:
    """Upload the folder as one commit, to a new model or as the next version of one; returns its address.

    Raises:
        UserError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload by distiller/export.py")
    except LocalTokenNotFoundError:
        raise UserError(f"{name} is not uploaded: no Hugging Face token was found; {LOGIN}") from None
    except HfHubHTTPError as error:
        refused = error.response is not None and error.response.status_code in (401, 403)
        raise UserError(f"{name} is not uploaded: {first_line(error)}" + (f"; {LOGIN}" if refused else "")) from None
    except Exception as error:  # the client's many network errors share no base class
        raise UserError(f"{name} is not uploaded: the hub cannot be reached: {first_line(error)}") from None
    return f"{commit.repo_url}: upstream.checkpoint.load({name!r}) opens it"
