"""Identify (NVMe Base 2.0, section 5.17; NVM Command Set 1.0, section 4.1.5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nvmeof.limits import (
    ASYNC_EVENT_REQUESTS_MAX,
    ERROR_LOG_ENTRIES,
    IN_CAPSULE_BYTES,
    KEEP_ALIVE_GRANULARITY_MS,
    MDTS_BYTES,
    NAMESPACES_MAX,
    QUEUE_ENTRIES_MAX,
    VERIFY_BYTES_MAX,
)
from nvmeof.spec.command import CQE_SIZE, NSID_ALL, SQE_SIZE, Cns, CommandSet, IdentifyDwords
from nvmeof.spec.fabrics import VS, encode_nqn
from nvmeof.spec.fields import ascii_field, u128
from nvmeof.spec.identify import (
    IDENTIFY_CONTROLLER,
    IDENTIFY_SIZE,
    NVM_IDENTIFY_CONTROLLER,
    OFCS_DISCONNECT,
    AsyncEventBit,
    ControllerAttribute,
    ControllerType,
    DiscoveryControllerType,
    FirmwareUpdates,
    IdentifyController,
    LogPageAttribute,
    MultipathCapability,
    NvmIdentifyController,
    OptionalNvmCommand,
    SglSupport,
    WriteCache,
)
from nvmeof.spec.identify_lists import (
    CONTROLLER_LIST_MAX,
    NAMESPACE_LIST_MAX,
    NamespaceIdentifiers,
    encode_command_set_combinations,
    encode_controller_list,
    encode_namespace_list,
)
from nvmeof.spec.identify_namespace import (
    IDENTIFY_NAMESPACE,
    INDEPENDENT_NAMESPACE,
    NMIC_SHARED,
    NSATTR_WRITE_PROTECTED,
    DeallocateFeature,
    IdentifyNamespace,
    IndependentNamespace,
    LbaFormat,
    NamespaceFeature,
    encode_lba_formats,
)
from nvmeof.target.command import Command, Reply
from nvmeof.target.controller import VERSION
from nvmeof.target.locations import CDW10, CDW11, invalid_field, invalid_namespace
from nvmeof.target.logs import firmware_revision

if TYPE_CHECKING:
    from nvmeof.target.controller import Controller
    from nvmeof.target.subsystem import Namespace

PAGE_SHIFT = 12
"""CAP.MPSMIN is 0: the unit of MDTS and WZSL is 4 KiB."""

WRITE_ZEROES_PAGES_SHIFT = 13
"""WZSL: 2**16 blocks of 512 bytes, all that NLB can name. Linux does not look at the block size: told of more, it cuts
the number of blocks to 16 bits and takes the rest for zeroed."""

GRANULE_BYTES = 4096
"""Below this a write costs a read of the backing store's block, and no space can be given back."""

ABORTS_AT_ONCE = 4
KEEP_ALIVE_UNIT_MS = 100
CAPSULE_UNIT = 16
NSID_LIST_END = 0xFFFF_FFFE
COMMAND_SET_VECTOR = 1 << CommandSet.NVM
ZEROES = bytes(IDENTIFY_SIZE)


def identify(controller: Controller, command: Command) -> Reply:
    """Execute Identify. Raises CommandError."""
    dwords = IdentifyDwords.decode(command.cdw10, command.cdw11, command.cdw14)
    structure = (_DISCOVERY_STRUCTURES if controller.is_discovery else _STRUCTURES).get(dwords.cns)
    if structure is None:
        raise invalid_field(CDW10)
    return Reply(data=structure(controller, command.nsid, dwords))


# --- controllers ------------------------------------------------------------------------------------------------------


def _controller(controller: Controller, nsid: int, dwords: IdentifyDwords) -> bytes:
    """CNS 01h, figure 275: the fields of every controller; those that only one kind has are added."""
    subsystem = controller.subsystem
    common = IdentifyController(
        sn=ascii_field(subsystem.serial, 20),
        mn=ascii_field(subsystem.model, 40),
        fr=ascii_field(firmware_revision(), 8),
        mdts=MDTS_BYTES.bit_length() - 1 - PAGE_SHIFT,
        cntlid=controller.cntlid,
        ver=VS.encode(VERSION),
        ctratt=ControllerAttribute.HOST_ID_128 | ControllerAttribute.TRAFFIC_BASED_KEEP_ALIVE,
        acl=ABORTS_AT_ONCE - 1,
        aerl=ASYNC_EVENT_REQUESTS_MAX - 1,
        lpa=LogPageAttribute.COMMANDS_SUPPORTED_AND_EFFECTS
        | LogPageAttribute.EXTENDED_DATA
        | LogPageAttribute.SUPPORTED_PAGES,
        elpe=ERROR_LOG_ENTRIES - 1,
        kas=KEEP_ALIVE_GRANULARITY_MS // KEEP_ALIVE_UNIT_MS,
        maxcmd=QUEUE_ENTRIES_MAX,
        sgls=SglSupport.SUPPORTED | SglSupport.OFFSET_ADDRESS | SglSupport.TRANSPORT_DATA_BLOCK,
        subnqn=encode_nqn(subsystem.nqn),
    )
    fields = _discovery_fields(common) if controller.is_discovery else _io_fields(common)
    return IDENTIFY_CONTROLLER.encode(fields)


