"""Classes are served in strict order, each from the queue of its name."""

from __future__ import annotations

from app.domain.priority import PriorityClass


def test_foreground_is_served_before_background_before_best_effort() -> None:
    assert [c.word for c in sorted(PriorityClass)] == ["foreground", "background", "best_effort"]


def test_a_class_without_a_number_has_its_own_default() -> None:
    assert {c.word: c.default_priority for c in PriorityClass} == {
        "foreground": 1000,
        "background": 500,
        "best_effort": 100,
    }
