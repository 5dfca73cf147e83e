"""What a submit in the jobs contract asks for: one job, an array of the same, or one of a bulk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import marshmallow as ma
from marshmallow import fields

from app.api.arguments import StrictSchema
from app.api.fields import Choice, Flag, Number, Text, Whole, Word
from app.api.jobs.array_schemas import ArraySpread, Parents
from app.api.jobs.schemas import MAX_BULK, PRIORITIES, counted
from app.api.program import MAX_TOTAL_BYTES, Arguments, Environment, Image, Sha256, Url, start_bytes
from app.domain.job import MAX_MEMBERS

MAX_SCRIPT = 2**20
YEAR_S = 366 * 86_400
_ONE = "give an image, or a script, or binary_url with binary_sha256"


class ResourcesAsked(StrictSchema):
    """What a job holds while it runs; given limits are enforced. Absent ones are the server's small defaults."""

    cpus = Number(0, 4096, above=True, metadata={"description": "CPUs; fractions are allowed."})
    memory_mib = Whole(1, 2**34, metadata={"description": "Memory in MiB."})
    gpus = Whole(0, 1024, metadata={"description": "GPUs, all on one node."})
    gpu_memory_mib = Whole(1, 2**24, metadata={"description": "Least memory of each GPU in MiB."})
    gpu_model = Text(metadata={"description": "A part of the GPU's model name, in any case."})
    gpu_shared = Flag(
        metadata={"description": "A slice of one GPU: gpu_memory_mib of it, beside slices of others."},
    )

    @ma.validates_schema
    def _slice(self, data: Mapping[str, Any], **_: Any) -> None:
        if not data.get("gpu_shared"):
            wanted = [name for name in ("gpu_memory_mib", "gpu_model") if data.get(name)]
            if wanted and not data.get("gpus"):
                raise ma.ValidationError(f"must be at least 1 beside {' and '.join(wanted)}", "gpus")
            return
        if data.get("gpus", 1) != 1:
            raise ma.ValidationError(f"must be 1 beside gpu_shared, not {data['gpus']}", "gpus")
        if "gpu_memory_mib" not in data:
            raise ma.ValidationError("must be given beside gpu_shared: it is the size of the slice", "gpu_memory_mib")


class GangAsked(StrictSchema):
    """A job of several members: processes that start together, on one node or several, or not at all."""

    members = Whole(1, MAX_MEMBERS, required=True, metadata={"description": "Each holds the resources asked for."})


class JobAsked(StrictSchema):
    """A job: a program by URL and SHA-256 (or, additive, a container image or a script), its start and its class."""

    type = Word(required=True, metadata={"example": "data-processing"})
    binary_url = Url(
        metadata={"description": "Where to download the executable; needed unless there is an image or a script."}
    )
    binary_sha256 = Sha256(metadata={"description": "Its digest; anything else is never run."})
    script = Text(most=MAX_SCRIPT, one_line=False, metadata={"description": "Run by /bin/sh instead of a binary."})
    image = Image(metadata={"description": "A container image to run instead of a binary.", "example": "busybox:1.36"})
    command = Arguments(load_default=list, metadata={"description": "Takes the place of the image's entry point."})
    arguments = Arguments(load_default=list)
    env_variables = Environment(load_default=dict)
    priority = Choice(*PRIORITIES, required=True)
    resources = fields.Nested(ResourcesAsked)
    gang = fields.Nested(GangAsked)
    timeout_seconds = Number(0, YEAR_S, above=True, metadata={"description": "Run time limit; none when absent."})
    grace_seconds = Number(0, 3600, metadata={"description": "Seconds from SIGTERM to SIGKILL."})
    preemptible = Flag(metadata={"description": "Whether it may be stopped for others; absent: as its tenant's jobs."})
    max_retries = Whole(0, 100, load_default=0, metadata={"description": "Failures after which to run it again."})
    hold = Flag(load_default=False, metadata={"description": "It waits until it is released."})
    backoff_seconds = Number(
        0, 3600, load_default=1, metadata={"description": "First wait before a retry; it doubles."}
    )
    depends_on = Parents(load_default=list)
    array = fields.Nested(ArraySpread)

    @ma.validates_schema
    def _one_program(self, data: Mapping[str, Any], **_: Any) -> None:
        problems = _program_problems(data)
        if problems:
            raise ma.ValidationError({name: [problem] for name, problem in problems.items()})
        if "array" in data and data["hold"]:
            raise ma.ValidationError({"hold": ["must not be true beside array: hold its jobs one by one"]})
        size = start_bytes([*data["command"], *data["arguments"]], data["env_variables"])
        if size > MAX_TOTAL_BYTES:
            message = f"has {size} bytes together with command and env_variables; at most {MAX_TOTAL_BYTES} are allowed"
            raise ma.ValidationError({"arguments": [message]})

    def load(self, data: Any, **options: Any) -> Any:
        """As the framework loads it, but bodies without a fault take a shorter way, 10 times as fast: bulk needs it."""
        try:
            if self.many and not options and isinstance(data, list) and 1 <= len(data) <= MAX_BULK:
                return [self._faultless(one) for one in data]
        except (ma.ValidationError, KeyError, TypeError, AttributeError):
            pass  # The framework finds the fault again, and all others, with their places.
        return super().load(data, **options)

    def _faultless(self, one: Mapping[str, Any]) -> dict[str, Any]:
        loaded = {name: self.load_fields[name].deserialize(value, name, one) for name, value in one.items()}
        for name, field in self.load_fields.items():
            if name not in loaded and (field.required or field.load_default is not ma.missing):
                loaded[name] = field.deserialize(ma.missing)
        self._one_program(loaded)
        return loaded


def _program_problems(data: Mapping[str, Any]) -> dict[str, str]:
    """What keeps a body from naming exactly one program, by field."""
    binary = [name for name in ("binary_url", "binary_sha256") if name in data]
    chosen = "image" if "image" in data else "script" if "script" in data else None
    if chosen is None:
        why = f"is required beside {binary[0]}" if binary else "is required, unless there is an image or a script"
        problems = {name: why for name in ("binary_url", "binary_sha256") if name not in data}
    else:
        others = [*binary, *(["script"] if chosen == "image" and "script" in data else [])]
        problems = dict.fromkeys(others, f"must not be given beside {chosen}: {_ONE}")
    if data["command"] and chosen != "image":
        problems["command"] = "is for an image alone; a binary or a script takes arguments"
    return problems


class BulkAsked(JobAsked):
    """One of up to 1000 jobs that are submitted together, all or none. An array is submitted on its own."""

    class Meta:
        """Nothing unknown passes; an array is no part of a bulk."""

        unknown = ma.RAISE
        exclude = ("array",)

    @ma.pre_load(pass_collection=True)
    def _countable(self, data: Any, **_: Any) -> Any:
        return counted(data, "jobs")
