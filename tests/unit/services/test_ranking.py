"""A walk through tenants in order: each is looked at, who was cut off again, and those without anything fast."""

from __future__ import annotations

import math
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from app.services.ranking import Place, Walk

keys_of_each = st.lists(st.integers(0, 5), max_size=60)


@given(keys_of_each, st.integers(1, 8))
def test_all_keys_of_all_tenants_are_seen_as_far_as_a_page_can_show_them(keys: list[int], size: int) -> None:
    order = [Place(float(n), n, UUID(int=n)) for n in range(len(keys))]
    walk, seen = Walk(order, size), dict[UUID, int]()
    while not walk.is_over:
        before = walk.upto
        page = [tenant for tenant in walk.next() for _ in range(keys[tenant.int])][:size]
        assert walk.next()[0] == UUID(int=int(before))
        for tenant in page:
            seen[tenant] = page.count(tenant)
        walk.saw(page)
        assert walk.upto > before
    assert seen == {UUID(int=n): min(count, size) for n, count in enumerate(keys) if count}
    assert walk.upto == math.inf and walk.next() == []


def test_a_thousand_tenants_without_anything_are_passed_over_in_few_looks() -> None:
    walk, looks = Walk([Place(0.0, n, UUID(int=n)) for n in range(1000)], 24), 0
    while not walk.is_over:
        walk.saw([])
        looks += 1
    assert looks <= 4
