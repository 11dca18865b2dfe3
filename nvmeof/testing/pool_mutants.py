"""Members of a pool that somebody has changed: blindly, or with all checksums made right again. The seed decides."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import zstandard

from nvmeof.codec.checksum import xxh3_64
from nvmeof.engine.layout import (
    PAGE,
    UNIT,
    Kind,
    decode_record_header,
    encode_label,
    encode_record_header,
    encode_superblock,
)
from nvmeof.engine.parity import Parity
from nvmeof.testing.pool_images import Anatomy, StripeOnMedia, label_of, sealed_page, sealed_record, sealed_strip

Images = list[bytearray]
Mutation = Callable[[Images, Random], None]

_INTERESTING = (
    0,
    1,
    2,
    7,
    0x7F,
    0x80,
    0xFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    1 << 63,
    (1 << 64) - 1,
)


def put_number(page: bytearray, offset: int, random: Random) -> None:
    """A number of 1, 2, 4 or 8 bytes that is near a limit, or any."""
    width = random.choice((1, 2, 4, 8))
    value = random.choice(_INTERESTING) if random.random() < 0.7 else random.getrandbits(64)
    if random.random() < 0.2:
        value = int.from_bytes(page[offset : offset + width], "little") + random.choice((-1, 1))
    page[offset : offset + width] = (value % (1 << 8 * width)).to_bytes(width, "little")


# -- blind


def noise(images: Images, random: Random) -> None:
    """Random bytes anywhere on any member."""
    for _ in range(random.choice((1, 10, 300))):
        image = random.choice(images)
        at = random.randrange(len(image))
        image[at : at + 1] = random.randbytes(1)


def blots(images: Images, random: Random) -> None:
    """Pages of noise, zeros or other pages, more often where the metadata is."""
    for _ in range(random.choice((1, 5, 40))):
        image, other = random.choice(images), random.choice(images)
        pages = len(image) // PAGE
        near_ends = random.randrange(32) if random.random() < 0.5 else pages - 1 - random.randrange(32)
        page = random.choice((random.randrange(pages), near_ends)) * PAGE
        source = random.randrange(pages) * PAGE
        content = random.choice((random.randbytes(PAGE), bytes(PAGE), bytes(other[source : source + PAGE])))
        image[page : page + PAGE] = content


def truncated(images: Images, random: Random) -> None:
    """Members cut short or made longer."""
    for image in random.sample(images, random.randrange(1, len(images) + 1)):
        if random.random() < 0.7:
            del image[random.choice((0, 1, PAGE, random.randrange(len(image)), len(image) - 1)) :]
        else:
            image.extend(bytes(random.choice((1, PAGE, 1 << 20))))


def emptied(images: Images, random: Random) -> None:
    """Members of zeros or of noise."""
    for image in random.sample(images, random.randrange(1, len(images) + 1)):
        image[:] = bytes(len(image)) if random.random() < 0.5 else random.randbytes(len(image))


def swapped(images: Images, random: Random) -> None:
    """The same member twice, or in another order, or too many of them."""
    first, second = random.sample(range(len(images)), 2)
    choice = random.randrange(3)
    if choice == 0:
        images[first] = bytearray(images[second])
    elif choice == 1:
        images.append(bytearray(images[second]))
    else:
        random.shuffle(images)


# -- with right checksums


def forged_labels(images: Images, random: Random) -> None:
    """One number in the labels, of one member or of all."""
    anatomy = Anatomy(images)
    offset = random.randrange(8, 80)
    state = random.getstate()
    for image in images if random.random() < 0.5 else random.sample(images, 1):
        random.setstate(state)
        for area in anatomy.areas():
            page = image[area : area + PAGE]
            put_number(page, offset, random)
            image[area : area + PAGE] = sealed_page(page)


def forged_superblocks(images: Images, random: Random) -> None:
    """One or two numbers in the newest superblocks, of one member or of all."""
    anatomy = Anatomy(images)
    seed = random.getrandbits(64)
    members = range(len(images)) if random.random() < 0.7 else [random.randrange(len(images))]
    for member in members:
        newest = max(superblock.generation for _, superblock in anatomy.superblocks(member))
        for offset, superblock in list(anatomy.superblocks(member)):
            if superblock.generation == newest:
                same = Random(seed)
                page = images[member][offset : offset + PAGE]
                for _ in range(same.choice((1, 2))):
                    put_number(page, same.randrange(8, 128 + 32 * len(superblock.members)), same)
                images[member][offset : offset + PAGE] = sealed_page(page)


def forged_strips(images: Images, random: Random) -> None:
    """One number in the header of a strip, or of all strips of a stripe."""
    anatomy = Anatomy(images)
    stripe = random.choice(anatomy.stripes())
    seed = random.getrandbits(64)
    for strip in stripe.strips if random.random() < 0.7 else stripe.strips[:1]:
        same = Random(seed)
        image = images[strip.member]
        unit = image[strip.offset : strip.offset + UNIT] + bytes(8)
        put_number(unit, same.randrange(8, UNIT), same)
        image[strip.offset : strip.offset + UNIT] = sealed_unit(unit)


def sealed_unit(unit: bytearray) -> bytes:
    """A strip header whose checksum is right again."""
    body = bytes(unit[8:UNIT])
    return xxh3_64(body).to_bytes(8, "little") + body


def rewrite(images: Images, stripe: StripeOnMedia, stream: bytearray) -> None:
    """Put another stream into a stripe, with parity and checksums to match."""
    header = stripe.strips[0].header
    length = stripe.payload_bytes
    payloads = [memoryview(bytearray(stream[at * length : (at + 1) * length])) for at in range(header.data)]
    parities = [memoryview(bytearray(length)) for _ in range(header.parity)]
    if parities:
        Parity(header.data, header.parity).generate(payloads, parities)
    for strip, payload in zip(stripe.strips, [*payloads, *parities], strict=True):
        image = images[strip.member]
        image[strip.offset + UNIT : strip.offset + UNIT + length] = payload
        sealed_strip(image, strip)


def forged_records(images: Images, random: Random) -> None:
    """Numbers in record headers or in payloads, mostly of metadata."""
    anatomy = Anatomy(images)
    stripes = anatomy.stripes()
    for _ in range(random.choice((1, 3))):
        stripe = random.choice(stripes[-6:] if random.random() < 0.7 else stripes)
        try:
            records = list(stripe.records(images))
        except ValueError:  # it was forged before
            continue
        record = random.choice(records)
        stream = bytearray(stripe.stream(images))
        at = record.unit * UNIT
        put_number(stream, at + random.randrange(8, UNIT if random.random() < 0.7 else record.units * UNIT), random)
        sealed_record(stream, record.unit)
        rewrite(images, stripe, stream[: stripe.payload_bytes * stripe.strips[0].header.data])


def forged_metadata(images: Images, random: Random) -> None:
    """The content of a map page, table or root, packed again, where it still fits."""
    anatomy = Anatomy(images)
    wanted = random.choice((Kind.ROOT, Kind.ROOT, Kind.MAP_PAGE, Kind.MAP_TABLE, Kind.SEGMENT_TABLE))
    for stripe in reversed(anatomy.stripes()):
        for record in stripe.records(images):
            if record.kind == wanted and _forge(images, stripe, record.unit, wanted, random):
                return


def _forge(images: Images, stripe: StripeOnMedia, unit: int, kind: Kind, random: Random) -> bool:
    stream = bytearray(stripe.stream(images))
    at = unit * UNIT
    header = decode_record_header(memoryview(stream)[at:])
    if header is None:
        return False
    body = bytearray(stream[at + UNIT : at + UNIT + header.length])
    raw = bytearray(zstandard.decompress(bytes(body), max_output_size=1 << 20) if header.codec == 1 else body)
    for _ in range(20):
        changed = _changed_json(raw, random) if kind is Kind.ROOT else _changed_entries(raw, random)
        packed = zstandard.compress(bytes(changed), 19) if header.codec == 1 else bytes(changed)
        new = header._replace(length=len(packed), count=len(changed) if header.count == len(raw) else header.count)
        if new.units != header.units:
            continue
        stream[at + UNIT : at + header.units * UNIT] = packed.ljust((header.units - 1) * UNIT, b"\0")
        encode_record_header(stream, at, new)
        rewrite(images, stripe, stream)
        return True
    return False


def _changed_entries(raw: bytearray, random: Random) -> bytearray:
    changed = bytearray(raw)
    for _ in range(random.choice((1, 4))):
        at = random.randrange(max(1, len(changed) // 8)) * 8
        put_number(changed, at, random)
    return changed[: len(raw)]


def _changed_json(raw: bytearray, random: Random) -> bytes:
    """Another value somewhere in the tree, or a member of it left out."""
    tree = json.loads(bytes(raw))
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in children:
            places.append((node, key))
            walk(child)

    walk(tree)
    node, key = random.choice(places)
    values: tuple[Any, ...] = (0, -1, 1, 1 << 40, 1 << 64, 1.5, "", "x", None, [], {}, True, 4097, 16, 10**30)
    if isinstance(node, dict) and random.random() < 0.2:
        del node[key]
    else:
        node[key] = random.choice(values)
    return json.dumps(tree).encode()


def relabelled(images: Images, random: Random) -> None:
    """A member that says it has another's role, another pool, or another size."""
    member = random.randrange(len(images))
    label = label_of(images[member])
    choice = random.randrange(3)
    if choice == 0:
        label = label._replace(role=random.randrange(20))
    elif choice == 1:
        label = label._replace(geometry=label.geometry._replace(pool=random.randbytes(16)))
    else:
        label = label._replace(member=random.randbytes(16))
    for area in Anatomy(images).areas():
        images[member][area : area + PAGE] = encode_label(label)


