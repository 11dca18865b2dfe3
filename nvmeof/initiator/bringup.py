"""How a controller is connected, enabled and shut down: NVMe Base 2.0 sections 3.5, 3.6 and 6.3."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nvmeof.errors import StatusError, TransportError
from nvmeof.initiator.admin import Admin
from nvmeof.initiator.dispatch import Command, Dispatcher
from nvmeof.initiator.options import Options
from nvmeof.limits import READY_POLL_SECONDS, READY_POLL_SECONDS_MAX
from nvmeof.protocol.host_queue import HostQueue
from nvmeof.spec.command import AdminOpcode, FabricsType
from nvmeof.spec.fabrics import (
    CAP,
    CAP_CSS_ADMIN_ONLY,
    CAP_CSS_IOCS,
    CAP_CSS_NVM,
    CC,
    CNTLID_MAX,
    CONNECT_AUTH_SECURE_CHANNEL_REQUIRED,
    CONNECT_AUTH_TLS_REQUIRED,
    CONNECT_DATA,
    CRTO,
    CSS_ADMIN_ONLY,
    CSS_ALL_SUPPORTED,
    CSS_NVM,
    CSTS,
    TIMEOUT_UNIT_MS,
    Capabilities,
    Configuration,
    ConnectAttribute,
    ConnectData,
    ConnectDwords,
    ConnectField,
    ControllerStatus,
    Property,
    ShutdownNotification,
    ShutdownStatus,
    encode_nqn,
)
from nvmeof.spec.status import Status

IOSQES = 6
IOCQES = 4
"""Powers of two: entries of 64 and 16 bytes, all that NVMe over Fabrics allows."""


async def connect_queue(
    queue: HostQueue, options: Options, subnqn: str, *, qid: int, depth: int, cntlid: int, disconnectable: bool = False
) -> int:
    """Send Connect on a fresh connection, let ``depth`` commands be in flight on it. Returns the controller identifier.

    On an I/O queue flow control is asked to be off, so that the target may use SUCCESS; one that refuses that is asked
    again without. ``disconnectable``: a later Disconnect may delete this queue alone.

    Raises StatusError, ConnectionLost, TransportError when authentication is required.
    """
    data = CONNECT_DATA.encode(
        ConnectData(options.host_id, cntlid, subnqn=encode_nqn(subnqn), hostnqn=encode_nqn(options.host_nqn))
    )
    kato = 0 if qid else round(options.keep_alive * 1000)
    cattr = int(ConnectAttribute.DISABLE_SQ_FLOW_CONTROL) if qid else 0
    if disconnectable:
        cattr |= ConnectAttribute.INDIVIDUAL_QUEUE_DELETION
    queue.capacity = depth
    dispatcher = Dispatcher(options.connect_timeout)
    dispatcher.queues.append(queue)
    context = f"Connect to {subnqn}, queue {qid}"
    while True:
        dwords = ConnectDwords(qid=qid, sqsize=depth, cattr=cattr, kato=kato).encode()
        command = Command(AdminOpcode.FABRICS, FabricsType.CONNECT, *dwords, data_out=memoryview(data))
        try:
            request = await dispatcher.run_one(command, context)
            break
        except StatusError as error:
            status = error.status_code_type << 8 | error.status_code
            about_cattr = status == Status.CONNECT_INVALID_PARAMETERS and error.result == ConnectField.CATTR
            if not cattr or not about_cattr or not queue.ready:
                raise
            cattr = 0
    if request.dw0 & (CONNECT_AUTH_TLS_REQUIRED | CONNECT_AUTH_SECURE_CHANNEL_REQUIRED):
        raise TransportError(f"{context}: the controller requires authentication, which is not supported")
    found = request.dw0 & 0xFFFF
    if not found <= CNTLID_MAX or (qid and found != cntlid):
        raise TransportError(f"{context}: the controller calls itself {found:#06x}")
    queue.established()
    return found


async def enable(admin: Admin, scope: asyncio.Timeout) -> tuple[Capabilities, Configuration]:
    """CC.EN from 0 to 1, and wait for CSTS.RDY as long as CAP.TO or CRTO says; ``scope`` is put off by that time."""
    capabilities = CAP.decode(await admin.property_get(Property.CAP))
    if capabilities.mpsmin or capabilities.mqes < 1:
        raise TransportError(
            f"the controller wants pages of {4096 << capabilities.mpsmin} bytes and queues of "
            f"{capabilities.mqes + 1} entries at most; 4096 bytes and two entries are needed"
        )
    if capabilities.css & CAP_CSS_IOCS:
        css = CSS_ALL_SUPPORTED
    elif capabilities.css & CAP_CSS_NVM or not capabilities.css & CAP_CSS_ADMIN_ONLY:
        css = CSS_NVM
    else:
        css = CSS_ADMIN_ONLY
    configuration = Configuration(css=css, iosqes=IOSQES, iocqes=IOCQES)
    await admin.property_set(Property.CC, CC.encode(configuration))
    units = capabilities.to
    if capabilities.crwms:
        units = max(units, CRTO.decode(await admin.property_get(Property.CRTO)).crwmt)
    configuration = configuration._replace(en=1)
    await admin.property_set(Property.CC, CC.encode(configuration))
    seconds = (units + 1) * TIMEOUT_UNIT_MS / 1000
    deadline = scope.when()
    if deadline is not None:
        scope.reschedule(deadline + seconds)
    if not await _poll(admin, seconds, lambda status: bool(status.rdy)):
        raise TransportError(f"the controller did not become ready within {seconds} s")
    return capabilities, configuration


async def shut_down(admin: Admin, configuration: Configuration, seconds: float) -> bool:
    """CC.SHN = normal, and wait for CSTS.SHST = complete: Base 2.0 section 3.6.1. False: it took too long."""
    configuration = configuration._replace(shn=ShutdownNotification.NORMAL)
    await admin.property_set(Property.CC, CC.encode(configuration))
    return await _poll(admin, seconds, lambda status: status.shst == ShutdownStatus.COMPLETE)


async def _poll(admin: Admin, seconds: float, done: Callable[[ControllerStatus], bool]) -> bool:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    pause = READY_POLL_SECONDS
    while True:
        status = CSTS.decode(await admin.property_get(Property.CSTS))
        if done(status):
            return True
        if status.cfs:
            raise TransportError("the controller reports a fatal error (CSTS.CFS)")
        if loop.time() + pause > deadline:
            return False
        await asyncio.sleep(pause)
        pause = min(2 * pause, READY_POLL_SECONDS_MAX)
