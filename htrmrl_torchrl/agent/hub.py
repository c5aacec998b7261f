"""Folders of agents on the Hugging Face Hub, downloaded at their first use."""

import os
import re
from pathlib import Path

from htrmrl_torchrl.checkpoints.folder import CONFIG, MODEL
from htrmrl_torchrl.extras import MissingExtraError, require

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def local_folder(folder_or_hub_id: str | Path) -> Path:
    """The folder itself if it exists, else a download of ``user/name``, which needs the extra ``hub``.

    A download is kept in the cache of ``huggingface_hub``, and only weights and settings are fetched. Raises
    FileNotFoundError, in one sentence, if there is neither.
    """
    folder = Path(folder_or_hub_id)
    if os.path.isdir(folder):
        return folder
    name = str(folder_or_hub_id)
    if os.path.exists(folder):
        raise FileNotFoundError(f"{name} is a file, not a folder: load a checkpoint with HTrMRLAgent.from_checkpoint.")
    if not _HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"There is no folder {name}, and an agent of the Hugging Face Hub is called user/name.")
    try:
        require("hub", "huggingface_hub")
    except MissingExtraError as error:
        raise MissingExtraError(f"There is no folder {name}, and for the Hugging Face Hub {error}") from None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[MODEL, CONFIG]))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        said = " ".join(str(error).split())
        raise FileNotFoundError(
            f"There is no folder {name}, and the Hugging Face Hub does not give an agent of that name ({said})."
        ) from error
