"""``nvmeof inspect``: what is on the members of a pool, read and never written."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from nvmeof.cli.inspect_blocks import Members, block_lines, block_record, read_only, segment_record
from nvmeof.cli.inspect_disk import OverlayDisk
from nvmeof.cli.nvme_session import Subparsers
from nvmeof.cli.pool_directory import PoolDirectory
from nvmeof.cli.pool_keys import add_key_options, key_of
from nvmeof.cli.text import size_text, table
from nvmeof.engine.layout import (
    EPOCH_SHIFT,
    NONE32,
    PAGE,
    RING_OFFSET,
    RING_SLOTS,
    ROLE_SPARE,
    Label,
    LabelFlag,
    MemberState,
    Superblock,
    decode_label,
    decode_superblock,
    label_version,
)

if TYPE_CHECKING:
    from nvmeof.engine.pool import Pool

DESCRIPTION = """\
Show what lies on the members of a pool: labels, superblocks, segments, and where one block is and whether its strips
are good. Nothing is written: to find segments and blocks the pool is opened as always, but on a picture in memory that
takes the writes. Labels and superblocks can be shown while the pool is served.
"""
EPILOG = """\
examples:
  nvmeof inspect pool
  nvmeof inspect pool --superblocks
  nvmeof inspect pool --block 1:2048 --key-file pool.key
