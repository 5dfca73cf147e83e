"""Names, tiers and quotas: what a tenant may be called, how far up it may ask, what never fits it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from app.domain.policy import Room
from app.domain.priority import PriorityClass
from app.domain.resources import GIB, MIB, Resources
from app.domain.tenant import (
    Excess,
    Quota,
    Tier,
    Usage,
    amount,
    charge_of,
    effective,
    excess,
    name_problem,
    reserved,
    room_left,
)

FOREGROUND, BACKGROUND, BEST_EFFORT = PriorityClass


@pytest.mark.parametrize("name", ["a", "research-team", "tenant-123", "équipe_2.1", "x" * 63, "..a", "12345"])
def test_usable_names(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    ["", "x" * 64, "a b", "a/b", "a\\b", "a\tb", "a\0", "\ud800", "\u00a0", ".", "..", "0" * 32, "{" + "a" * 32 + "}"],
)
def test_names_that_would_not_survive_a_url_or_a_lookup(name: str) -> None:
    assert name_problem(name) is not None


@pytest.mark.parametrize(
    ("tier", "asked", "counts"),
    [
        (Tier.CRITICAL, (FOREGROUND, 5000), (FOREGROUND, 5000)),
        (Tier.CRITICAL, (BACKGROUND, 900_000), (BACKGROUND, 900_000)),
        (Tier.CRITICAL, (FOREGROUND, None), (FOREGROUND, 1000)),
        (Tier.HIGH, (FOREGROUND, 5000), (FOREGROUND, 1000)),
        (Tier.HIGH, (BACKGROUND, 700), (BACKGROUND, 700)),
        (Tier.MEDIUM, (FOREGROUND, None), (BACKGROUND, 500)),
        (Tier.MEDIUM, (BACKGROUND, 999), (BACKGROUND, 500)),
        (Tier.MEDIUM, (BEST_EFFORT, 300), (BEST_EFFORT, 300)),
        (Tier.LOW, (FOREGROUND, None), (BEST_EFFORT, 100)),
        (Tier.LOW, (BACKGROUND, None), (BEST_EFFORT, 100)),
        (Tier.LOW, (BEST_EFFORT, 300), (BEST_EFFORT, 100)),
        (Tier.LOW, (BEST_EFFORT, None), (BEST_EFFORT, 100)),
    ],
    ids=str,
)
def test_a_tier_caps_what_counts(
    tier: Tier, asked: tuple[PriorityClass, int | None], counts: tuple[PriorityClass, int]
) -> None:
    assert effective(tier, *asked) == counts


def test_caps_keep_every_order_and_a_better_tier_is_never_worse() -> None:
    asks = [(BEST_EFFORT, p) for p in range(0, 500, 50)]
    asks += [(BACKGROUND, p) for p in range(500, 1000, 50)] + [(FOREGROUND, p) for p in range(1000, 5001, 50)]

    def rank(tier: Tier, ask: tuple[PriorityClass, int]) -> tuple[int, int]:
        counted, priority = effective(tier, *ask)
        return -int(counted), priority

    for tier in Tier:
        assert all(rank(tier, one) <= rank(tier, other) for one, other in pairwise(asks))
    for lower, higher in pairwise(Tier):
        assert all(rank(lower, ask) <= rank(higher, ask) for ask in asks)


def test_a_share_is_rounded_up_but_never_beyond_a_quota_that_holds_what_was_asked() -> None:
    asked = Resources(4200, 5000 * MIB)
    assert reserved(asked, Quota()) == Resources(5000, 5120 * MIB)
    assert reserved(asked, Quota(cpus_milli=4500, memory_bytes=5000 * MIB)) == Resources(4500, 5000 * MIB)
    assert reserved(asked, Quota(cpus_milli=4000, memory_bytes=6000 * MIB)) == Resources(5000, 5120 * MIB)


def test_what_exceeds_a_quota_is_named_with_numbers() -> None:
    need = Resources(2000, 4 * GIB, 2, 40 * 10**9)
    assert charge_of(need) == Usage(1, 2000, 4 * GIB, 2, 80 * 10**9)
    assert excess(Quota(1, 2000, 4 * GIB, 2, 80 * 10**9), need) == []
    assert excess(Quota(gpus=1, gpu_memory_bytes=79 * 10**9), need) == [
        Excess("gpus", 2, 1),
        Excess("gpu_memory_bytes", 80 * 10**9, 79 * 10**9),
    ]
    assert excess(Quota(jobs=0, gpus=0), Resources(100, MIB)) == [Excess("jobs", 1, 0)]


def test_room_is_the_rest_of_a_quota_and_agrees_with_what_claims_decide() -> None:
    room = room_left(Quota(jobs=3, gpus=1), Usage(jobs=1, cpus_milli=5000, gpus=2))
    assert room == Room(jobs=2, gpus=-1)
    for gpus in (0, 1):
        need = Resources(100, MIB, gpus)
        assert (excess(room, need) == []) is room.holds(need)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("jobs", 1, "1 job"),
        ("jobs", 20, "20 jobs"),
        ("cpus_milli", 2500, "2.5 CPUs"),
        ("cpus_milli", 1000, "1 CPU"),
        ("gpus", 8, "8 GPUs"),
        ("memory_bytes", 64 * GIB, "64 GiB of memory"),
        ("memory_bytes", 512 * MIB, "512 MiB of memory"),
        ("memory_bytes", 5000 * MIB, "4.88 GiB of memory"),
        ("memory_bytes", 123_456 * GIB, "123456 GiB of memory"),
        ("gpu_memory_bytes", 160 * 10**9, "160 GB of GPU memory"),
    ],
)
def test_amounts_read_as_people_say_them(name: str, value: int, text: str) -> None:
    assert amount(name, value) == text
