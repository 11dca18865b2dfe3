"""The host's side: reaches any NVMe/TCP target from asyncio, and through an ordinary file object from threads."""

from nvmeof.initiator.admin import Completion
from nvmeof.initiator.background import Event
from nvmeof.initiator.blockfile import BlockFile
from nvmeof.initiator.blockfile import open as open  # noqa: A004 - as io.open
from nvmeof.initiator.controller import Controller
from nvmeof.initiator.discovery import DiscoveryEntry, discover
from nvmeof.initiator.host import connect, open_namespace
from nvmeof.initiator.namespace import Namespace
from nvmeof.initiator.options import ConnectOptions
from nvmeof.initiator.url import is_url

__all__ = [
    "BlockFile",
    "Completion",
    "ConnectOptions",
    "Controller",
    "DiscoveryEntry",
    "Event",
    "Namespace",
    "connect",
    "discover",
    "is_url",
    "open",
    "open_namespace",
]