def _discovery_fields(common: IdentifyController) -> IdentifyController:
    return common._replace(
        oaes=AsyncEventBit.DISCOVERY_LOG,
        cntrltype=ControllerType.DISCOVERY,
        dctype=DiscoveryControllerType.DIRECT,
        sqes=0,
        cqes=0,
    )


def _io_fields(common: IdentifyController) -> IdentifyController:
    return common._replace(
        rab=6,
        cmic=MultipathCapability.SEVERAL_PORTS | MultipathCapability.SEVERAL_CONTROLLERS,
        oaes=AsyncEventBit.NAMESPACE_ATTRIBUTE,
        cntrltype=ControllerType.IO,
        frmw=FirmwareUpdates.SLOT_1_READ_ONLY | 1 << 1,
        nn=NAMESPACES_MAX,
        oncs=OptionalNvmCommand.DATASET_MANAGEMENT
        | OptionalNvmCommand.WRITE_ZEROES
        | OptionalNvmCommand.SAVE_AND_SELECT
        | OptionalNvmCommand.VERIFY
        | OptionalNvmCommand.WRITE_UNCORRECTABLE
        | OptionalNvmCommand.TIMESTAMP,
        vwc=WriteCache.PRESENT | WriteCache.FLUSH_ALL_SUPPORTED,
        ioccsz=(SQE_SIZE + IN_CAPSULE_BYTES) // CAPSULE_UNIT,
        iorcsz=CQE_SIZE // CAPSULE_UNIT,
        msdbd=1,
        ofcs=OFCS_DISCONNECT,
    )


def _csi_controller(controller: Controller, nsid: int, dwords: IdentifyDwords) -> bytes:
    """CNS 06h. Dataset Management and Write Uncorrectable have no limits beyond those of the command itself."""
    _check_csi(dwords)
    limits = NvmIdentifyController(vsl=VERIFY_BYTES_MAX.bit_length() - 1 - PAGE_SHIFT, wzsl=WRITE_ZEROES_PAGES_SHIFT)
    return NVM_IDENTIFY_CONTROLLER.encode(limits)


def _namespace_controllers(controller: Controller, nsid: int, dwords: IdentifyDwords) -> bytes:
    """CNS 12h: every controller has every namespace attached."""
    if nsid == NSID_ALL:
        raise invalid_field(CDW10)
    attached = _find(controller, nsid) is not None
    return _controllers(controller, nsid, dwords) if attached else encode_controller_list(())


def _controllers(controller: Controller, nsid: int, dwords: IdentifyDwords) -> bytes:
    """CNS 13h: controller identifiers from CNTID on."""
    cntlids = sorted(cntlid for cntlid in controller.subsystem.controllers if cntlid >= dwords.cntid)
    return encode_controller_list(cntlids[:CONTROLLER_LIST_MAX])


def _command_sets(controller: Controller, nsid: int, dwords: IdentifyDwords) -> bytes:
    """CNS 1Ch: whichever controller CNTID names, they all have the NVM Command Set and no other."""
    return encode_command_set_combinations([COMMAND_SET_VECTOR])


# --- namespaces -------------------------------------------------------------------------------------------------------


def _namespace(controller: Controller, nsid: int, dwords: IdentifyDwords) -> bytes:
    """CNS 00h and 11h. FFFFFFFFh is for controllers that can make namespaces; an inactive one is all zeroes."""
    namespace = _find(controller, nsid)
    return ZEROES if namespace is None else IDENTIFY_NAMESPACE.encode(_namespace_fields(namespace))


