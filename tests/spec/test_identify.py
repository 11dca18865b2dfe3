"""Identify Controller: NVMe Base 2.0 figures 275 and 276, NVM Command Set 1.0 figure 102."""

from __future__ import annotations

from nvmeof.spec.fabrics import VS, Version, encode_nqn
from nvmeof.spec.fields import ascii_field, u128
from nvmeof.spec.identify import (
    CQES_16,
    IDENTIFY_CONTROLLER,
    NVM_IDENTIFY_CONTROLLER,
    POWER_STATE,
    SQES_64,
    AsyncEventBit,
    ControllerAttribute,
    ControllerType,
    DiscoveryControllerType,
    FirmwareUpdates,
    IdentifyController,
    LogPageAttribute,
    MultipathCapability,
    NvmIdentifyController,
    OptionalAdminCommand,
    OptionalNvmCommand,
    PowerState,
    SglSupport,
    WriteCache,
)

from .images import assert_same_offsets, image

CONTROLLER = IdentifyController(
    vid=0x1D1D,
    ssvid=0x1234,
    sn=ascii_field("0123456789", 20),
    mn=ascii_field("nvmeof", 40),
    fr=ascii_field("0.1.0", 8),
    rab=6,
    ieee=bytes.fromhex("563412"),
    cmic=MultipathCapability.SEVERAL_CONTROLLERS,
    mdts=8,
    cntlid=0x0102,
    ver=VS.encode(Version(major=2, minor=0)),
    rtd3e=1000,
    oaes=AsyncEventBit.NAMESPACE_ATTRIBUTE,
    ctratt=ControllerAttribute.HOST_ID_128 | ControllerAttribute.TRAFFIC_BASED_KEEP_ALIVE,
    cntrltype=ControllerType.IO,
    crdt1=10,
    oacs=OptionalAdminCommand.LOCKDOWN,
    acl=3,
    aerl=7,
    frmw=FirmwareUpdates.SLOT_1_READ_ONLY | 1 << 1,
    lpa=LogPageAttribute.EXTENDED_DATA | LogPageAttribute.COMMANDS_SUPPORTED_AND_EFFECTS,
    elpe=63,
    wctemp=343,
    cctemp=353,
    tnvmcap=u128(1 << 40),
    kas=10,
    maxcmd=128,
    nn=1024,
    oncs=OptionalNvmCommand.DATASET_MANAGEMENT | OptionalNvmCommand.WRITE_ZEROES | OptionalNvmCommand.TIMESTAMP,
    vwc=WriteCache.PRESENT | WriteCache.FLUSH_ALL_SUPPORTED,
    sgls=SglSupport.SUPPORTED | SglSupport.OFFSET_ADDRESS,
    mnan=1024,
    subnqn=encode_nqn("nqn.2024-01.io.example:disk"),
    ioccsz=516,
    iorcsz=1,
    msdbd=1,
    ofcs=1,
    dctype=DiscoveryControllerType.NOT_REPORTED,
    psd0=POWER_STATE.encode(PowerState(mp=2500)),
)
WIRE = image(
    4096,
    {
        0: "1d 1d 34 12",
        4: b"0123456789".ljust(20).hex(),
        24: b"nvmeof".ljust(40).hex(),
        64: b"0.1.0".ljust(8).hex(),
        72: "06 56 34 12 02 08 02 01",
        80: "00 00 02 00",
        88: "e8 03 00 00",
        92: "00 01 00 00",
        96: "41 00 00 00",
        111: "01",
        128: "0a 00",
        256: "00 04 03 07 03 06 3f",
        266: "57 01 61 01",
        285: "01",
        320: "0a 00",
        512: "66 44 80 00",
        516: "00 04 00 00",
        520: "4c 00",
        525: "07",
        536: "01 00 10 00",
        540: "00 04 00 00",
        768: b"nqn.2024-01.io.example:disk".hex(),
        1792: "04 02 00 00",
        1796: "01 00 00 00",
        1803: "01 01 00",
        2048: "c4 09",
    },
)


def test_controller() -> None:
    assert IDENTIFY_CONTROLLER.encode(CONTROLLER) == WIRE
    assert IDENTIFY_CONTROLLER.decode(WIRE) == CONTROLLER


