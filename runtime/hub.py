"""The Hugging Face hub: whether it can be reached at all."""

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies


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
