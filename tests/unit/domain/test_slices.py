"""Slices of a GPU: never beyond its memory, never beside somebody who has it to himself, packed onto few GPUs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import amounts
from app.domain.explain import Ask, Code, Fit, NodeNow, fit_of, nearest, node_causes
from app.domain.resources import GIB, Free, Gpu, Resources
from tests.factories import gpu, share

GB = 10**9


def piece(gigabytes: int, model: str = "") -> Resources:
    return Resources(100, 1, 1, gigabytes * GB, model, gpu_shared=True)


def shared(number: int, memory_gb: int = 80) -> Gpu:
    return replace(gpu(number, memory_gb=memory_gb), sharing=True)


def free(*gpus: Gpu) -> Free:
    return Free(100, 100_000, 64 * GIB, gpus)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 100)), max_size=30), st.lists(st.booleans(), max_size=4))
def test_no_order_of_takes_gives_more_than_there_is(asks: list[tuple[bool, int]], sharing: list[bool]) -> None:
    cards = [replace(gpu(n), sharing=one) for n, one in enumerate(sharing)]
    left = free(*cards)
    whole: list[str] = []
    slices: dict[str, int] = {}
    for is_slice, gigabytes in asks:
        need = piece(gigabytes) if is_slice else share(gpus=1, gpu_memory=gigabytes * GB)
        if not left.fits(need):
            continue
        left, (card,) = left.take(need)
        if is_slice:
            slices[card.uuid] = slices.get(card.uuid, 0) + gigabytes
        else:
            whole.append(card.uuid)
    assert len(set(whole)) == len(whole)
    assert not set(whole) & set(slices)
    assert all(total <= 80 for total in slices.values())
    assert all(card.sharing for card in cards if card.uuid in slices)


def test_slices_fill_one_gpu_before_they_open_another() -> None:
    left, given_gpus = free(shared(1), shared(2)), []
    for _ in range(5):
        left, (card,) = left.take(piece(20))
        given_gpus.append(card.uuid)
    assert given_gpus == ["GPU-1"] * 4 + ["GPU-2"]
    assert [card.free_bytes for card in left.gpus] == [0, 60 * GB]


def test_whoever_wants_a_gpu_to_himself_gets_one_that_is_not_shared_first() -> None:
    _left, (card,) = free(shared(1), gpu(2)).take(share(gpus=1))
    assert card.uuid == "GPU-2"
    opened, _ = free(shared(1)).take(piece(1))
    assert not opened.fits(share(gpus=1))


def test_gpus_are_given_in_the_order_of_the_bus() -> None:
    _left, cards = free(gpu(1, memory_gb=80), gpu(2, memory_gb=16), gpu(3, memory_gb=16)).take(share(gpus=3))
    assert [card.index for card in cards] == [1, 2, 3]


def test_what_is_held_is_taken_off() -> None:
    left = free(shared(1), gpu(2), shared(3)).without({"GPU-1": 60 * GB, "GPU-2": None, "GPU-9": None})
    assert [(card.uuid, card.free_bytes // GB) for card in left.gpus] == [("GPU-1", 20), ("GPU-3", 80)]
    assert left.take(piece(20))[1][0].uuid == "GPU-1"
    assert left.take(piece(21))[1][0].uuid == "GPU-3"


@pytest.mark.parametrize(("gpus", "memory"), [(0, GB), (2, GB), (1, 0)])
def test_a_slice_is_of_one_gpu_and_has_a_size(gpus: int, memory: int) -> None:
    with pytest.raises(ValueError, match="a slice is of one GPU"):
        Resources(1, 1, gpus, memory, gpu_shared=True)


@pytest.mark.parametrize(
    ("card", "fit"),
    [
        (gpu(1), Fit.NOT_SHARED),
        (replace(shared(1), healthy=False), Fit.GPU_OUT),
        (shared(1, 16), Fit.TOO_SMALL),
        (shared(1), Fit.FITS),
    ],
)
def test_each_reason_why_a_node_cannot_give_a_slice_is_told_apart(card: Gpu, fit: Fit) -> None:
    assert fit_of(NodeNow("n", free(card), free(card)), Ask(piece(20))) == fit


def test_a_fabric_that_shares_no_gpu_is_explained() -> None:
    nodes = [NodeNow("n", free(gpu(1)), free(gpu(1)))]
    (cause,) = node_causes(nearest(nodes, Ask(piece(20))), Ask(piece(20)), [], 0)
    assert cause.code == Code.NO_SHARED_GPU
    assert cause.message.startswith("The job asks for 20 GB of a shared GPU, and no live node")


def test_a_slice_in_words() -> None:
    assert amounts.gpus(piece(20, "A100")) == "20 GB of a shared A100 GPU"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (20 * 2**30, "20 GiB"), (512 * 2**20, "512 MiB"), (80 * 10**9, "80 GB"), (16_000 * 10**6, "16 GB"),
        (16 * 10**8, "1.6 GB"), (1, "1e-09 GB"), (2**20 * 10**6, "1048.58 GB"),
    ],
)  # fmt: skip
def test_memory_of_gpus_is_told_in_the_unit_it_was_asked_in(asked: int, words: str) -> None:
    assert amounts.gpu_memory(asked) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (31_622_400.0, "31622400"), (3.599999999999964e17, "359999999999996416"), (0.1, "0.1"), (2, "2"),
        (1048576, "1048576"), (1e300, "1e+300"), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_numbers_have_no_exponent(number: float, words: str) -> None:
    assert amounts.digits(number) == words