def test_controller_offsets_agree_with_libnvme() -> None:
    """struct nvme_id_ctrl of libnvme 1.0, field by field in its order."""
    fields = (
        "vid:2 ssvid:2 sn:20 mn:40 fr:8 rab:1 ieee:3 cmic:1 mdts:1 cntlid:2 ver:4 rtd3r:4 rtd3e:4 oaes:4 ctratt:4 "
        "rrls:2 -:9 cntrltype:1 fguid:16 crdt1:2 crdt2:2 crdt3:2 -:119 nvmsr:1 vwci:1 mec:1 oacs:2 acl:1 aerl:1 frmw:1 "
        "lpa:1 elpe:1 npss:1 avscc:1 apsta:1 wctemp:2 cctemp:2 mtfa:2 hmpre:4 hmmin:4 tnvmcap:16 unvmcap:16 rpmbs:4 "
        "edstt:2 dsto:1 fwug:1 kas:2 hctma:2 mntmt:2 mxtmt:2 sanicap:4 hmminds:4 hmmaxd:2 nsetidmax:2 endgidmax:2 "
        "anatt:1 anacap:1 anagrpmax:4 nanagrpid:4 pels:4 domainid:2 -:10 megcap:16 -:128 sqes:1 cqes:1 maxcmd:2 nn:4 "
        "oncs:2 fuses:2 fna:1 vwc:1 awun:2 awupf:2 icsvscc:1 nwpc:1 acwu:2 cdfs:2 sgls:4 mnan:4 maxdna:16 maxcna:4 "
        "-:204 subnqn:256 -:768 ioccsz:4 iorcsz:4 icdoff:2 fcatt:1 msdbd:1 ofcs:2 dctype:1 -:241 psd0:32 psd_rest:992 "
        "vendor:1024"
    )
    assert_same_offsets(IDENTIFY_CONTROLLER.offsets, 4096, fields)


def test_controller_offsets_that_linux_reads() -> None:
    expected = {
        "cmic": 76,
        "mdts": 77,
        "cntlid": 78,
        "ver": 80,
        "oaes": 92,
        "ctratt": 96,
        "cntrltype": 111,
        "oacs": 256,
        "aerl": 259,
        "lpa": 261,
        "kas": 320,
        "anatt": 342,
        "sqes": 512,
        "maxcmd": 514,
        "nn": 516,
        "oncs": 520,
        "vwc": 525,
        "sgls": 536,
        "mnan": 540,
        "subnqn": 768,
        "ioccsz": 1792,
        "iorcsz": 1796,
        "icdoff": 1800,
        "fcatt": 1802,
        "msdbd": 1803,
        "dctype": 1806,
    }
    assert expected.items() <= IDENTIFY_CONTROLLER.offsets.items()


def test_default_controller_has_blank_names_and_the_required_entry_sizes() -> None:
    wire = IDENTIFY_CONTROLLER.encode(IdentifyController())
    assert wire == image(4096, {4: "20" * 68, 512: "66 44"})
    assert 1 << (SQES_64 & 15) == 64
    assert 1 << (CQES_16 & 15) == 16


def test_power_state() -> None:
    wire = bytes.fromhex("c4 09 00 02  0a 00 00 00  14 00 00 00  01 02 03 04  64 00 40 00  2c 01 81") + bytes(9)
    value = PowerState(
        mp=2500, flags=2, enlat=10, exlat=20, rrt=1, rrl=2, rwt=3, rwl=4, idlp=100, ips=0x40, actp=300, apw=0x81
    )
    assert POWER_STATE.encode(value) == wire
    assert POWER_STATE.decode(wire) == value
    assert_same_offsets(
        POWER_STATE.offsets,
        32,
        "mp:2 -:1 flags:1 enlat:4 exlat:4 rrt:1 rrl:1 rwt:1 rwl:1 idlp:2 ips:1 -:1 actp:2 apw:1 -:9",
    )


def test_nvm_command_set_controller() -> None:
    wire = image(4096, {0: "01 02 03 ff", 4: "00 00 10 00", 8: "00 00 00 00 01"})
    value = NvmIdentifyController(vsl=1, wzsl=2, wusl=3, dmrl=255, dmrsl=1 << 20, dmsl=1 << 32)
    assert NVM_IDENTIFY_CONTROLLER.encode(value) == wire
    assert NVM_IDENTIFY_CONTROLLER.decode(wire) == value
    assert_same_offsets(NVM_IDENTIFY_CONTROLLER.offsets, 4096, "vsl:1 wzsl:1 wusl:1 dmrl:1 dmrsl:4 dmsl:8 -:4080")


def test_capability_bits_agree_with_libnvme() -> None:
    assert {bit.name: int(bit).bit_length() - 1 for bit in OptionalNvmCommand} == {
        "COMPARE": 0,
        "WRITE_UNCORRECTABLE": 1,
        "DATASET_MANAGEMENT": 2,
        "WRITE_ZEROES": 3,
        "SAVE_AND_SELECT": 4,
        "RESERVATIONS": 5,
        "TIMESTAMP": 6,
        "VERIFY": 7,
        "COPY": 8,
    }
    assert {bit.name: int(bit).bit_length() - 1 for bit in AsyncEventBit} == {
        "NAMESPACE_ATTRIBUTE": 8,
        "FIRMWARE_ACTIVATION": 9,
        "TELEMETRY_LOG": 10,
        "ANA_CHANGE": 11,
        "PREDICTABLE_LATENCY": 12,
        "LBA_STATUS": 13,
        "ENDURANCE_GROUP": 14,
        "SUBSYSTEM_SHUTDOWN": 15,
        "ZONE_DESCRIPTOR": 27,
        "DISCOVERY_LOG": 31,
    }
    assert (int(SglSupport.OFFSET_ADDRESS), int(SglSupport.TRANSPORT_DATA_BLOCK)) == (1 << 20, 1 << 21)
    assert int(ControllerAttribute.TRAFFIC_BASED_KEEP_ALIVE) == 1 << 6
