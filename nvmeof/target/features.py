"""Set Features and Get Features (NVMe Base 2.0, sections 5.15 and 5.27.1; NVM Command Set 1.0, section 4.1.3).

No feature is saveable, so a saved value is the default one, and a controller reset brings every default back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from nvmeof.limits import IO_QUEUES_MAX, KEEP_ALIVE_GRANULARITY_MS, KEEP_ALIVE_MS_MAX, NAMESPACES_MAX
from nvmeof.spec.command import (
    FEATURE_SELECT_SHIFT,
    NSID_ALL,
    SET_FEATURES_SAVE,
    FeatureCapability,
    FeatureId,
    FeatureSelect,
)
from nvmeof.spec.features import (
    ARBITRATION,
    ERROR_RECOVERY,
    HOST_BEHAVIOR,
    HOST_IDENTIFIER,
    NUMBER_OF_QUEUES,
    POWER_MANAGEMENT,
    QUEUES_RESERVED,
    TEMPERATURE_THRESHOLD,
    TIMESTAMP_SIZE,
    VOLATILE_WRITE_CACHE,
    WRITE_ATOMICITY,
    Arbitration,
    HostBehavior,
    NumberOfQueues,
    TemperatureThreshold,
    Timestamp,
    TimestampOrigin,
)
from nvmeof.spec.identify import AsyncEventBit
from nvmeof.spec.status import DNR, Status
from nvmeof.target.command import Command, CommandError, Reply
from nvmeof.target.locations import CDW10, CDW11, NSID, invalid_field, invalid_namespace

if TYPE_CHECKING:
    from nvmeof.target.admin import AdminQueue
    from nvmeof.target.controller import Controller

KEEP_ALIVE_DEFAULT_MS = 120_000
"""What a transport that requires keep-alive has by default (section 5.27.1.12)."""

NO_BURST_LIMIT = 7
SMART_EVENT_BITS = 0x3F
IO_EVENTS = SMART_EVENT_BITS | AsyncEventBit.NAMESPACE_ATTRIBUTE
DISCOVERY_EVENTS = int(AsyncEventBit.DISCOVERY_LOG)
TEMPERATURE_COMPOSITE = 0x0
TEMPERATURE_ALL = 0xF
TEMPERATURE_OVER, TEMPERATURE_UNDER = 0, 1
COMMAND_SET_COMBINATION_MASK = 0x1FF


class Feature(NamedTuple):
    """What the tables say about a feature.

    ``mask``: bits of dword 11 that are kept. ``check`` may refuse a value. ``data_bytes`` is not zero when the value
    is a data buffer.
    """

    mask: int = 0xFFFF_FFFF
    default: int = 0
    check: Callable[[Command], None] | None = None
    data_bytes: int = 0
    changeable: bool = True
    namespace_specific: bool = False
    on_discovery: bool = False

    @property
    def capabilities(self) -> int:
        """Dword 0 for Select 011b (figure 195)."""
        changeable = FeatureCapability.CHANGEABLE if self.changeable else 0
        return int(changeable | (FeatureCapability.NAMESPACE_SPECIFIC if self.namespace_specific else 0))


def _check_power_state(command: Command) -> None:
    if POWER_MANAGEMENT.decode(command.cdw11).state:
        raise invalid_field(CDW11)


def _check_temperature(command: Command) -> None:
    """Figure 320: there is a composite temperature and no sensor; selecting all of them is only for setting."""
    _, sensor, kind = TEMPERATURE_THRESHOLD.decode(command.cdw11)
    if sensor not in (TEMPERATURE_COMPOSITE, TEMPERATURE_ALL):
        raise invalid_field(CDW11 + 2)
    if kind > TEMPERATURE_UNDER:
        raise invalid_field(CDW11 + 2, bit=4)


def _check_error_recovery(command: Command) -> None:
    """DULBE needs NSFEAT bit 2, which we do not report."""
    if ERROR_RECOVERY.decode(command.cdw11).deallocated_error:
        raise invalid_field(CDW11 + 2)


def _check_combination(command: Command) -> None:
    """Section 5.27.1.21: the only combination is number 0, the NVM Command Set."""
    if command.cdw11 & COMMAND_SET_COMBINATION_MASK:
        raise CommandError(Status.IO_COMMAND_SET_COMBINATION_REJECTED | DNR, location=CDW11)


FEATURES: dict[int, Feature] = {
    FeatureId.ARBITRATION: Feature(ARBITRATION.mask, ARBITRATION.encode(Arbitration(burst=NO_BURST_LIMIT))),
    FeatureId.POWER_MANAGEMENT: Feature(POWER_MANAGEMENT.mask, check=_check_power_state),
    FeatureId.TEMPERATURE_THRESHOLD: Feature(check=_check_temperature),
    FeatureId.ERROR_RECOVERY: Feature(ERROR_RECOVERY.mask, check=_check_error_recovery, namespace_specific=True),
    FeatureId.VOLATILE_WRITE_CACHE: Feature(VOLATILE_WRITE_CACHE.mask, default=1),
    FeatureId.NUMBER_OF_QUEUES: Feature(
        default=NUMBER_OF_QUEUES.encode(NumberOfQueues(IO_QUEUES_MAX - 1, IO_QUEUES_MAX - 1))
    ),
    FeatureId.WRITE_ATOMICITY: Feature(WRITE_ATOMICITY.mask),
    FeatureId.ASYNC_EVENT_CONFIGURATION: Feature(on_discovery=True),
    FeatureId.TIMESTAMP: Feature(data_bytes=TIMESTAMP_SIZE),
    FeatureId.KEEP_ALIVE_TIMER: Feature(default=KEEP_ALIVE_DEFAULT_MS, on_discovery=True),
    FeatureId.HOST_BEHAVIOR_SUPPORT: Feature(data_bytes=HOST_BEHAVIOR.size),
    FeatureId.IO_COMMAND_SET_PROFILE: Feature(COMMAND_SET_COMBINATION_MASK, check=_check_combination),
    FeatureId.HOST_IDENTIFIER: Feature(data_bytes=16, changeable=False),
}


def round_keep_alive(kato_ms: int) -> int:
    """Up to the granularity that KAS announces (section 3.9)."""
    return -(-kato_ms // KEEP_ALIVE_GRANULARITY_MS) * KEEP_ALIVE_GRANULARITY_MS


class Features:
    """Current values of one controller's features. ``kato_ms`` is the keep-alive timeout in milliseconds, 0 for none.

    ``clock`` gives seconds that never go back.
    """

    def __init__(self, kato_ms: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.kato_ms = round_keep_alive(kato_ms)
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Controller reset: every value is the default again, but the keep-alive timeout, which belongs to Connect."""
        self.async_events = 0xFFFF_FFFF
        """Asynchronous Event Configuration; all that the controller knows until a host says otherwise."""
        self._values: dict[tuple[int, int], int] = {}
        self._host_behavior = HostBehavior()
        self._timestamp = Timestamp()
        self._timestamp_set_at = self._clock()

    @property
    def io_queues(self) -> int:
        """How many I/O queues the host may connect."""
        granted = NUMBER_OF_QUEUES.decode(self._value(FeatureId.NUMBER_OF_QUEUES))
        return min(granted) + 1

    # --- Get Features -------------------------------------------------------------------------------------------------

    def get(self, controller: Controller, command: Command) -> Reply:
        """Execute Get Features. Raises CommandError."""
        fid = command.cdw10 & 0xFF
        feature = _find(controller, fid)
        select = command.cdw10 >> FEATURE_SELECT_SHIFT & 7
        if select > FeatureSelect.SUPPORTED:
            raise invalid_field(CDW10 + 1)
        if select == FeatureSelect.SUPPORTED:
            return Reply(dw0=feature.capabilities)
        if feature.namespace_specific:
            _check_nsid(controller, command.nsid)
        current = select == FeatureSelect.CURRENT
        match fid:
            case FeatureId.TIMESTAMP:
                return Reply(data=self._timestamp_now() if current else Timestamp().encode())
            case FeatureId.HOST_BEHAVIOR_SUPPORT:
                return Reply(data=HOST_BEHAVIOR.encode(self._host_behavior if current else HostBehavior()))
            case FeatureId.HOST_IDENTIFIER:
                if not HOST_IDENTIFIER.decode(command.cdw11).extended:
                    raise CommandError(Status.HOST_IDENTIFIER_INCONSISTENT_FORMAT | DNR, location=CDW11)
                return Reply(data=controller.hostid)
            case FeatureId.TEMPERATURE_THRESHOLD:
                return Reply(dw0=self._temperature(command, current=current))
            case FeatureId.ASYNC_EVENT_CONFIGURATION:
                return Reply(dw0=(self.async_events if current else 0xFFFF_FFFF) & _events_supported(controller))
        if not current:
            return Reply(dw0=feature.default)
        match fid:
            case FeatureId.KEEP_ALIVE_TIMER:
                return Reply(dw0=self.kato_ms)
            case FeatureId.VOLATILE_WRITE_CACHE:
                return Reply(dw0=int(controller.write_cache))
        return Reply(dw0=self._value(fid, command.nsid if feature.namespace_specific else 0))

    def _value(self, fid: int, key: int = 0) -> int:
        return self._values.get((fid, key), FEATURES[fid].default)

    def _temperature(self, command: Command, *, current: bool) -> int:
        _check_temperature(command)
        _, sensor, kind = TEMPERATURE_THRESHOLD.decode(command.cdw11)
        if sensor == TEMPERATURE_ALL:
            raise invalid_field(CDW11 + 2)
        default = 0xFFFF if kind == TEMPERATURE_OVER else 0
        value = self._values.get((FeatureId.TEMPERATURE_THRESHOLD, kind), default) if current else default
        return TEMPERATURE_THRESHOLD.encode(TemperatureThreshold(value, sensor, kind))

    def _timestamp_now(self) -> bytes:
        elapsed_ms = int((self._clock() - self._timestamp_set_at) * 1000)
        now = (self._timestamp.milliseconds + elapsed_ms) & (1 << 48) - 1
        return self._timestamp._replace(milliseconds=now).encode()

    # --- Set Features -------------------------------------------------------------------------------------------------

    def check_set(self, controller: Controller, command: Command) -> int:
        """Bytes that a Set Features command brings. Raises CommandError for one that is refused whatever it brings."""
        fid = command.cdw10 & 0xFF
        feature = _find(controller, fid)
        if command.cdw10 & SET_FEATURES_SAVE:
            raise CommandError(Status.FEATURE_NOT_SAVEABLE | DNR, location=CDW10 + 3 | 7 << 8)
        if feature.namespace_specific:
            if command.nsid != NSID_ALL:
                _check_nsid(controller, command.nsid)
        elif command.nsid not in (0, NSID_ALL):
            if command.nsid > NAMESPACES_MAX:
                raise invalid_namespace()
            raise CommandError(Status.FEATURE_NOT_NAMESPACE_SPECIFIC | DNR, location=NSID)
        if fid == FeatureId.HOST_IDENTIFIER:
            # Section 5.27.1.25.2: over fabrics Connect has set it.
            raise CommandError(Status.COMMAND_SEQUENCE_ERROR | DNR)
        if feature.check is not None:
            feature.check(command)
        return feature.data_bytes

    def set(self, admin: AdminQueue, command: Command, data: bytes) -> Reply | None:
        """Execute a Set Features command that ``check_set`` let pass. None: it completes later."""
        fid = command.cdw10 & 0xFF
        feature = FEATURES[fid]
        match fid:
            case FeatureId.NUMBER_OF_QUEUES:
                return Reply(dw0=self._set_queues(admin.controller, command))
            case FeatureId.VOLATILE_WRITE_CACHE:
                return _set_write_cache(admin, command)
            case FeatureId.ASYNC_EVENT_CONFIGURATION:
                self._set_events(admin.controller, command)
            case FeatureId.KEEP_ALIVE_TIMER:
                if not 0 < command.cdw11 <= KEEP_ALIVE_MS_MAX:
                    raise CommandError(Status.KEEP_ALIVE_TIMEOUT_INVALID | DNR, location=CDW11)
                self.kato_ms = round_keep_alive(command.cdw11)
            case FeatureId.TIMESTAMP:
                self._timestamp = Timestamp(Timestamp.decode(data).milliseconds, origin=TimestampOrigin.SET_FEATURES)
                self._timestamp_set_at = self._clock()
            case FeatureId.HOST_BEHAVIOR_SUPPORT:
                self._set_host_behavior(data)
            case FeatureId.TEMPERATURE_THRESHOLD:
                threshold, _, kind = TEMPERATURE_THRESHOLD.decode(command.cdw11)
                self._values[fid, kind] = threshold
            case FeatureId.ERROR_RECOVERY:
                every = admin.controller.subsystem.namespaces
                for nsid in every if command.nsid == NSID_ALL else (command.nsid,):
                    self._values[fid, nsid] = command.cdw11 & feature.mask
            case _:
                self._values[fid, 0] = command.cdw11 & feature.mask
        return Reply()

    def _set_queues(self, controller: Controller, command: Command) -> int:
        """Section 5.27.1.5."""
        wanted = NUMBER_OF_QUEUES.decode(command.cdw11)
        if QUEUES_RESERVED in wanted:
            raise invalid_field(CDW11 if wanted.submission == QUEUES_RESERVED else CDW11 + 2)
        if controller.queues:
            raise CommandError(Status.COMMAND_SEQUENCE_ERROR | DNR)
        granted = NumberOfQueues(*(min(number, IO_QUEUES_MAX - 1) for number in wanted))
        value = self._values[FeatureId.NUMBER_OF_QUEUES, 0] = NUMBER_OF_QUEUES.encode(granted)
        return value

    def _set_events(self, controller: Controller, command: Command) -> None:
        if command.cdw11 & ~_events_supported(controller):
            raise invalid_field(CDW11)
        self.async_events = command.cdw11
        if controller.changed_namespaces:
            controller.events.namespace_changed()

    def _set_host_behavior(self, data: bytes) -> None:
        """Every field is 0 or 1 (section 5.27.1.18). None of the behaviours occurs here, so the value is only kept."""
        value = HOST_BEHAVIOR.decode(data)
        if max(value[:3]) > 1:
            raise invalid_field(CDW11)
        self._host_behavior = HostBehavior(*value[:3])


