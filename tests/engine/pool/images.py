"""Members of a pool in which there is something of everything."""

from __future__ import annotations

from random import Random

from nvmeof.testing.pool_driver import Driver, FixedKey, Shape, repeatable

SHAPE = Shape(segments=10)


async def filled_driver(*, encrypted: bool = False, seed: int = 1) -> Driver:
    """A closed pool with two namespaces, and the oracle that knows what is in them."""
    shape = Shape(segments=SHAPE.segments, encrypted=encrypted)
    driver = Driver(shape, Random(seed), shape.disks(seed=seed), keys=[FixedKey(1) if encrypted else None])
    with repeatable(seed):
        await driver.create()
        await driver.add(48)
        await driver.add(40, nsid=2, block_size=512, codec="lz4")
        for first, count in ((0, 24), (3, 2), (30, 6), (40, 1)):
            await driver.write(first, count)
        await driver.write(0, 30, 2)
        await driver.trim([(4, 1), (31, 2)])
        await driver.mark(41, 2)
        await driver.commit()
        await driver.write(7, 4)
        await driver.write(3, 3, 2)
        await driver.flush()
        await driver.close()
    return driver


_images: dict[bool, list[bytes]] = {}


async def closed_pool(encrypted: bool) -> list[bytes]:
    """The members' images; made once."""
    if encrypted not in _images:
        driver = await filled_driver(encrypted=bool(encrypted))
        _images[encrypted] = [disk.image() for disk in driver.disks]
    return _images[encrypted]