def _namespace_fields(namespace: Namespace) -> IdentifyNamespace:
    volume = namespace.volume
    granule = max(1, GRANULE_BYTES >> namespace.block_shift) - 1
    return IdentifyNamespace(
        nsze=namespace.block_count,
        ncap=namespace.block_count,
        nuse=min(namespace.block_count, -(-volume.allocated >> namespace.block_shift)),
        nsfeat=NamespaceFeature.THIN_PROVISIONING | NamespaceFeature.OPTIMAL_IO,
        nmic=NMIC_SHARED,
        dlfeat=DeallocateFeature.READS_ZEROES | DeallocateFeature.WRITE_ZEROES_DEALLOCATES,
        nvmcap=u128(namespace.size),
        npwg=granule,
        npwa=granule,
        npdg=granule,
        npda=granule,
        nows=granule,
        nsattr=_attributes(namespace),
        nguid=namespace.nguid,
        eui64=namespace.eui64,
        lbaf=encode_lba_formats([LbaFormat(lbads=namespace.block_shift)]),
    )


def _attributes(namespace: Namespace) -> int:
    """NSATTR: a volume that refuses writes after a failed sync says so, and Linux then makes the disk read-only."""
    return NSATTR_WRITE_PROTECTED if namespace.volume.health.read_only else 0


def _independent_namespace(controller: Controller, nsid: int, dwords: IdentifyDwords) -> bytes:
    """CNS 08h."""
    namespace = _find(controller, nsid)
    if namespace is None:
        return ZEROES
    return INDEPENDENT_NAMESPACE.encode(IndependentNamespace(nmic=NMIC_SHARED, nsattr=_attributes(namespace)))


def _csi_namespace(controller: Controller, nsid: int, dwords: IdentifyDwords) -> bytes:
    """CNS 05h: no protection information and no storage tags, so all of it is zero."""
    _find(controller, nsid)
    _check_csi(dwords)
    return ZEROES


def _descriptors(controller: Controller, nsid: int, dwords: IdentifyDwords) -> bytes:
    """CNS 03h: only an active namespace has identifiers."""
    namespace = _find(controller, nsid)
    if namespace is None:
        raise invalid_namespace()
    return NamespaceIdentifiers(
        eui64=namespace.eui64, nguid=namespace.nguid, uuid=namespace.volume.uuid.bytes, csi=CommandSet.NVM
    ).encode()


def _namespaces(controller: Controller, nsid: int, dwords: IdentifyDwords) -> bytes:
    """CNS 02h and 10h: NSIDs above the given one."""
    if nsid >= NSID_LIST_END:
        raise invalid_namespace()
    nsids = sorted(each for each in controller.subsystem.namespaces if each > nsid)
    return encode_namespace_list(nsids[:NAMESPACE_LIST_MAX])


def _csi_namespaces(controller: Controller, nsid: int, dwords: IdentifyDwords) -> bytes:
    """CNS 07h and 1Ah."""
    _check_csi(dwords)
    return _namespaces(controller, nsid, dwords)


def _find(controller: Controller, nsid: int) -> Namespace | None:
    """The namespace, None when it is inactive. Raises CommandError for an NSID that can never be one."""
    if not 1 <= nsid <= NAMESPACES_MAX:
        raise invalid_namespace()
    return controller.subsystem.namespaces.get(nsid)


def _check_csi(dwords: IdentifyDwords) -> None:
    if dwords.csi != CommandSet.NVM:
        raise invalid_field(CDW11 + 3)


_STRUCTURES: dict[int, Callable[[Controller, int, IdentifyDwords], bytes]] = {
    Cns.NAMESPACE: _namespace,
    Cns.CONTROLLER: _controller,
    Cns.ACTIVE_NAMESPACES: _namespaces,
    Cns.NAMESPACE_DESCRIPTORS: _descriptors,
    Cns.CSI_NAMESPACE: _csi_namespace,
    Cns.CSI_CONTROLLER: _csi_controller,
    Cns.CSI_ACTIVE_NAMESPACES: _csi_namespaces,
    Cns.INDEPENDENT_NAMESPACE: _independent_namespace,
    Cns.ALLOCATED_NAMESPACES: _namespaces,
    Cns.ALLOCATED_NAMESPACE: _namespace,
    Cns.NAMESPACE_CONTROLLERS: _namespace_controllers,
    Cns.CONTROLLERS: _controllers,
    Cns.CSI_ALLOCATED_NAMESPACES: _csi_namespaces,
    Cns.CSI_ALLOCATED_NAMESPACE: _csi_namespace,
    Cns.IO_COMMAND_SETS: _command_sets,
}
_DISCOVERY_STRUCTURES: dict[int, Callable[[Controller, int, IdentifyDwords], bytes]] = {Cns.CONTROLLER: _controller}
