"""The two scales of priorities agree with the classes and with each other."""

from __future__ import annotations

from itertools import pairwise

import pytest

from app.domain.priority import MAX_PRIORITY, PriorityClass, class_of, class_of_percent, from_percent, to_percent

PERCENTS, PRIORITIES = range(101), range(MAX_PRIORITY + 1)


@pytest.mark.parametrize(
    ("percent", "priority", "of"),
    [
        (0, 0, PriorityClass.BEST_EFFORT),
        (29, 499, PriorityClass.BEST_EFFORT),
        (30, 500, PriorityClass.BACKGROUND),
        (69, 999, PriorityClass.BACKGROUND),
        (70, 1000, PriorityClass.FOREGROUND),
        (100, 5000, PriorityClass.FOREGROUND),
    ],
)
def test_the_classes_end_where_they_should(percent: int, priority: int, of: PriorityClass) -> None:
    assert from_percent(percent) == priority
    assert to_percent(priority) == percent
    assert class_of(priority) == class_of_percent(percent) == of


def test_a_percentage_comes_back_as_it_was() -> None:
    assert [to_percent(from_percent(percent)) for percent in PERCENTS] == list(PERCENTS)


def test_both_ways_are_monotone_and_keep_the_class() -> None:
    assert all(a < b for a, b in pairwise(from_percent(percent) for percent in PERCENTS))
    assert all(a <= b for a, b in pairwise(to_percent(priority) for priority in PRIORITIES))
    assert all(class_of_percent(to_percent(priority)) == class_of(priority) for priority in PRIORITIES)


@pytest.mark.parametrize("of", PriorityClass)
def test_a_class_without_a_number_lies_in_its_own_range(of: PriorityClass) -> None:
    assert class_of(of.default_priority) == of
