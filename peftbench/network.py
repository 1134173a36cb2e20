"""Whether a server can be reached, found out within seconds."""

from __future__ import annotations

import os
import socket
import urllib.parse

REACH_TIMEOUT_S = 3.0


def is_offline() -> bool:
    """Whether the environment forbids the Hugging Face hub's client to use the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def hub_address() -> str:
    """Where the Hugging Face hub is."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def obstacle(address: str) -> str | None:
    """Why the server of an address cannot be reached; `None` where it can, or nobody knows.

    The hub's client alone retries for most of a minute before it gives up.
    """
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return None  # a direct connection says nothing behind a proxy
    target = urllib.parse.urlparse(address)
    port = target.port or (80 if target.scheme == "http" else 443)
    try:
        socket.create_connection((target.hostname or "", port), REACH_TIMEOUT_S).close()
    except OSError as e:
        return f"{target.hostname} is out of reach ({e})"
    return None
