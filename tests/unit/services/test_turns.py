"""Turns: so many at a time, so many of them one owner's; who waits gets one as soon as one is free."""

from __future__ import annotations

import math
import threading

import pytest

from app.services.turns import NoTurn, Turns


def test_one_owner_never_takes_all_the_room() -> None:
    turns = Turns(3, 2)
    with turns.turn("a", 0), turns.turn("a", 0):
        with pytest.raises(NoTurn), turns.turn("a", 0):
            pass
        with turns.turn("b", 0):
            with pytest.raises(NoTurn), turns.turn("c", 0):
                pass
    with turns.turn("c", 0):
        pass


def test_who_waits_gets_the_turn_that_is_given_back_also_by_a_failure() -> None:
    turns, waiting, got = Turns(1, 1), threading.Event(), threading.Event()

    def wait() -> None:
        waiting.set()
        with turns.turn("b", 30):
            got.set()

    thread = threading.Thread(target=wait)
    with pytest.raises(ValueError, match="failed"), turns.turn("a", 0):
        thread.start()
        waiting.wait(30)
        assert not got.is_set()
        raise ValueError("failed")
    assert got.wait(30)
    thread.join()


def test_who_is_not_wanted_any_more_waits_no_longer() -> None:
    turns, unwanted = Turns(1, 1), threading.Event()
    with turns.turn("a", 0):
        unwanted.set()
        with pytest.raises(NoTurn), turns.turn("b", math.inf, unwanted):
            pass