def _find(controller: Controller, fid: int) -> Feature:
    feature = FEATURES.get(fid)
    if feature is None or (controller.is_discovery and not feature.on_discovery):
        raise invalid_field(CDW10)
    return feature


def _check_nsid(controller: Controller, nsid: int) -> None:
    """The one namespace of a namespace-specific feature must be there."""
    if not 1 <= nsid <= NAMESPACES_MAX:
        raise invalid_namespace()
    if nsid not in controller.subsystem.namespaces:
        raise invalid_field(NSID)


def _events_supported(controller: Controller) -> int:
    return DISCOVERY_EVENTS if controller.is_discovery else IO_EVENTS


def _set_write_cache(admin: AdminQueue, command: Command) -> Reply | None:
    """Switched off, it completes when every write that was acknowledged before is on media (section 5.27.1.6)."""
    controller = admin.controller
    if command.cdw11 & 1:
        controller.write_cache = True
        return Reply()
    admin.start(command, _disable_write_cache(controller))
    return None


async def _disable_write_cache(controller: Controller) -> Reply:
    """Writes from now on are synced; those at a volume may not be, and are waited for. Raises WriteFault."""
    was_on, controller.write_cache = controller.write_cache, False
    try:
        under_way = [task for queue in controller.queues.values() for task in queue.tasks.values()]
        if under_way:
            await asyncio.wait(under_way)
        volumes = [namespace.volume for namespace in controller.subsystem.namespaces.values()]
        for result in await asyncio.gather(*(volume.flush() for volume in volumes), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
    except BaseException:
        controller.write_cache = was_on
        raise
    return Reply()
