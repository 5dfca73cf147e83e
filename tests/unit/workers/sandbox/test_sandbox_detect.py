"""Detection refuses clearly when a sandbox is required, and warns once per lack when it is preferred."""

from __future__ import annotations

import os

import pytest

from workers.sandbox.detect import SandboxUnavailable, detect


def test_required_and_missing_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(SandboxUnavailable, match=r"CFAB_SANDBOX=required.*install the package bubblewrap"):
        detect("required", bwrap="/nonexistent/bwrap")


def test_required_and_broken_is_an_error_with_the_reason() -> None:
    with pytest.raises(SandboxUnavailable, match=r"/bin/false does not work here \(exit code 1\)"):
        detect("required", bwrap="/bin/false")


def test_preferred_and_missing_is_one_warning() -> None:
    plan = detect("preferred", bwrap="/nonexistent/bwrap")
    assert plan.sandbox == "off" and plan.bwrap is None
    assert len([warning for warning in plan.warnings if "without a sandbox" in warning]) == 1


def test_off_tries_nothing_and_still_separates_users() -> None:
    plan = detect("off", uid_base=300_000, bwrap="/nonexistent/bwrap")
    assert (plan.sandbox, plan.warnings) == ("off", ())
    assert plan.uid_base == (300_000 if os.geteuid() == 0 else None)


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'maybe'"):
        detect("maybe")
