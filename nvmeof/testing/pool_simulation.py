"""A pool's whole life at random: work, faults, power losses, repairs. The seed decides everything.

Never more members are hurt at once than the pool survives, so whatever happens every block must read right.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import selectors
from collections.abc import Awaitable, Callable
from random import Random

from nvmeof.engine.layout import AREA_BYTES
from nvmeof.errors import CapacityError, UsageError, VolumeError
from nvmeof.testing.pool_disk import Power
from nvmeof.testing.pool_driver import Driver, FixedKey, Shape, repeatable
from nvmeof.testing.pool_oracle import OracleError
from nvmeof.testing.virtual_disk import Damage, Operation

SECONDS_MAX = 60.0
TURN_SECONDS = 20e-6
"""What a turn of the loop takes by its own clock, so that a task which spins for ever ends as one that hangs."""

BLOCKS_MAX = 200
NAMESPACES_MAX = 4
KEYS_MAX = 200
FAILURES: tuple[Operation, ...] = ("write", "sync", "read")
CODECS = ("auto", "zstd", "lz4", "deflate", "none")

SHAPES = (
    Shape(segments=20),
    Shape(segments=24, encrypted=True),
    Shape(members=6, segments=20),
    Shape(members=5, segments=20, segment_bytes=260 << 10),
    Shape(raid="raid5", members=4, segments=24),
)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop on which nobody waits: its clock goes on by a little each turn, and to the next timer when all is quiet.

    So that timers, too, come at the same moment each time. Only something without a timer, a thread, is waited for.
    """

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Hurried(self))

    def time(self) -> float:
        """Seconds since it began."""
        return self._now

    def pass_time(self, seconds: float) -> None:
        """Let the clock go on."""
        self._now += seconds


