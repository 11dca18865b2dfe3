"""A namespace: blocks by byte offset, split into commands as the controller wants them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, SupportsIndex

from nvmeof.errors import TransportError, UsageError
from nvmeof.initiator.dispatch import Command, Dispatcher
from nvmeof.limits import HOST_BLOCK_SIZE_MAX
from nvmeof.spec.command import (
    DATASET_RANGE,
    DATASET_RANGES_MAX,
    DEAC_BIT,
    FUA_BIT,
    NLB_MASK,
    NSID_ALL,
    Cns,
    CommandSet,
    DatasetAttribute,
    DatasetRange,
    IoOpcode,
)
from nvmeof.spec.identify_lists import NamespaceIdentifiers
from nvmeof.spec.identify_namespace import IDENTIFY_NAMESPACE, IdentifyNamespace, formatted_lba

if TYPE_CHECKING:
    from nvmeof.initiator.controller import Controller

BLOCKS_MAX = NLB_MASK + 1
PAGE_BYTES = 4096
"""CAP.MPSMIN is 0 or the controller is refused: the unit of WZSL, VSL and WUSL."""
RANGE_BLOCKS_MAX = 0xFFFF_FFFF
READ = int(IoOpcode.READ)
WRITE = int(IoOpcode.WRITE)
FLUSH = int(IoOpcode.FLUSH)
WRITE_ZEROES = int(IoOpcode.WRITE_ZEROES)
VERIFY = int(IoOpcode.VERIFY)
WRITE_UNCORRECTABLE = int(IoOpcode.WRITE_UNCORRECTABLE)
CONTEXT = "{} of {} bytes at {} of namespace {}"


class Namespace:
    """Offsets and lengths are bytes and multiples of ``block_size``. Made by ``nvmeof.open_namespace`` and controllers.

    Concurrency contract. Calls may overlap; where their blocks do, the order is not defined. A call that returned is
    seen by every call that begins afterwards; it is on media once a ``flush`` that began afterwards has returned, or
    when it was made with ``fua``. Buffers must not change while a call is in progress. One call becomes several
    commands when it is larger than one command may be; when it raises, some of its blocks may have been written.

    Every call raises UsageError (nothing was sent), StatusError (the controller refused), ConnectionLost (outcome
    unknown) or TransportError (there is no association; nothing was sent).
    """

    def __init__(
        self, controller: Controller, nsid: int, identity: IdentifyNamespace, names: NamespaceIdentifiers
    ) -> None:
        self.controller = controller
        self.nsid = nsid
        self.identity = identity
        self.command_set = CommandSet.NVM if names.csi is None else names.csi
        self.block_size = _block_size(nsid, identity)
        self.block_count = identity.nsze
        self.size = self.block_size * self.block_count
        self.uuid = uuid.UUID(bytes=names.uuid) if any(names.uuid) else None
        self.nguid = names.nguid or identity.nguid
        """16 bytes, all zero when the namespace has none."""
        self.eui64 = names.eui64 or identity.eui64
        """8 bytes, all zero when the namespace has none."""
        self._io: Dispatcher = controller.io
        self._blocks_max = min(BLOCKS_MAX, max(controller.transfer_bytes_max // self.block_size, 1))
        self._whole_max = 0 if identity.noiob else self._blocks_max
        """Up to so many blocks need not be split, wherever they lie."""

    @classmethod
    async def identify(cls, controller: Controller, nsid: int) -> Namespace:
        """Raises UsageError when no such namespace is active or its format holds metadata."""
        if not isinstance(nsid, SupportsIndex) or not 1 <= nsid < NSID_ALL:
            raise UsageError(f"namespace: got {nsid!r}, wanted 1 to {NSID_ALL - 1}")
        identity = IDENTIFY_NAMESPACE.decode(await controller.identify(Cns.NAMESPACE, nsid))
        if not identity.nsze:
            raise UsageError(f"namespace {nsid}: got a namespace that is not active, wanted one that is")
        names = NamespaceIdentifiers()
        if (controller.version.major, controller.version.minor) >= (1, 3):
            data = await controller.identify(Cns.NAMESPACE_DESCRIPTORS, nsid)
            try:
                names = NamespaceIdentifiers.decode(data)
            except ValueError as error:
                raise TransportError(f"namespace {nsid}: {error}") from error
        return cls(controller, nsid, identity, names)

    def __repr__(self) -> str:
        return f"<Namespace {self.nsid}: {self.block_count} blocks of {self.block_size} bytes>"

    async def read(self, offset: int, length: int) -> bytearray:
        """``length`` bytes from ``offset``."""
        self._blocks(offset, length)
        buffer = bytearray(length)
        await self.readinto(offset, buffer)
        return buffer

    async def readinto(self, offset: int, buffer: Any) -> int:
        """Fill a writable, contiguous buffer from ``offset``. Returns its length in bytes."""
        view = flat_view(buffer, "readinto")
        if view.readonly:
            raise UsageError("readinto: got a read-only buffer, wanted a writable one")
        length = len(view)
        blocks = self._blocks(offset, length)
        if blocks <= self._whole_max:
            if blocks:
                block = offset // self.block_size
                await self._io.start_one(
                    (READ, self.nsid, block & 0xFFFF_FFFF, block >> 32, blocks - 1, 0, 0, 0, None, view),
                    CONTEXT, "read", length, offset, self.nsid,
                )  # fmt: skip
        else:
            await self._io.start(self._pieces(READ, offset, view), CONTEXT, "read", length, offset, self.nsid)
        return length

    async def write(self, offset: int, data: Any, fua: bool = False) -> None:
        """Write a contiguous buffer at ``offset``. With ``fua`` it is on media when this returns."""
        view = flat_view(data, "write")
        length = len(view)
        blocks = self._blocks(offset, length)
        control = FUA_BIT if fua else 0
        if blocks <= self._whole_max:
            if blocks:
                block = offset // self.block_size
                await self._io.start_one(
                    (WRITE, self.nsid, block & 0xFFFF_FFFF, block >> 32, blocks - 1 | control, 0, 0, 0, view),
                    CONTEXT, "write", length, offset, self.nsid,
                )  # fmt: skip
        else:
            await self._io.start(
                self._pieces(WRITE, offset, view, control), CONTEXT, "write", length, offset, self.nsid
            )

    async def flush(self) -> None:
        """What was written to this namespace by calls that had returned before this one is on media when it returns."""
        await self._io.start_one((FLUSH, self.nsid), "flush of namespace {}", self.nsid)

    async def write_zeroes(self, offset: int, length: int, deallocate: bool = False, fua: bool = False) -> None:
        """Make blocks read as zeroes without sending any; ``deallocate`` allows the controller to free them."""
        control = (DEAC_BIT if deallocate else 0) | (FUA_BIT if fua else 0)
        commands = self._without_data(WRITE_ZEROES, offset, length, self.controller.nvm_limits.wzsl, control)
        await self._io.start(commands, CONTEXT, "write zeroes", length, offset, self.nsid)

    async def verify(self, offset: int, length: int, fua: bool = False) -> None:
        """Let the controller read and check blocks without sending them; with ``fua`` from media.

        Raises StatusError (Unrecovered Read Error) when some of them cannot be read.
        """
        commands = self._without_data(VERIFY, offset, length, self.controller.nvm_limits.vsl, FUA_BIT if fua else 0)
        await self._io.start(commands, CONTEXT, "verify", length, offset, self.nsid)

    async def write_uncorrectable(self, offset: int, length: int) -> None:
        """Let reads of these blocks fail with Unrecovered Read Error until they are written again."""
        commands = self._without_data(WRITE_UNCORRECTABLE, offset, length, self.controller.nvm_limits.wusl)
        await self._io.start(commands, CONTEXT, "write uncorrectable", length, offset, self.nsid)

    async def deallocate(self, offset: int, length: int) -> None:
        """Tell the controller that the contents of these blocks are no longer needed. A hint: it may do nothing."""
        self._blocks(offset, length)
        await self._io.start(self._deallocations(offset, length), CONTEXT, "deallocate", length, offset, self.nsid)

    # --- splitting ----------------------------------------------------------------------------------------------------

    def _blocks(self, offset: int, length: int) -> int:
        """``length`` in blocks. Raises UsageError for a range that is not whole blocks of this namespace."""
        size = self.block_size
        if offset < 0 or length < 0 or offset % size or length % size:
            raise UsageError(
                f"namespace {self.nsid}: got {length} bytes at {offset}, wanted multiples of the block size, {size}"
            )
        if offset + length > self.size:
            raise UsageError(
                f"namespace {self.nsid}: got {length} bytes at {offset}, wanted a range within {self.size} bytes"
            )
        return length // size

    def _pieces(self, opcode: int, offset: int, view: memoryview, control: int = 0) -> Iterator[Command]:
        """Commands no larger than MDTS that do not cross a multiple of NOIOB: NVM Command Set 1.0 section 5.8.2."""
        first, size = offset // self.block_size, self.block_size
        for block, blocks in steps(first, len(view) // size, self._blocks_max, self.identity.noiob):
            position = (block - first) * size
            part = view[position : position + blocks * size]
            command = Command(opcode, self.nsid, block & 0xFFFF_FFFF, block >> 32, blocks - 1 | control)
            yield command._replace(data_in=part) if opcode == READ else command._replace(data_out=part)

    def _without_data(self, opcode: int, offset: int, length: int, limit: int, control: int = 0) -> Iterator[Command]:
        """Commands of at most ``limit``, a power of two of pages; 0 is no limit but NLB's. Raises UsageError now."""
        count, blocks_max = self._blocks(offset, length), BLOCKS_MAX
        if limit:
            blocks_max = max(1, min(blocks_max, (PAGE_BYTES << min(limit, 32)) // self.block_size))
        return (
            Command(opcode, self.nsid, block & 0xFFFF_FFFF, block >> 32, blocks - 1 | control)
            for block, blocks in steps(offset // self.block_size, count, blocks_max, 0)
        )

    def _deallocations(self, offset: int, length: int) -> Iterator[Command]:
        """Dataset Management within DMRL, DMRSL and DMSL: NVM Command Set 1.0 section 3.2.3."""
        limits = self.controller.nvm_limits
        range_blocks = min(limits.dmrsl or RANGE_BLOCKS_MAX, limits.dmsl or RANGE_BLOCKS_MAX)
        ranges_max = min(limits.dmrl or DATASET_RANGES_MAX, DATASET_RANGES_MAX)
        ranges_max = max(1, min(ranges_max, (limits.dmsl or ranges_max * range_blocks) // range_blocks))
        block, end = offset // self.block_size, (offset + length) // self.block_size
        while block < end:
            ranges: list[bytes] = []
            while block < end and len(ranges) < ranges_max:
                blocks = min(range_blocks, end - block)
                ranges.append(DATASET_RANGE.encode(DatasetRange(0, blocks, block)))
                block += blocks
            yield Command(
                IoOpcode.DATASET_MANAGEMENT, self.nsid, len(ranges) - 1, DatasetAttribute.DEALLOCATE,
                data_out=memoryview(b"".join(ranges)),
            )  # fmt: skip


def steps(first: int, count: int, limit: int, boundary: int) -> Iterator[tuple[int, int]]:
    """(first block, blocks) of parts of at most ``limit`` blocks that cross no multiple of ``boundary`` (0: none)."""
    end = first + count
    while first < end:
        blocks = min(limit, end - first)
        if boundary:
            blocks = min(blocks, boundary - first % boundary)
        yield first, blocks
        first += blocks


def flat_view(buffer: Any, what: str) -> memoryview:
    """The bytes of a C-contiguous buffer without copying them. Raises UsageError."""
    try:
        view = memoryview(buffer)
    except TypeError as error:
        raise UsageError(f"{what}: got {type(buffer).__name__}, wanted a bytes-like object") from error
    if not view.c_contiguous:
        raise UsageError(f"{what}: got a buffer that is not contiguous, wanted one that is (in C order)")
    if not view.nbytes:
        return memoryview(b"") if view.readonly else memoryview(bytearray())
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def _block_size(nsid: int, identity: IdentifyNamespace) -> int:
    """Bytes of a logical block. Raises UsageError for formats with metadata, TransportError for nonsense."""
    try:
        lba_format = formatted_lba(identity)
    except ValueError as error:
        raise TransportError(f"namespace {nsid}: {error}") from error
    if lba_format.ms:
        raise UsageError(f"namespace {nsid}: got {lba_format.ms} bytes of metadata a block, wanted none")
    if not 512 <= 1 << lba_format.lbads <= HOST_BLOCK_SIZE_MAX:
        raise TransportError(f"namespace {nsid}: blocks of 2**{lba_format.lbads} bytes")
    return 1 << lba_format.lbads
