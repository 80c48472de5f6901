"""The Hugging Face hub: whether it can be reached at all, and what is looked for there last."""

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from .files import retried

FINETUNE = "pip install '.[train,finetune]'"  # what Wan2.1 and CogVideoX need


def is_folder(name: str) -> bool:
    """Whether a name is a local folder, or looks like one, and no hub id."""
    return os.path.isdir(name) or name.startswith((".", "/", "~"))


def looked_up(
    load: Callable[..., Any], name: str, caches: Sequence[str | None] = (None,), **options: Any
) -> Any:
    """`load` from a local folder, or from the first cache that has it, or from the hub.

    Args:
        load: `from_pretrained` or `load_config` of some class.
        caches: folders; None is Hugging Face's own. The first is where a download goes.

    Raises:
        OSError: it is nowhere.
    """
    if is_folder(name):
        return retried(lambda: load(name, local_files_only=True, **options), name)
    for folder in dict.fromkeys(caches):
        try:
            return load(name, cache_dir=folder, local_files_only=True, **options)
        except OSError as error:
            reason = error
    if not hub_answers():
        raise reason
    return load(name, cache_dir=caches[0], **options)


def hub_answers() -> bool:
    """Does the hub answer within seconds? Its own client would retry for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():  # a direct connection would prove nothing
        return True
    hub = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((hub.hostname, hub.port or 443), timeout=5):
            return True
    except OSError:
        return False
