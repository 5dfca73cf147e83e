"""Shapes are rounded up to a coarse grid; a node gives the smallest GPUs that suit, and never more than it has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.domain.resources import GIB, MIB, Free, Resources, total
from tests.factories import gpu, share

milli = st.integers(1, 2_000_000)
memory = st.integers(1, 4096 * GIB)
gpu_memory = st.integers(0, 200 * 10**9)
shapes = st.builds(Resources, milli, memory, st.integers(0, 16), gpu_memory)


@given(shapes)
def test_rounding_never_gives_less_than_was_asked(shape: Resources) -> None:
    rounded = shape.rounded()
    assert rounded.cpus_milli >= shape.cpus_milli
    assert rounded.memory_bytes >= shape.memory_bytes
    assert rounded.gpu_memory_bytes >= shape.gpu_memory_bytes
    assert (rounded.gpus, rounded.gpu_model) == (shape.gpus, shape.gpu_model)


@given(shapes, shapes)
def test_rounding_keeps_the_order_of_asks(one: Resources, other: Resources) -> None:
    for name in ("cpus_milli", "memory_bytes", "gpu_memory_bytes"):
        if getattr(one, name) <= getattr(other, name):
            assert getattr(one.rounded(), name) <= getattr(other.rounded(), name)


@given(shapes)
def test_rounding_twice_changes_nothing(shape: Resources) -> None:
    assert shape.rounded().rounded() == shape.rounded()


@given(st.integers(16 * MIB, 4096 * GIB))
def test_memory_is_rounded_by_an_eighth_at_most(asked: int) -> None:
    assert Resources(100, asked).rounded().memory_bytes - asked <= max(16 * MIB, asked / 8)


def test_varied_asks_share_few_shapes() -> None:
    assert len({Resources(100, mib * MIB).rounded() for mib in range(4096, 8192)}) <= 9
    assert len({Resources(cpus, GIB).rounded() for cpus in range(1, 1000)}) == 10


def test_a_gpu_card_of_16_gb_takes_a_job_that_asks_for_16000_mb() -> None:
    asked = share(gpus=1, gpu_memory=16_000 * 10**6).rounded()
    assert gpu(1, "NVIDIA T4", 16).suits(asked)


def test_a_model_is_matched_by_a_part_of_its_name_in_any_case() -> None:
    card = gpu(1, "NVIDIA A100-SXM4-80GB")
    assert card.suits(share(gpus=1, model="a100"))
    assert not card.suits(share(gpus=1, model="h100"))


def test_an_unhealthy_gpu_is_never_given() -> None:
    broken = type(gpu(1))("GPU-1", "NVIDIA A100", 80 * 10**9, 1, healthy=False)
    assert not Free(1, 1000, GIB, (broken,)).fits(share(gpus=1))


def test_the_smallest_gpus_that_suit_are_given_first() -> None:
    free = Free(4, 8000, 64 * GIB, (gpu(1, "NVIDIA A100", 80), gpu(2, "NVIDIA T4", 16), gpu(3, "NVIDIA T4", 16)))
    left, given_gpus = free.take(share(gpus=1))
    assert given_gpus == (gpu(2, "NVIDIA T4", 16),)
    assert left.gpus == (gpu(1, "NVIDIA A100", 80), gpu(3, "NVIDIA T4", 16))
    _left, large = left.take(share(gpus=1, gpu_memory=40 * 10**9))
    assert large == (gpu(1, "NVIDIA A100", 80),)


def test_gpus_of_one_job_are_of_one_kind_where_there_are_enough() -> None:
    cards = (gpu(0, "NVIDIA T4", 16), gpu(1, memory_gb=40), gpu(2, memory_gb=40), gpu(3, memory_gb=80))
    free = Free(4, 8000, 64 * GIB, cards)
    assert free.take(share(gpus=2))[1] == cards[1:3]
    assert free.take(share(gpus=1))[1] == cards[:1]
    assert free.take(share(gpus=3))[1] == cards[:3]


def test_each_part_of_an_ask_can_be_what_does_not_fit() -> None:
    free = Free(1, 1000, GIB, (gpu(1),))
    assert free.fits(share(1, 1024, 1, 80 * 10**9, "A100"))
    assert not free.fits(share(1.1))
    assert not free.fits(share(1, 1025))
    assert not free.fits(share(1, 64, 2))
    assert not free.fits(share(1, 64, 1, 81 * 10**9))
    assert not free.fits(share(1, 64, 1, 0, "H100"))
    assert not Free(0, 1000, GIB).fits(share())


def test_a_total_counts_gpu_memory_per_gpu() -> None:
    assert total([share(1, 64, 2, 10), share(2, 64, 1, 5)]) == Resources(3000, 128 * MIB, 3, 25)
