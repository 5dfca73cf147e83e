"""Marks on views: who may use them. A view without a mark is for users with a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from flask import Request, current_app

from app.api.auth.principal import USER
from config.settings import Settings

View = TypeVar("View", bound=Callable[..., Any])


def needs(*roles: str) -> Callable[[View], View]:
    """Marks a view as open to callers with one of `roles` (default: user; an admin may always)."""
    return _marks("_roles", roles)


def public(when: Callable[[Settings], bool]) -> Callable[[View], View]:
    """Marks a view as open to everyone where the settings are so."""
    return _marks("_public", when)


def always(_: Settings) -> bool:
    """For `public`: whatever the settings are."""
    return True


def never(_: Settings) -> bool:
    """For a view without `public`."""
    return False


def browsable(view: View) -> View:
    """Marks a read-only view as usable from a browser, which can send the token as a Basic password only."""
    return _marks("_browsable", True)(view)


@dataclass(frozen=True)
class Rules:
    """The marks of one view."""

    roles: tuple[str, ...] = (USER,)
    public: Callable[[Settings], bool] = never
    browsable: bool = False


def rules_of(view: Callable[..., Any] | None) -> Rules:
    """The marks of a view; those of a plain one for None."""
    plain = Rules()
    return Rules(
        roles=tuple(getattr(view, "_roles", plain.roles)),
        public=getattr(view, "_public", plain.public),
        browsable=getattr(view, "_browsable", plain.browsable),
    )


def rules_for(request: Request) -> Rules:
    """The marks of the view that a request of the current application leads to."""
    return rules_of(current_app.view_functions.get(request.endpoint or ""))


def _marks(name: str, value: object) -> Callable[[View], View]:
    def mark(view: View) -> View:
        setattr(view, name, value)
        return view

    return mark
