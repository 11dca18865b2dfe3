"""Identify Namespace: NVM Command Set 1.0 section 4.1.5, NVMe Base 2.0 figure 280."""

from __future__ import annotations

import pytest

from nvmeof.errors import LocalProtocolError
from nvmeof.spec.fields import u128
from nvmeof.spec.identify_namespace import (
    IDENTIFY_NAMESPACE,
    INDEPENDENT_NAMESPACE,
    LBA_FORMAT,
    NMIC_SHARED,
    NSTAT_READY,
    NVM_IDENTIFY_NAMESPACE,
    DeallocateFeature,
    IdentifyNamespace,
    IndependentNamespace,
    LbaFormat,
    NamespaceFeature,
    NvmIdentifyNamespace,
    encode_lba_formats,
    formatted_lba,
)

from .images import assert_same_offsets, image

FORMATS = encode_lba_formats([LbaFormat(lbads=9, rp=2), LbaFormat(lbads=12)])
NAMESPACE = IdentifyNamespace(
    nsze=0x1000,
    ncap=0x1000,
    nuse=0x10,
    nsfeat=NamespaceFeature.THIN_PROVISIONING | NamespaceFeature.OPTIMAL_IO,
    nlbaf=1,
    flbas=1,
    nmic=NMIC_SHARED,
    dlfeat=DeallocateFeature.READS_ZEROES | DeallocateFeature.WRITE_ZEROES_DEALLOCATES,
    noiob=256,
    nvmcap=u128(1 << 24),
    npwg=31,
    npda=7,
    mcl=1,
    anagrpid=1,
    nguid=bytes(range(0x10, 0x20)),
    eui64=bytes(range(0x20, 0x28)),
    lbaf=FORMATS,
)
WIRE = image(
    4096,
    {
        1: "10",
        9: "10",
        16: "10",
        24: "11 01 01",
        30: "01",
        33: "09",
        46: "00 01",
        51: "01",
        64: "1f 00",
        70: "07 00",
        76: "01",
        92: "01 00 00 00",
        104: "10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f",
        120: "20 21 22 23 24 25 26 27",
        128: "00 00 09 02  00 00 0c 00",
    },
)


def test_namespace() -> None:
    assert IDENTIFY_NAMESPACE.encode(NAMESPACE) == WIRE
    assert IDENTIFY_NAMESPACE.decode(WIRE) == NAMESPACE


def test_namespace_offsets_agree_with_libnvme() -> None:
    fields = (
        "nsze:8 ncap:8 nuse:8 nsfeat:1 nlbaf:1 flbas:1 mc:1 dpc:1 dps:1 nmic:1 rescap:1 fpi:1 dlfeat:1 nawun:2 "
        "nawupf:2 nacwu:2 nabsn:2 nabo:2 nabspf:2 noiob:2 nvmcap:16 npwg:2 npwa:2 npdg:2 npda:2 nows:2 mssrl:2 mcl:4 "
        "msrc:1 -:1 nulbaf:1 -:9 anagrpid:4 -:3 nsattr:1 nvmsetid:2 endgid:2 nguid:16 eui64:8 lbaf:256 vendor:3712"
    )
    assert_same_offsets(IDENTIFY_NAMESPACE.offsets, 4096, fields)


def test_formatted_block_size() -> None:
    assert formatted_lba(NAMESPACE) == LbaFormat(lbads=12)
    assert formatted_lba(NAMESPACE._replace(flbas=0)) == LbaFormat(lbads=9, rp=2)


def test_upper_format_bits_count_only_when_there_are_more_than_16_formats() -> None:
    assert formatted_lba(NAMESPACE._replace(flbas=0x61)) == LbaFormat(lbads=12)
    many = encode_lba_formats([LbaFormat(ms=index, lbads=9) for index in range(64)])
    assert formatted_lba(NAMESPACE._replace(nlbaf=63, flbas=0x75, lbaf=many)) == LbaFormat(ms=0x35, lbads=9)


@pytest.mark.parametrize(("nlbaf", "flbas", "index"), [(1, 2, 2), (0, 1, 1), (14, 0x1F, 15), (16, 0x21, 17)])
def test_a_format_that_is_not_listed(nlbaf: int, flbas: int, index: int) -> None:
    with pytest.raises(ValueError, match=f"selects format {index} of {nlbaf + 1}"):
        formatted_lba(NAMESPACE._replace(nlbaf=nlbaf, flbas=flbas))


def test_a_format_count_that_lies_stays_within_the_table() -> None:
    assert formatted_lba(NAMESPACE._replace(nlbaf=255, nulbaf=255, flbas=0x6F)) == LBA_FORMAT.decode(FORMATS, 4 * 63)


@pytest.mark.parametrize("count", [0, 65])
def test_too_few_or_too_many_formats(count: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"got {count}, wanted 1 to 64"):
        encode_lba_formats([LbaFormat()] * count)


def test_nvm_command_set_namespace() -> None:
    wire = image(4096, {0: "ff ff", 8: "01", 12: "40", 268: "20", 284: "10"})
    value = NvmIdentifyNamespace(lbstm=0xFFFF, pic=1, elbaf=b"\x40" + bytes(255), npdgl=32, npdal=16)
    assert NVM_IDENTIFY_NAMESPACE.encode(value) == wire
    assert NVM_IDENTIFY_NAMESPACE.decode(wire) == value
    assert_same_offsets(
        NVM_IDENTIFY_NAMESPACE.offsets,
        4096,
        "lbstm:8 pic:1 -:3 elbaf:256 npdgl:4 nprg:4 npra:4 nors:4 npdal:4 -:3808",
    )


def test_independent_namespace() -> None:
    wire = image(4096, {0: "10 01", 4: "01 00 00 00", 8: "01", 14: "01"})
    value = IndependentNamespace(nsfeat=0x10, nmic=1, anagrpid=1, nsattr=1, nstat=NSTAT_READY)
    assert INDEPENDENT_NAMESPACE.encode(value) == wire
    assert INDEPENDENT_NAMESPACE.decode(wire) == value
    fields = "nsfeat:1 nmic:1 rescap:1 fpi:1 anagrpid:4 nsattr:1 -:1 nvmsetid:2 endgid:2 nstat:1 -:4081"
    assert_same_offsets(INDEPENDENT_NAMESPACE.offsets, 4096, fields)
