"""A pool as a hypothesis state machine: what tools/simulate does, in steps that shrink."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from nvmeof.testing.pool_driver import repeatable
from nvmeof.testing.pool_simulation import SHAPES, Simulation, VirtualTimeLoop, simulate

SEEDS = st.integers(0, 255)


class PoolMachine(RuleBasedStateMachine):
    """Every rule is one action of a Simulation; the seed it is given says which blocks, members and faults."""

    simulation: Simulation

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.exits = ExitStack()

    def act(self, action: Callable[[Random], Awaitable[None]], seed: int) -> None:
        self.loop.run_until_complete(self.simulation.act(action, Random(seed)))

    @initialize(shape=st.sampled_from(SHAPES), seed=SEEDS)
    def begin(self, shape: object, seed: int) -> None:
        assert shape in SHAPES
        self.simulation = Simulation(seed, SHAPES[SHAPES.index(shape)])
        self.exits.enter_context(repeatable(seed))
        self.loop.run_until_complete(self.simulation.start())

    @rule(seed=SEEDS)
    def write(self, seed: int) -> None:
        self.act(self.simulation.write, seed)

    @rule(seed=SEEDS)
    def write_more(self, seed: int) -> None:
        self.act(self.simulation.write, seed)
        self.act(self.simulation.burst, seed)

    @rule(seed=SEEDS)
    def flush(self, seed: int) -> None:
        self.act(self.simulation.flush, seed)

    @rule(seed=SEEDS)
    def trim(self, seed: int) -> None:
        self.act(self.simulation.trim, seed)

    @rule(seed=SEEDS)
    def zeroes(self, seed: int) -> None:
        self.act(self.simulation.zeroes, seed)

    @rule(seed=SEEDS)
    def mark(self, seed: int) -> None:
        self.act(self.simulation.mark, seed)

    @rule(seed=SEEDS)
    def resize(self, seed: int) -> None:
        self.act(self.simulation.resize, seed)

    @rule(seed=SEEDS)
    def add_or_delete(self, seed: int) -> None:
        self.act(self.simulation.add if seed & 1 else self.simulation.delete, seed)

    @rule(seed=SEEDS)
    def commit(self, seed: int) -> None:
        self.act(self.simulation.commit, seed)

    @rule(seed=SEEDS)
    def rotate_key(self, seed: int) -> None:
        self.act(self.simulation.rotate_key, seed)

    @rule(seed=SEEDS)
    def member_fails(self, seed: int) -> None:
        self.act(self.simulation.fail, seed)

    @rule(seed=SEEDS)
    def member_rots(self, seed: int) -> None:
        self.act(self.simulation.rot, seed)

    @rule(seed=SEEDS)
    def scrub(self, seed: int) -> None:
        self.act(self.simulation.scrub, seed)

    @rule(seed=SEEDS)
    def repair(self, seed: int) -> None:
        self.act(self.simulation.repair, seed)

    @rule(seed=SEEDS, operations=st.integers(0, 300))
    def power_fails(self, seed: int, operations: int) -> None:
        self.loop.run_until_complete(self.simulation.crash_after(operations, Random(seed)))

    @rule(seed=SEEDS)
    def look(self, seed: int) -> None:
        self.act(self.simulation.look, seed)

    @rule(seed=SEEDS)
    def reopen(self, seed: int) -> None:
        self.act(self.simulation.reopen, seed)

    def teardown(self) -> None:
        try:
            if hasattr(self, "simulation"):
                self.loop.run_until_complete(self.simulation.finish())
        finally:
            self.loop.run_until_complete(self.simulation.driver.abandon())
            self.exits.close()
            self.loop.close()


_checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
QUICK = settings(max_examples=4, stateful_step_count=12, deadline=None, suppress_health_check=_checks)
SLOW = settings(max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=_checks)


def test_state_machine() -> None:
    run_state_machine_as_test(PoolMachine, settings=QUICK)


@pytest.mark.slow
def test_state_machine_for_long() -> None:
    run_state_machine_as_test(PoolMachine, settings=SLOW)


@pytest.mark.slow
def test_lives_of_pools(rng: Random) -> None:
    start = rng.randrange(1 << 20)
    for seed in range(start, start + 40):
        simulate(seed, 60)


def test_some_lives_of_pools(rng: Random) -> None:
    start = rng.randrange(1 << 20)
    for seed in range(start, start + 3):
        simulate(seed, 25)


def test_a_seed_lives_the_same_life_again(rng: Random) -> None:
    seed = rng.randrange(1 << 20)
    (first, one), (second, other) = simulate(seed, 20), simulate(seed, 20)
    assert first.trace == second.trace
    assert one == other