def forged_members(images: Images, random: Random) -> None:
    """The member table of the newest superblocks: other states, other identities, more or fewer of them."""
    anatomy = Anatomy(images)
    seed = random.getrandbits(64)
    for member in range(len(images)):
        newest = max(superblock.generation for _, superblock in anatomy.superblocks(member))
        for offset, superblock in list(anatomy.superblocks(member)):
            if superblock.generation == newest:
                same = Random(seed)
                table = list(superblock.members)
                at = same.randrange(len(table))
                entry = table[at]
                table[at] = same.choice(
                    (
                        entry._replace(state=same.randrange(4)),
                        entry._replace(cursor=same.choice(_INTERESTING) % (1 << 32)),
                        entry._replace(member=same.randbytes(16)),
                        table[same.randrange(len(table))],
                    )
                )
                if same.random() < 0.2:
                    table = table[:at] if same.random() < 0.5 else table * 3
                page = encode_superblock(superblock._replace(members=tuple(table[:64])))
                images[member][offset : offset + PAGE] = page


BLIND: Sequence[Mutation] = (noise, blots, truncated, emptied, swapped)
FORGED: Sequence[Mutation] = (
    forged_labels, forged_superblocks, forged_strips, forged_records, forged_metadata, relabelled, forged_members,
)  # fmt: skip
