"""More tenants wait in a class than one look of a claim shows: who used least for its weight still comes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

import psycopg2
import pytest

from app.domain.job import Assignment
from app.domain.priority import PriorityClass
from app.domain.resources import GIB, Free
from app.services.claim import PAGE, SMALL_PAGE, Claimer, claim
from app.services.external import claim_external
from app.services.ranking import Place, Ranking
from tests.factories import BACKGROUND, FOREGROUND, Fabric, Node, at_once, binary_job, gpu, job, share


def claim_by(fabric: Fabric, node: Node, ranking: Ranking | None, limit: int = 1) -> list[Assignment]:
    return claim(fabric.db, Claimer(node.id, node.incarnation, node.runners, ranking=ranking), limit)


def many_tenants(fabric: Fabric, count: int, jobs: int = 1, weights: Sequence[float] = (1.0,)) -> list[UUID]:
    """Tenants with waiting jobs of one shape."""
    made = [fabric.add_tenant(tier="critical", weight=weights[n % len(weights)]) for n in range(count)]
    for tenant in made:
        fabric.submit(*[job()] * jobs, tenant=tenant)
    return made


class Standing:
    """A clock that stands still: what a ranking read once it keeps."""

    def __call__(self) -> float:
        return 0.0


@pytest.mark.parametrize("looks", ["each claim", "now and then", "once"])
def test_a_great_weight_counts_among_more_tenants_than_a_look_shows(fabric: Fabric, looks: str) -> None:
    node = fabric.add_node(slots=500)
    many_tenants(fabric, 30, jobs=10)
    heavy = fabric.add_tenant(weight=60)
    fabric.submit(*[job()] * 120, tenant=heavy)
    many_tenants(fabric, 30, jobs=10)
    ranking = {"each claim": None, "now and then": Ranking(), "once": Ranking(Standing())}[looks]
    got = Counter(claim_by(fabric, node, ranking)[0].tenant_id for _ in range(120))
    assert 55 <= got[heavy] <= 65, got
    assert len(got) == 61
    assert max(count for tenant, count in got.items() if tenant != heavy) <= 2


def test_several_weights_are_kept_by_several_nodes_that_do_not_know_of_each_other(fabric: Fabric) -> None:
    nodes = [(fabric.add_node(slots=500), Ranking(Standing())) for _ in range(3)]
    tenants = many_tenants(fabric, 40, jobs=30, weights=(1.0, 1.0, 1.0, 5.0))
    got = Counter[UUID]()
    for turn in range(160):
        got[claim_by(fabric, *nodes[turn % 3])[0].tenant_id] += 1
    light = [got[tenant] for n, tenant in enumerate(tenants) if n % 4 != 3]
    heavy = [got[tenant] for n, tenant in enumerate(tenants) if n % 4 == 3]
    assert all(1 <= count <= 3 for count in light), light
    assert all(7 <= count <= 13 for count in heavy), heavy


def test_one_claim_for_many_jobs_gives_each_tenant_its_part_however_many_shapes_they_have(fabric: Fabric) -> None:
    node = fabric.add_node(slots=500)
    tenants = [fabric.add_tenant() for _ in range(40)]
    for tenant in tenants:
        fabric.submit(*[job(resources=share(0.1, 64 * n)) for n in range(1, 10)], tenant=tenant)
    first = Counter(one.tenant_id for one in claim_by(fabric, node, Ranking(), 40))
    assert first == Counter(tenants)


def test_what_was_used_before_counts(fabric: Fabric) -> None:
    node = fabric.add_node()
    tenants = many_tenants(fabric, 60, jobs=2)
    for tenant in tenants[:50]:
        fabric.sql("INSERT INTO tenant_share (tenant_id, average) VALUES (%s, 7)", tenant)
    ranking = Ranking()
    got = Counter(claim_by(fabric, node, ranking)[0].tenant_id for _ in range(20))
    assert got == dict.fromkeys(tenants[50:], 2)


@pytest.mark.parametrize("blocked", ["quota", "room", "inactive", "held", "nothing ready"])
def test_however_many_are_blocked_at_the_head_those_behind_get_their_turn(
    fabric: Fabric, database_url: str, blocked: str
) -> None:
    """The blocked have used nothing and weigh most, so that all of them come before the others."""
    node = fabric.add_node(slots=500, cpus=16)
    great = share(32) if blocked == "room" else None
    head = [fabric.add_tenant(weight=1000) for _ in range(3 * SMALL_PAGE)]
    stuck = [one for tenant in head for one in fabric.submit(job(resources=great), tenant=tenant)]
    behind = many_tenants(fabric, 2 * SMALL_PAGE)
    for tenant in behind:
        fabric.sql("INSERT INTO tenant_share (tenant_id, average) VALUES (%s, 1)", tenant)
    other = psycopg2.connect(database_url)
    if blocked == "quota":
        fabric.sql("UPDATE tenant SET quota_jobs = 0 WHERE weight = 1000")
    elif blocked == "inactive":
        fabric.sql("UPDATE tenant SET active = false WHERE weight = 1000")
    elif blocked == "held":
        other.cursor().execute("SELECT 1 FROM job WHERE id = ANY(%s::uuid[]) FOR UPDATE", (list(map(str, stuck)),))
    elif blocked == "nothing ready":
        fabric.sql("UPDATE job SET ready = false, reason = 'hold' WHERE id = ANY(%s::uuid[])", list(map(str, stuck)))
    ranking, got = Ranking(), Counter[UUID]()
    for _ in range(3 * len(behind)):
        got.update(one.tenant_id for one in claim_by(fabric, node, ranking))
    other.close()
    assert got == Counter(behind)


def test_a_claim_that_has_room_left_sees_who_came_meanwhile(fabric: Fabric) -> None:
    node = fabric.add_node(slots=500)
    ranking = Ranking(Standing())
    many_tenants(fabric, 40)
    assert len(claim_by(fabric, node, ranking)) == 1
    late = many_tenants(fabric, 30)
    got = Counter(one.tenant_id for _ in range(20) for one in claim_by(fabric, node, ranking, 4))
    got.update(one.tenant_id for one in claim_by(fabric, node, ranking, 64))
    assert got.total() == 69 and set(late) <= set(got)


def test_what_a_tenant_took_in_one_class_counts_in_the_next(fabric: Fabric) -> None:
    node = fabric.add_node(slots=500, cpus=500)
    tenants = many_tenants(fabric, 60)
    rich = tenants[:30]
    ranking = Ranking(Standing())
    for cls in (FOREGROUND, BACKGROUND):
        _teach(fabric, ranking, cls)
    for tenant in rich:
        fabric.submit(job(priority_class=FOREGROUND, resources=share(4)), tenant=tenant)
    assert {one.tenant_id for one in claim_by(fabric, node, ranking, 30)} == set(rich)
    assert {one.tenant_id for one in claim_by(fabric, node, ranking, 30)} == set(tenants[30:])


def _teach(fabric: Fabric, ranking: Ranking, cls: PriorityClass) -> None:
    with fabric.db.transaction() as tx:
        ranking.read(tx, cls)


def test_more_than_a_thousand_tenants_get_their_turn_before_anybody_gets_a_second(fabric: Fabric) -> None:
    count = 1_050
    node = fabric.add_node(slots=5_000, cpus=1_000, memory=1 << 45)
    fabric.sql(
        "INSERT INTO tenant (id, name) SELECT gen_random_uuid(), 'tenant-' || n FROM generate_series(1, %s) n", count
    )
    tenants = [row[0] for row in fabric.all("SELECT id FROM tenant WHERE name LIKE 'tenant-%%'")]
    for tenant in tenants:
        fabric.submit(job(), job(), tenant=tenant)
    ranking, got, claims = Ranking(), Counter[UUID](), 0
    while got.total() < count:
        taken = claim_by(fabric, node, ranking, min(PAGE, count - got.total()))
        assert taken
        got.update(one.tenant_id for one in taken)
        claims += 1
    assert got == Counter(tenants)
    assert claims <= count // PAGE + 2


def test_quotas_hold_while_many_nodes_claim_from_many_tenants(fabric: Fabric) -> None:
    tenants = many_tenants(fabric, 40, jobs=4)
    fabric.sql("UPDATE tenant SET quota_jobs = 2 WHERE id = ANY(%s::uuid[])", list(map(str, tenants)))
    nodes = [(fabric.add_node(slots=500), Ranking()) for _ in range(4)]

    def work(place: int) -> None:
        for _ in range(20):
            claim_by(fabric, *nodes[place], 1 + place)

    at_once(4, work)
    held = Counter(row[0] for row in fabric.all("SELECT tenant_id FROM allocation"))
    assert set(held) <= set(tenants) and max(held.values()) <= 2
    while claim_by(fabric, *nodes[0], PAGE):
        pass
    assert Counter(row[0] for row in fabric.all("SELECT tenant_id FROM allocation")) == dict.fromkeys(tenants, 2)
    fabric.assert_in_order()


def test_executors_outside_go_by_the_same_order(fabric: Fabric) -> None:
    heavy = fabric.add_tenant(weight=60)
    others = [fabric.add_tenant() for _ in range(40)]
    for tenant in (*others, heavy):
        fabric.submit(*[binary_job()] * 12, tenant=tenant)
    ranking = Ranking()
    got = Counter[UUID]()
    for n in range(60):
        given = claim_external(fabric.db, fabric.settings, f"outside-{n}", None, ranking)
        assert given is not None
        got[fabric.row(given.detail.job.id).tenant_id] += 1
    assert got[heavy] == 12


def test_who_took_something_moves_and_who_was_put_back_comes_last_until_there_is_more_room(fabric: Fabric) -> None:
    tenants = many_tenants(fabric, 3)
    now = [0.0]
    ranking = Ranking(lambda: now[0])
    small = Free(4, 1000, GIB, (gpu(1),))

    def order(free: Free) -> list[UUID] | None:
        known = ranking.known(BACKGROUND, free)
        return None if known is None else [place.tenant_id for place in known]

    assert order(small) is None
    with fabric.db.transaction() as tx:
        read = ranking.read(tx, BACKGROUND)
    one, two, three = (place.tenant_id for place in read)
    assert order(small) == [one, two, three] and {one, two, three} == set(tenants)
    ranking.learn(BACKGROUND, [Place(1.5, 1, one)])
    assert order(small) == [two, three, one]
    ranking.put_back(BACKGROUND, [two], small)
    assert order(small) == order(Free(9, 500, GIB)) == [three, one, two]
    for more in (Free(4, 1001, GIB), Free(4, 1000, 2 * GIB), Free(4, 1000, GIB, (gpu(2),))):
        assert order(more) == [two, three, one]
    now[0] = 3600.0
    assert order(small) is None
