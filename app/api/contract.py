"""A contract as the listeners serve it: where it lives, its routes, and the form of its errors.

A spoke makes one of these from its blueprint; nothing here knows any contract by name.
"""

from __future__ import annotations

from dataclasses import dataclass

from marshmallow import Schema

from app.api.arguments import Blueprint
from app.api.errors import ErrorForm


@dataclass(frozen=True)
class Contract:
    """One of the documented REST interfaces, served by every listener at `at`.

    `outside` holds routes that its document puts beside the prefix, such as `/metrics`.
    """

    name: str
    title: str
    at: str
    blueprint: Blueprint
    errors: ErrorForm
    error_schema: type[Schema]
    outside: tuple[Blueprint, ...] = ()
