"""Slices of GPUs in the jobs contract: what is asked, echoed and refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.conftest import Caller
from tests.contract.jobs_document import is_error


def body(**resources: Any) -> dict[str, Any]:
    return {"type": "train", "script": "true", "priority": "background", "resources": resources}


@pytest.mark.parametrize("gpus", [{}, {"gpus": 1}])
def test_a_slice_is_asked_by_its_memory(api: Caller, gpus: dict[str, int]) -> None:
    asked = {"gpu_shared": True, "gpu_memory_mib": 20_480, **gpus}
    made = api.post("/jobs", json=body(**asked)).json
    assert api.get(f"/jobs/{made['id']}").json["resources"] == asked
    told = api.get(f"/jobs/{made['id']}/explain").json
    assert (told["asks"]["gpus"], told["asks"]["gpu_shared"]) == (1, True)


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"gpu_shared": True}, "gpu_memory_mib: must be given beside gpu_shared"),
        ({"gpu_shared": True, "gpu_memory_mib": 1, "gpus": 2}, "gpus: must be 1 beside gpu_shared, not 2"),
        ({"gpu_shared": True, "gpu_memory_mib": 1, "gpus": 0}, "gpus: must be 1 beside gpu_shared, not 0"),
        ({"gpu_shared": 1, "gpu_memory_mib": 1}, "must be true or false"),
    ],
)
def test_what_is_no_slice_is_refused(api: Caller, resources: dict[str, Any], words: str) -> None:
    answer = api.post("/jobs", json=body(**resources))
    assert is_error(answer, 400)
    assert words in str(answer.json)


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"gpu_memory_mib": 4096}, "gpus: must be at least 1 beside gpu_memory_mib"),
        ({"gpu_model": "A100", "gpu_memory_mib": 1, "gpus": 0}, "at least 1 beside gpu_memory_mib and gpu_model"),
    ],
)
def test_a_kind_of_gpu_without_any_is_refused(api: Caller, resources: dict[str, Any], words: str) -> None:
    answer = api.post("/jobs", json=body(**resources))
    assert is_error(answer, 400)
    assert words in str(answer.json)


def test_gpus_are_given_whole_unless_a_slice_is_asked(api: Caller) -> None:
    made = api.post("/jobs", json=body(gpus=1, gpu_shared=False)).json
    assert api.get(f"/jobs/{made['id']}/explain").json["asks"]["gpu_shared"] is False
