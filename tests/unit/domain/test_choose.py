"""The one rule of order: class, then fair share, then priority, then age; nothing over-committed, nothing blocked."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from app.domain.policy import KeySummary, Room, Take, TenantView, choose, cost
from app.domain.priority import PriorityClass
from app.domain.resources import GIB, Free, Gpu, Resources
from tests.factories import BACKGROUND, BEST_EFFORT, FOREGROUND, gpu, share

ANN, BOB, CARL = UUID(int=11), UUID(int=12), UUID(int=13)
WIDE = Free(slots=64, cpus_milli=64_000, memory_bytes=64 * GIB)


def key(
    number: int,
    tenant: UUID = ANN,
    cls: PriorityClass = BACKGROUND,
    priority: int = 500,
    shape: Resources | None = None,
    head: int | None = None,
) -> KeySummary:
    return KeySummary(number, tenant, cls, priority, shape or share(1, 1024), number if head is None else head)


def order(takes: list[Take]) -> list[int]:
    return [take.key_id for take in takes]


def test_nothing_waits_nothing_is_taken() -> None:
    assert choose([], {}, WIDE, 8) == []


def test_a_better_class_is_served_before_anything_else() -> None:
    keys = [
        key(1, cls=BEST_EFFORT, priority=9999),
        key(2, BOB, BACKGROUND, 9999),
        key(3, CARL, FOREGROUND, 0, head=99),
    ]
    tenants = {CARL: TenantView(share=1e6)}
    free = Free(2, 64_000, 64 * GIB)
    assert order(choose(keys, tenants, free, 1)) == [3]
    assert order(choose(keys[:2], tenants, free, 1)) == [2]


def test_a_lone_tenant_is_served_by_priority_then_age() -> None:
    keys = [key(1, priority=1, head=1), key(2, priority=5, head=9), key(3, priority=5, head=4)]
    taken, free = [], Free(1, 64_000, 64 * GIB)
    while keys:
        first = order(choose(keys, {}, free, 1))[0]
        taken.append(first)
        keys = [k for k in keys if k.id != first]
    assert taken == [3, 2, 1]


def test_equal_tenants_take_turns() -> None:
    takes = choose([key(1, ANN), key(2, BOB)], {}, WIDE, 8)
    assert {take.key_id: take.count for take in takes} == {1: 4, 2: 4}


def test_who_uses_less_for_its_weight_is_served_first() -> None:
    keys = [key(1, ANN), key(2, BOB)]
    assert order(choose(keys, {ANN: TenantView(5), BOB: TenantView(4)}, WIDE, 1)) == [2]
    assert order(choose(keys, {ANN: TenantView(1), BOB: TenantView(4)}, WIDE, 1)) == [1]


def test_a_tenant_of_weight_three_gets_three_times_as_much() -> None:
    tenants = {ANN: TenantView(weight=3), BOB: TenantView(weight=1)}
    takes = choose([key(1, ANN), key(2, BOB)], tenants, WIDE, 16)
    assert {take.key_id: take.count for take in takes} == {1: 12, 2: 4}


def test_no_more_is_taken_than_waits() -> None:
    keys = [replace(key(1, priority=900), waiting=2), key(2)]
    assert {t.key_id: t.count for t in choose(keys, {}, WIDE, 8)} == {1: 2, 2: 6}
    both = [*keys, key(3, BOB)]
    assert {t.key_id: t.count for t in choose(both, {}, WIDE, 8)} == {1: 2, 2: 2, 3: 4}


def test_a_shape_that_does_not_fit_blocks_nobody() -> None:
    keys = [key(1, priority=9999, shape=share(100, 64)), key(2, priority=1)]
    assert order(choose(keys, {}, WIDE, 1)) == [2]


def test_a_tenant_without_room_or_without_its_lock_blocks_nobody() -> None:
    keys = [key(1, ANN, FOREGROUND), key(2, BOB, FOREGROUND), key(3, CARL, BEST_EFFORT)]
    tenants = {ANN: TenantView(room=Room(jobs=0)), BOB: TenantView(room=None)}
    assert order(choose(keys, tenants, WIDE, 8)) == [3]


def test_a_tenant_over_its_gpu_limit_still_runs_on_cpus() -> None:
    tenants = {ANN: TenantView(room=Room(gpus=-1, gpu_memory_bytes=-5))}
    free = Free(8, 8000, GIB, (gpu(1),))
    keys = [key(1, priority=9, shape=share(gpus=1)), key(2, shape=share())]
    assert order(choose(keys, tenants, free, 8)) == [2]


def test_gpus_are_pinned_as_they_were_chosen() -> None:
    """Ann takes any card, Bob only a T4: in turns Ann gets the K80, Bob the T4, Ann the A100."""
    cards = (gpu(1, "K80", 12), gpu(2, "T4", 16), gpu(3, "A100", 40))
    keys = [key(1, ANN, shape=share(gpus=1)), key(2, BOB, shape=share(gpus=1, model="T4"))]
    takes = choose(keys, {}, Free(8, 8000, GIB, cards), 8)
    assert {take.key_id: take.pins for take in takes} == {
        1: ((cards[0],), (cards[2],)),
        2: ((cards[1],),),
    }


def test_who_has_more_than_one_who_is_not_seen_yet_waits() -> None:
    tenants = {ANN: TenantView(0.5), BOB: TenantView(2.5), CARL: TenantView(9)}
    keys = [key(1, ANN), key(2, BOB), key(3, CARL)]
    assert {t.key_id: t.count for t in choose(keys, tenants, WIDE, 8, upto=2.5)} == {1: 3, 2: 1}
    assert {t.key_id: t.count for t in choose(keys[:1], tenants, WIDE, 8, upto=1.5)} == {1: 2}
    assert choose(keys, tenants, WIDE, 8, upto=0.4) == []
    assert order(choose([key(4, CARL, FOREGROUND), *keys], tenants, WIDE, 8, upto=0.4)) == [4]


models = st.sampled_from(["", "A100", "T4"])
shapes = st.builds(
    share,
    st.sampled_from([0.1, 1, 2, 4, 16]),
    st.sampled_from([64, 1024, 8192]),
    st.sampled_from([0, 0, 1, 2]),
    st.sampled_from([0, 16 * 10**9]),
    models,
)
tenants_st = st.sampled_from([ANN, BOB, CARL])
depths = st.none() | st.integers(1, 3)
keys_st = st.lists(
    st.tuples(tenants_st, st.sampled_from(list(PriorityClass)), st.integers(0, 3), shapes, st.integers(1, 99), depths),
    max_size=12,
).map(lambda drawn: [KeySummary(n, t, c, p, s, h, waiting=w) for n, (t, c, p, s, h, w) in enumerate(drawn)])
cards_st = st.lists(st.sampled_from([("T4", 16), ("A100", 40), ("A100", 80)]), max_size=6).map(
    lambda drawn: tuple(gpu(n, *kind) for n, kind in enumerate(drawn))
)
frees = st.builds(Free, st.integers(0, 12), st.integers(0, 20_000), st.integers(0, 32 * GIB), cards_st)
small = st.none() | st.integers(0, 6)
rooms = st.none() | st.builds(Room, small, st.none() | st.integers(0, 9000), st.none(), small)
views = st.builds(TenantView, st.floats(0, 50), st.sampled_from([0.5, 1.0, 4.0]), rooms)


def test_cost_of_a_gpu_is_that_of_eight_cpus() -> None:
    assert cost(share(8, 64)) == cost(share(1, 64, 1)) == cost(Resources(100, 32 * GIB)) == 8


@given(keys_st, st.dictionaries(tenants_st, views), frees, st.integers(0, 20))
def test_whatever_waits_nothing_is_over_committed_and_nothing_blocks(
    keys: list[KeySummary], tenants: dict[UUID, TenantView], free: Free, limit: int
) -> None:
    takes = choose(keys, tenants, free, limit)
    by_id = {k.id: k for k in keys}
    assert len({take.key_id for take in takes}) == len(takes)
    assert all(take.count > 0 and take.shape == by_id[take.key_id].shape for take in takes)
    assert all(take.count <= (by_id[take.key_id].waiting or limit) for take in takes)
    count = sum(take.count for take in takes)
    assert count <= limit
    assert count <= free.slots or not takes
    assert sum(take.count * take.shape.cpus_milli for take in takes) <= free.cpus_milli
    assert sum(take.count * take.shape.memory_bytes for take in takes) <= free.memory_bytes
    _check_pins(takes, free)
    held: Counter[UUID] = Counter()
    rooms_left = {tenant: view.room for tenant, view in tenants.items()}
    for take in takes:
        tenant = by_id[take.key_id].tenant_id
        held[tenant] += take.count
        for _ in range(take.count):
            room = rooms_left.get(tenant, Room())
            assert room is not None and room.holds(take.shape)
            rooms_left[tenant] = room.less(take.shape)
    if count < limit:
        _check_nothing_else_fits(keys, takes, rooms_left, free)


def _check_pins(takes: list[Take], free: Free) -> None:
    given_gpus: list[Gpu] = []
    for take in takes:
        assert len(take.pins) == take.count
        for pin in take.pins:
            assert len(pin) == take.shape.gpus
            assert all(card.suits(take.shape) for card in pin)
            given_gpus += pin
    assert len({card.uuid for card in given_gpus}) == len(given_gpus)
    assert set(given_gpus) <= set(free.gpus)


def _check_nothing_else_fits(
    keys: list[KeySummary], takes: list[Take], rooms_left: dict[UUID, Room | None], free: Free
) -> None:
    used = {card for take in takes for pin in take.pins for card in pin}
    left = Free(
        free.slots - sum(t.count for t in takes),
        free.cpus_milli - sum(t.count * t.shape.cpus_milli for t in takes),
        free.memory_bytes - sum(t.count * t.shape.memory_bytes for t in takes),
        tuple(card for card in free.gpus if card not in used),
    )
    taken = {take.key_id: take.count for take in takes}
    for waiting in keys:
        room = rooms_left.get(waiting.tenant_id, Room())
        if waiting.waiting is not None and taken.get(waiting.id, 0) == waiting.waiting:
            continue
        assert room is None or not (left.fits(waiting.shape) and room.holds(waiting.shape))


@given(keys_st, frees)
def test_one_job_at_a_time_goes_to_the_best_class_that_fits(keys: list[KeySummary], free: Free) -> None:
    takes = choose(keys, {}, free, 1)
    fitting = [k for k in keys if free.fits(k.shape)]
    if not fitting:
        assert takes == []
        return
    chosen = next(k for k in keys if k.id == takes[0].key_id)
    assert chosen.priority_class == min(k.priority_class for k in fitting)
    mine = [k for k in fitting if (k.priority_class, k.tenant_id) == (chosen.priority_class, chosen.tenant_id)]
    assert (-chosen.priority, chosen.head_seq) == min((-k.priority, k.head_seq) for k in mine)