exit codes: 0 done, 1 a strip, or the record of the block, is bad, 10 no such pool, 64 wrong usage
"""
ENDS = ("head", "tail")
_BLOCK = re.compile(r"([0-9]{1,9}):([0-9]{1,19})")

Record: TypeAlias = dict[str, Any]


class Place(NamedTuple):
    """A logical block of a namespace."""

    nsid: int
    block: int


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "inspect",
        help="show what lies on the members of a pool",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("directory", metavar="DIR", type=Path, help="of the pool")
    add("--superblocks", action="store_true", help="every slot of both rings of every member")
    add("--segments", action="store_true", help="every segment that is used")
    add("--block", metavar="NSID:LBA", type=_place, help="the whole path to one block: map, record, stripe, strips")
    add("--json", action="store_true", help="print one JSON object")
    add_key_options(parser)
    parser.set_defaults(run=run)


def _place(text: str) -> Place:
    match = _BLOCK.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted NSID:LBA, such as 1:0")
    return Place(int(match[1]), int(match[2]))


def run(args: argparse.Namespace) -> int:
    """Print what is asked for. 1 if something of it is bad."""
    with PoolDirectory.open(args.directory) as directory:
        disks = [OverlayDisk.open(path) for path in directory.need_members()]
        try:
            found: Record = {"directory": str(args.directory), "members": [_member(disk) for disk in disks]}
            if args.superblocks:
                found["superblocks"] = {str(disk.path): _rings(disk) for disk in disks}
            if args.segments or args.block is not None:
                directory.lock()
                asyncio.run(_look_inside(args, disks, found))
        finally:
            for disk in disks:
                disk.close()
    print(json.dumps(found, indent=2) if args.json else "\n".join(_lines(found)))
    return 0 if found.get("block", {}).get("good", True) else 1


# --- labels and superblocks -------------------------------------------------------------------------------------------


def _pages(disk: OverlayDisk, offset: int) -> list[bytes]:
    """The page at ``offset`` of the head area, and of the tail area."""
    return [disk.page(offset), disk.page(disk.tail + offset)]


def _member(disk: OverlayDisk) -> Record:
    pages = _pages(disk, 0)
    labels = [decode_label(page) for page in pages]
    record: Record = {"path": str(disk.path), "bytes": 0 if disk.problem else disk.size(), "problem": disk.problem}
    record["labels"] = [_label_state(label, page) for label, page in zip(labels, pages, strict=True)]
    label = next((each for each in labels if each is not None), None)
    return record | ({} if label is None else _label(label))


def _label_state(label: Label | None, page: bytes) -> str:
    if label is not None:
        return "good"
    version = label_version(page)
    if version is not None:
        return f"of format version {version}"
    return "bad" if any(page) else "blank"


def _label(label: Label) -> Record:
    geometry = label.geometry
    return {
        "pool": geometry.pool.hex(),
        "member": label.member.hex(),
        "role": "spare" if label.role == ROLE_SPARE else label.role,
        "data": geometry.data,
        "parity": geometry.parity,
        "encrypted": bool(geometry.flags & LabelFlag.ENCRYPTED),
        "sparse": bool(geometry.flags & LabelFlag.SPARSE),
        "segments": geometry.segments,
        "segment_bytes": geometry.segment_bytes,
        "strip_bytes_max": geometry.strip_bytes_max,
        "created": geometry.created,
    }


def _rings(disk: OverlayDisk) -> list[Record]:
    slots = []
    for slot in range(RING_SLOTS):
        for end, page in zip(ENDS, _pages(disk, RING_OFFSET + slot * PAGE), strict=True):
            superblock = decode_superblock(page)
            if superblock is not None:
                slots.append({"ring": end, "slot": slot, "state": "good", **_superblock(superblock)})
            else:
                slots.append({"ring": end, "slot": slot, "state": "bad" if any(page) else "empty"})
    return sorted(slots, key=lambda each: (ENDS.index(each["ring"]), each["slot"]))


def _superblock(superblock: Superblock) -> Record:
    record: Record = superblock._asdict()
    record |= {"pool": superblock.pool.hex(), "incarnation": superblock.incarnation.hex()}
    record["scrub_cursor"] = None if superblock.scrub_cursor == NONE32 else superblock.scrub_cursor
    record["members"] = [
        {
            "member": each.member.hex(),
            "state": MemberState(each.state).name.lower(),
            "cursor": each.cursor,
            "errors": each.errors,
        }
        for each in superblock.members
    ]
    return record


# --- what takes an open pool ------------------------------------------------------------------------------------------


async def _look_inside(args: argparse.Namespace, disks: list[OverlayDisk], found: Record) -> None:
    async with read_only(disks, key_of(args)) as pool:
        members = Members.of(pool)
        if args.segments:
            found["segments"] = [segment_record(pool, members, number) for number in _used(pool)]
        if args.block is not None:
            found["block"] = block_record(pool, members, *args.block)


def _used(pool: Pool) -> list[int]:
    """Segments in use, but for those that only the picture in memory has."""
    generations = enumerate(pool.segments.generation)
    return [number for number, generation in generations if generation and generation >> EPOCH_SHIFT != pool.epoch]


# --- for people -------------------------------------------------------------------------------------------------------


def _lines(found: Record) -> list[str]:
    lines = _member_lines(found["members"])
    for path, slots in found.get("superblocks", {}).items():
        lines += ["", path, *_ring_lines(slots)]
    if "segments" in found:
        lines += ["", *_segment_lines(found["segments"])]
    if "block" in found:
        lines += ["", *block_lines(found["block"])]
    return lines


def _member_lines(members: list[Record]) -> list[str]:
    lines = []
    first = next((each for each in members if "pool" in each), None)
    if first is not None:
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(first["created"]))
        kind = ", ".join(name for name in ("encrypted", "sparse") if first[name]) or "plain"
        lines += [
            f"pool {first['pool']}: {first['data']} data + {first['parity']} parity, {kind}, made {made}",
            f"{first['segments']} segments of {size_text(first['segment_bytes'])} on each member, "
            f"strips of {size_text(first['strip_bytes_max'])} at most",
            "",
        ]
    rows = [("FILE", "SIZE", "ROLE", "MEMBER", "LABELS", "")]
    for each in members:
        note = "of another pool" if first is not None and each.get("pool", first["pool"]) != first["pool"] else ""
        labels = "good" if set(each["labels"]) == {"good"} else ", ".join(each["labels"])
        role, member = str(each.get("role", "-")), each.get("member", "-")
        rows.append((each["path"], size_text(each["bytes"]), role, member, labels, each["problem"] or note))
    return lines + table(rows, right=(1, 2))


def _ring_lines(slots: list[Record]) -> list[str]:
    rows = [("RING", "SLOT", "STATE", "GENERATION", "EPOCH", "CLEAN", "ROOT", "LOG FROM", "AT", "MEMBERS")]
    for each in slots:
        if each["state"] != "good":
            rows.append((each["ring"], str(each["slot"]), each["state"], *[""] * 7))
            continue
        states = " ".join(member["state"] for member in each["members"])
        place = f"segment {each['segment']} page {each['page']}"
        numbers = (str(each["generation"]), str(each["epoch"]), "yes" if each["clean"] else "no")
        log = (f"{each['root']:#x}", f"{each['sequence']:#x}", place)
        rows.append((each["ring"], str(each["slot"]), "good", *numbers, *log, states))
    return table(rows, right=(1, 3, 4))


def _segment_lines(segments: list[Record]) -> list[str]:
    if not segments:
        return ["no segment is used"]
    rows: list[tuple[str, ...]] = [("SEGMENT", "GENERATION", "STRIPES", "PAGES", "LIVE BLOCKS", "BAD STRIPS")]
    for each in segments:
        numbers = (each["stripes"], each["pages"], each["live"], each["bad_strips"])
        rows.append((str(each["segment"]), f"{each['generation']:#x}", *map(str, numbers)))
    return table(rows, right=range(6))
