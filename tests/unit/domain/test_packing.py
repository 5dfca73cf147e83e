"""GPU jobs go where they leave the fewest GPUs to spare, and wait for nobody when there is no such place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.domain.packing import GLANCE, Neighbour, PutOff, put_off
from app.domain.resources import GIB, Free, Resources
from benchmarks.fragmentation import measure
from tests.factories import gpu, share

ONE, TWO, EIGHT = (share(gpus=n) for n in (1, 2, 8))
SLICE = replace(share(gpus=1, gpu_memory=20 * 10**9), gpu_shared=True)


def free(gpus: int, slots: int = 64, model: str = "NVIDIA A100") -> Free:
    return Free(slots, 64_000, 256 * GIB, tuple(gpu(n, model) for n in range(gpus)))


def host(name: str, gpus: int, slots: int = 64, model: str = "NVIDIA A100") -> Neighbour:
    return Neighbour(name, free(gpus, slots, model))


@pytest.mark.parametrize(
    ("need", "mine", "others", "waiting", "expected"),
    [
        pytest.param(ONE, 8, [host("b", 2)], 1, PutOff(1, ("b",)), id="the fuller node"),
        pytest.param(ONE, 8, [host("b", 4), host("c", 1)], 1, PutOff(1, ("c",)), id="the fullest of them"),
        pytest.param(ONE, 8, [host("b", 8)], 1, PutOff(), id="as empty as this one"),
        pytest.param(ONE, 1, [host("b", 8)], 1, PutOff(), id="this one is the tightest"),
        pytest.param(ONE, 1, [host("b", 1)], 1, PutOff(), id="an exact fit here"),
        pytest.param(TWO, 8, [host("b", 1)], 1, PutOff(), id="only this one can"),
        pytest.param(TWO, 8, [], 1, PutOff(), id="nobody else"),
        pytest.param(EIGHT, 8, [host("b", 7)], 1, PutOff(), id="a whole host"),
        pytest.param(ONE, 8, [host("b", 2)], 3, PutOff(2, ("b",)), id="no more than the other has room for"),
        pytest.param(ONE, 8, [host("b", 2), host("c", 1)], 3, PutOff(3, ("c", "b")), id="over several nodes"),
        pytest.param(ONE, 8, [host("b", 2)], None, PutOff(), id="many: only if there is room for a glance"),
        pytest.param(ONE, 8, [host("b", 7)], None, PutOff(GLANCE, ("b",)), id="many, and there is"),
        pytest.param(ONE, 8, [host("b", 2, slots=0)], 1, PutOff(), id="the other has no slot"),
        pytest.param(share(gpus=1, model="H100"), 8, [host("b", 2)], 1, PutOff(), id="the other has another model"),
        pytest.param(share(), 8, [host("b", 2)], 1, PutOff(), id="no GPU is asked"),
    ],
)
def test_what_is_left_to_others(
    need: Resources, mine: int, others: list[Neighbour], waiting: int | None, expected: PutOff
) -> None:
    here = free(mine, model="NVIDIA H100" if need.gpu_model else "NVIDIA A100")
    assert put_off(need, here, others, waiting) == expected


def test_a_slice_goes_where_a_gpu_is_shared_already() -> None:
    cards = tuple(replace(gpu(n), sharing=True) for n in range(4))
    opened = (replace(cards[0], held_bytes=10**9), *cards[1:])
    whole, open_ = Free(9, 9000, GIB, cards), Free(9, 9000, GIB, opened)
    assert put_off(SLICE, whole, [Neighbour("b", open_)], 1) == PutOff(1, ("b",))
    assert put_off(SLICE, open_, [Neighbour("b", Free(9, 9000, GIB, cards[:1]))], 1) == PutOff()


def test_packing_keeps_more_hosts_whole_than_first_come_under_the_same_load() -> None:
    told = measure(hosts=4, hours=8, share=0.6, delay_s=1.0, seeds=(1, 2, 3))
    first, packed = told["first come"], told["packed"]
    assert packed["host_free"] > first["host_free"]
    assert packed["wait8_p90_s"] < first["wait8_p90_s"]
    assert abs(packed["utilisation"] - first["utilisation"]) < 0.02