class _Hurried(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select(None)
        events = super().select(0)
        self._loop.pass_time(TURN_SECONDS if events else max(timeout, TURN_SECONDS))
        return events


class Simulation:
    """One pool. Each action leaves it judged as far as it can be; ``trace`` says what was done."""

    def __init__(self, seed: int, shape: Shape | None = None) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.power = Power()
        self.shape = shape or SHAPES[seed % len(SHAPES)]
        self.trace: list[str] = []
        self.crashes = 0
        self.failed: set[int] = set()
        """Roles whose disk fails for ever."""
        self.rotten: set[int] = set()
        """Roles with something bad on media."""
        keys = [FixedKey(1) if self.shape.encrypted else None]
        self.driver = Driver(
            self.shape,
            Random(seed + 1),
            self.shape.disks(self.power, seed=seed),
            keys=list(keys),
            power=self.power,
            shuffle=Random(seed + 2) if seed % 3 else None,
        )
        self._key = 1
        self._doing: tuple[Callable[[Random], Awaitable[None]], ...] = (
            *[self.write] * 12,
            *[self.flush] * 4,
            *[self.trim] * 2,
            *[self.burst] * 3,
            self.zeroes,
            self.mark,
            self.commit,
            self.resize,
            self.add,
            self.delete,
            self.settings,
        )
        self._upkeep: tuple[Callable[[Random], Awaitable[None]], ...] = (
            *[self.crash] * 4,
            self.reopen,
            self.look,
            self.fail,
            self.rot,
            self.scrub,
            *[self.repair] * 2,
            self.rotate_key,
        )

    @property
    def hurt(self) -> set[int]:
        """Roles that cannot be counted upon."""
        return self.failed | self.rotten

    async def start(self) -> None:
        """Make the pool."""
        await self.driver.create()
        await self.add(self.random)

    async def run(self, steps: int) -> str:
        """Live ``steps`` steps and look at everything; a digest of the members. Raises AssertionError."""
        try:
            with repeatable(self.seed):
                await self.start()
                for _ in range(steps):
                    await self.step(self.random)
                await self.finish()
        except BaseException:
            await self.driver.abandon()
            raise
        digest = hashlib.sha256(repr(self.trace).encode())
        for disk in self.driver.disks:
            digest.update(disk.image()[AREA_BYTES:-AREA_BYTES])
        return digest.hexdigest()[:16]

    async def finish(self) -> None:
        """Look, close, open, look, close."""
        await self.look(self.random)
        await self.reopen(self.random)
        await self.driver.close()

    async def step(self, random: Random) -> None:
        """One action, whichever."""
        await self.act(random.choice(self._doing if random.random() < 0.75 else self._upkeep), random)

    async def act(self, action: Callable[[Random], Awaitable[None]], random: Random) -> None:
        """One action, in time, with a full pool for no error."""
        try:
            async with asyncio.timeout(SECONDS_MAX):
                await action(random)
        except CapacityError:
            self.note("full")
            if not self.power.on:
                raise
        except TimeoutError as error:
            raise AssertionError(f"hangs: {self.trace[-1:]}") from error

    def note(self, text: str) -> None:
        """One line of the trace."""
        self.trace.append(text)

    def pick(self, random: Random) -> tuple[int, int, int]:
        """A namespace, a first block and a count."""
        truth = random.choice(self.driver.oracle.living())
        first = random.randrange(truth.count)
        most = random.choice((1, 2, 8, 40, 40))
        return truth.nsid, first, min(random.randrange(1, most + 1), truth.count - first)

    # -- work

    async def write(self, random: Random) -> None:
        """One write."""
        nsid, first, count = self.pick(random)
        self.note(f"write {nsid}: {first}+{count}")
        await self.driver.write(first, count, nsid)

    async def flush(self, random: Random) -> None:
        """One flush."""
        nsid, _, _ = self.pick(random)
        self.note(f"flush {nsid}")
        await self.driver.flush(nsid)

    async def trim(self, random: Random) -> None:
        """One Deallocate."""
        nsid, first, count = self.pick(random)
        self.note(f"trim {nsid}: {first}+{count}")
        await self.driver.trim([(first, count)], nsid)

    async def zeroes(self, random: Random) -> None:
        """One Write Zeroes."""
        nsid, first, count = self.pick(random)
        self.note(f"zeroes {nsid}: {first}+{count}")
        await self.driver.zeroes(first, count, nsid, deallocate=random.random() < 0.5)

    async def mark(self, random: Random) -> None:
        """One Write Uncorrectable, in multiples of its granule."""
        nsid, first, count = self.pick(random)
        if self.driver.truth(nsid).block_size == 4096:
            self.note(f"mark {nsid}: {first}+{count}")
            await self.driver.mark(first, count, nsid)

    async def burst(self, random: Random) -> None:
        """Tasks that write, read, flush, trim and commit beside each other."""
        nsid, _, _ = self.pick(random)
        truth = self.driver.truth(nsid)
        self.note(f"burst {nsid}")
        again = random.randrange(1, 5)

        async def work(seed: int) -> None:
            random = Random(seed)
            for _ in range(again):
                first = random.randrange(truth.count)
                count = min(random.choice((1, 2, 8, 33)), truth.count - first)
                choice = random.randrange(12)
                if choice < 5:
                    await self.driver.write(first, count, nsid)
                elif choice < 8:
                    await self.driver.read(first, count, nsid)
                elif choice < 10:
                    await self.driver.flush(nsid)
                elif choice == 10:
                    await self.driver.trim([(first, count)], nsid)
                else:
                    await self.driver.commit()

        seeds = [random.randrange(1 << 30) for _ in range(random.choice((3, 8, 20)))]
        outcomes = await asyncio.gather(*(work(seed) for seed in seeds), return_exceptions=True)
        errors = [outcome for outcome in outcomes if outcome is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, CapacityError)):
            raise error

    async def commit(self, random: Random) -> None:
        """The map to the log."""
        self.note("commit")
        await self.driver.commit()

    # -- namespaces

    async def resize(self, random: Random) -> None:
        """Up or down."""
        nsid, _, _ = self.pick(random)
        blocks = random.randrange(1, BLOCKS_MAX) * 8 - random.randrange(8)
        if self.driver.truth(nsid).block_size == 512:
            blocks = -(-blocks // 8) * 8
        self.note(f"resize {nsid} to {blocks}")
        await self.driver.resize(blocks, nsid)

    async def add(self, random: Random) -> None:
        """Another namespace, if there are not too many."""
        taken = {truth.nsid for truth in self.driver.oracle.living()}
        if len(taken) == NAMESPACES_MAX:
            return
        nsid = random.choice([number for number in range(1, NAMESPACES_MAX + 2) if number not in taken])
        blocks = random.randrange(1, BLOCKS_MAX) * 8 - random.randrange(8)
        size, codec, cache = random.choice((4096, 4096, 512)), random.choice(CODECS), random.random() < 0.8
        if size == 512:
            blocks = -(-blocks // 8) * 8
        self.note(f"add {nsid}: {blocks} blocks of {size}, {codec}, cache {cache}")
        await self.driver.add(
            blocks, nsid=nsid, block_size=size, codec=codec, planes=random.choice((0, 2)), write_cache=cache
        )

    async def delete(self, random: Random) -> None:
        """Delete a namespace, but not the last."""
        living = self.driver.oracle.living()
        if len(living) > 1:
            nsid = random.choice(living).nsid
            self.note(f"delete {nsid}")
            await self.driver.delete(nsid)

    async def settings(self, random: Random) -> None:
        """Another codec."""
        nsid, _, _ = self.pick(random)
        codec = random.choice(CODECS)
        self.note(f"codec of {nsid}: {codec}")
        await self.driver.pool.set_namespace(nsid, codec=codec)

    async def rotate_key(self, random: Random) -> None:
        """Wrap the keys anew."""
        if self.shape.encrypted and self._key < KEYS_MAX:
            self._key += 1
            self.note(f"rotate to key {self._key}")
            await self.driver.rotate_key(FixedKey(self._key))

    # -- faults

    async def fail(self, random: Random) -> None:
        """A disk fails for ever, or has no space, if the pool still survives that."""
        role = random.randrange(self.shape.members)
        if len(self.hurt | {role}) <= self.shape.parity and role not in self.failed:
            what = random.choice(FAILURES)
            code = errno.ENOSPC if what == "write" and random.random() < 0.5 else errno.EIO
            self.note(f"fail {what} of {role}: {errno.errorcode[code]}")
            self.driver.disks[role].fail(what, nth=random.randrange(1, 6), times=1 << 40, code=code)
            self.failed.add(role)

    async def rot(self, random: Random) -> None:
        """Bits flip on a member, anywhere in its segments."""
        role = random.randrange(self.shape.members)
        if len(self.hurt | {role}) <= self.shape.parity:
            count = random.choice((1, 20, 400))
            self.note(f"rot {role}, {count} bits")
            disk = self.driver.disks[role]
            for _ in range(count):
                offset = random.randrange(AREA_BYTES, self.shape.member_bytes - AREA_BYTES)
                disk.flip(offset, 1 << random.randrange(8))
            self.rotten.add(role)

    async def scrub(self, random: Random) -> None:
        """Everything rotten is healed, if no member is out."""
        self.note("scrub")
        await self.driver.rebuilt()
        await self.driver.scrub(f"seed {self.seed}")
        if not self.failed:
            self.rotten.clear()

    async def repair(self, random: Random) -> None:
        """A new disk for one that failed, and a rebuild."""
        if self.failed:
            role = random.choice(sorted(self.failed))
            self.note(f"replace {role}")
            await self.driver.replace(role)
            await self.driver.rebuilt()
            self.failed.discard(role)
            self.rotten.discard(role)

    # -- judgement

    async def look(self, random: Random) -> None:
        """Read everything."""
        self.note("look")
        await self.driver.look(f"seed {self.seed}")

    async def reopen(self, random: Random) -> None:
        """A clean close and an opening."""
        self.note("reopen")
        await self.driver.reopen()

    async def crash(self, random: Random) -> None:
        """The power fails while the pool works; some members may do worse than lose writes."""
        operations = random.choice((0, 3, 30, 100, 300))
        await self.crash_after(random.randrange(operations + 1), random)

    async def crash_after(self, operations: int, random: Random) -> None:
        """The power fails after that many operations, or a while later between them."""
        self.note(f"crash after {operations}")
        incarnation = self.driver.pool.incarnation
        self.power.off_after(operations)
        try:
            for _ in range(20):
                await self.act(random.choice(self._doing if random.random() < 0.9 else self._idle()), random)
        except (VolumeError, UsageError, OSError):
            if self.power.on:
                raise
        self.power.on = False
        await self.driver.abandon()
        self.crashes += 1
        liars = self._liars(random)
        for role, disk in enumerate(self.driver.disks):
            disk.damage = Damage.ALL if role in liars else Damage.HONEST
        self.power.restore()
        for disk in self.driver.disks:
            disk.crash()
        await self.driver.open()
        await self.driver.recovered(f"seed {self.seed}, crash {self.crashes}", incarnation)

    def _idle(self) -> tuple[Callable[[Random], Awaitable[None]], ...]:
        return (self.scrub, self.repair, self.rotate_key, self.commit)

    def _liars(self, random: Random) -> set[int]:
        """Members that garble and misdirect in this crash; they are rotten then."""
        if random.random() < 0.5:
            return set()
        fresh = [role for role in range(self.shape.members) if role not in self.hurt]
        new = random.sample(fresh, max(0, self.shape.parity - len(self.hurt)))
        self.note(f"lying: {new}")
        self.rotten.update(new)
        return set(new)


def simulate(seed: int, steps: int) -> tuple[Simulation, str]:
    """One life; what was done, and a digest of the outcome. Raises AssertionError, with the trace's end."""
    simulation = Simulation(seed)
    try:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            return simulation, runner.run(simulation.run(steps))
    except Exception as error:
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        lines = "\n".join(simulation.trace[-15:])
        raise OracleError(
            f"{kind}{error}\nseed {seed}, {steps} steps, the last of {len(simulation.trace)}:\n{lines}"
        ) from error
