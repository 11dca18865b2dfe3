"""``connect`` and ``open_namespace``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Unpack

from nvmeof.errors import UsageError
from nvmeof.initiator.controller import Controller
from nvmeof.initiator.namespace import Namespace
from nvmeof.initiator.options import ConnectOptions, Options
from nvmeof.initiator.url import Url, parse_url
from nvmeof.spec.fabrics import DISCOVERY_NQN, PORT_DISCOVERY


@asynccontextmanager
async def connect(url: str, **options: Unpack[ConnectOptions]) -> AsyncIterator[Controller]:
    """An association with the controller of ``nvme+tcp://HOST[:PORT]/SUBNQN``; left in an orderly way.

    The options are those of ``ConnectOptions``. Raises UsageError, TransportError when no association can be made,
    StatusError when the target refuses it (unknown subsystem, host not allowed, ...).
    """
    controller = await _open(_controller_url(url), options)
    try:
        yield controller
    finally:
        await controller.close()


@asynccontextmanager
async def open_namespace(url: str, **options: Unpack[ConnectOptions]) -> AsyncIterator[Namespace]:
    """The namespace of ``nvme+tcp://HOST[:PORT]/SUBNQN/NSID`` over an association of its own.

    Raises what ``connect`` raises, and UsageError when the namespace is not active.
    """
    namespace = await attach(namespace_url(url), options)
    try:
        yield namespace
    finally:
        await namespace.controller.close()


async def attach(url: Url, options: ConnectOptions) -> Namespace:
    """The namespace that ``url`` names; whoever gets it closes its controller."""
    assert url.nsid is not None
    controller = await _open(url._replace(nsid=None), options)
    try:
        return await controller.namespace(url.nsid)
    except BaseException:
        await controller.close()
        raise


async def _open(url: Url, options: ConnectOptions) -> Controller:
    controller = Controller(url, Options.check(**options))
    await controller.open()
    return controller


def namespace_url(url: str) -> Url:
    """A URL that names a namespace. Raises UsageError."""
    parsed = parse_url(url)
    if parsed.nsid is None:
        raise UsageError(f"URL {url!r}: got no namespace, wanted nvme+tcp://HOST[:PORT]/SUBNQN/NSID")
    return parsed


def _controller_url(url: str) -> Url:
    parsed = parse_url(url)
    if parsed.subnqn == DISCOVERY_NQN:
        parsed = parse_url(url, default_port=PORT_DISCOVERY)
    if parsed.subnqn is None:
        raise UsageError(f"URL {url!r}: got no subsystem, wanted nvme+tcp://HOST[:PORT]/SUBNQN")
    if parsed.nsid is not None:
        raise UsageError(f"URL {url!r}: got a namespace, wanted a subsystem (open_namespace takes a namespace)")
    return parsed
