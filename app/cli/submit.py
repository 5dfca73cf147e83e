"""`cfab submit`: hand in a program by URL and SHA-256, a shell script, or a container image."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import click

from app.cli.client import Client
from app.cli.failure import ExitCode, Failure
from app.cli.follow import follow
from app.cli.options import PRIORITIES, Duration, Mebibytes, fabric_command
from app.cli.rehearsal import show_rehearsal
from app.cli.render import print_json
from app.cli.wait import end_code, wait_for, wait_for_array

_SERVING = "workers fetch by URL: serve the file over HTTP and give its URL, or send a script with --script"


@click.command("submit", context_settings={"ignore_unknown_options": False})
@click.argument("words", nargs=-1, metavar="[URL|PROGRAM] [ARGUMENT]...")
@click.option("--sha256", metavar="HEX", help="SHA-256 of the program at URL; nothing else is ever run.")
@click.option("--file", "copy", metavar="PATH", help="A local copy of the program, to take the SHA-256 from.")
@click.option("--script", metavar="FILE|-", help="A script for /bin/sh instead of a URL; - reads standard input.")
@click.option("--image", metavar="REF", help="A container image instead of a URL; after -- a command in it.")
@click.option("--type", "job_type", metavar="WORD", help="The job's type; default: the program's name.")
@click.option("--priority", type=click.Choice(PRIORITIES), default="background", show_default=True)
@click.option("--arg", "arguments", multiple=True, metavar="TEXT", help="One argument (repeat); also after --.")
@click.option("--env", "environment", multiple=True, metavar="NAME=VALUE", help="One variable (repeat).")
@click.option("--timeout", type=Duration(), help="Time limit from the process's start, such as 90, 15m, 2h.")
@click.option("--grace", type=Duration(), help="Time between SIGTERM and SIGKILL.")
@click.option("--retries", type=click.IntRange(0), help="Tries after a failure of the job's own.")
@click.option("--cpus", type=float, help="CPUs to reserve and hold to, such as 0.5.")
@click.option("--memory", type=Mebibytes(), help="Memory to reserve and hold to, in MiB or such as 4G.")
@click.option("--gpus", type=click.IntRange(0), help="GPUs to reserve.")
@click.option("--members", type=click.IntRange(1), metavar="N", help="Run N processes that start together (a gang).")
@click.option("--gpu-memory", type=Mebibytes(), help="Least memory of each GPU.")
@click.option("--gpu-model", help="A part of the GPU's name, such as A100.")
@click.option("--hold", is_flag=True, help="It waits until `cfab release`.")
@click.option("--gpu-shared", is_flag=True, default=None, help="A slice of one GPU: --gpu-memory of it, beside others.")
@click.option(
    "--preemptible/--not-preemptible",
    default=None,
    help="Whether others may take its place; default: its tenant's word.",
)
@click.option("--array", type=click.IntRange(1), metavar="N", help="N jobs, each with its CFAB_ARRAY_INDEX from 0.")
@click.option("--max-parallel", type=click.IntRange(1), metavar="N", help="Of an array: so many at a time.")
@click.option(
    "--after",
    "parents",
    multiple=True,
    metavar="ID[:ok|any|notok]",
    help="Start when this job or array has completed (ok), ended (any), not completed (notok); repeat.",
)
@click.option("--key", metavar="TEXT", help="Idempotency key: a repeated submit with it makes no second job.")
@click.option("--dry-run", "dry", is_flag=True, help="Submit nothing; say what would become of it: 4 refused.")
@click.option("--wait", "waits", is_flag=True, help="Return when the job has ended: 0 completed, 1 failed.")
@click.option("--follow", "follows", is_flag=True, help="Like --wait, and print the log as it comes.")
@fabric_command
def command(*, client: Client, as_json: bool, key: str | None, waits: bool, follows: bool, **asked: Any) -> ExitCode:
    """Submit one job, or an array of jobs, and print its id.

    cfab submit https://example.com/train --sha256 9f86d0… -- --epochs 3

    cfab submit --script - --follow <<< 'echo hello'

    cfab submit --image python:3.12-slim --follow -- python -c 'print(6 * 7)'
    """
    if follows and asked["array"] is not None:
        raise Failure(ExitCode.USAGE, "--follow is for one job; --wait waits for an array")
    if asked.pop("dry"):
        return show_rehearsal(client.rehearse(job_body(**asked)), as_json)
    job = client.submit(job_body(**asked), key)
    if not waits and not follows:
        print_json(job) if as_json else click.echo(job["id"])
        return ExitCode.OK
    click.echo(job["id"], err=True)
    if follows:
        follow(client, job["id"], as_json)
    wait = wait_for_array if job.get("array") else wait_for
    ended = wait(client, job["id"], None, quiet=True)
    if as_json and not follows:
        print_json(ended)
    return end_code(ended, show=not as_json)


def job_body(words: Sequence[str], **asked: Any) -> dict[str, Any]:
    """The request body for what was asked on the command line; raises Failure USAGE where there is none."""
    program, name, arguments = _program(words, **asked)
    body: dict[str, Any] = {"priority": asked["priority"], **program}
    body["type"] = asked["job_type"] or re.sub(r"[^\w.+-]+", "-", name)[:255] or "job"
    body["arguments"] = [*asked["arguments"], *arguments]
    body["env_variables"] = dict(_variable(text) for text in asked["environment"])
    named = {"timeout_seconds": "timeout", "grace_seconds": "grace", "max_retries": "retries",
             "preemptible": "preemptible"}  # fmt: skip
    resources = {"cpus": "cpus", "memory_mib": "memory", "gpus": "gpus", "gpu_memory_mib": "gpu_memory",
                 "gpu_model": "gpu_model", "gpu_shared": "gpu_shared"}  # fmt: skip
    body |= {field: asked[option] for field, option in named.items() if asked[option] is not None}
    if asked["hold"]:
        body["hold"] = True
    if share := {field: asked[option] for field, option in resources.items() if asked[option] is not None}:
        body["resources"] = share
    if asked["members"] is not None:
        body["gang"] = {"members": asked["members"]}
    if asked["array"] is not None:
        body["array"] = {"count": asked["array"]}
        if asked["max_parallel"] is not None:
            body["array"]["max_parallel"] = asked["max_parallel"]
    elif asked["max_parallel"] is not None:
        raise Failure(ExitCode.USAGE, "--max-parallel bounds an array; give --array N too")
    if asked["parents"]:
        body["depends_on"] = [_parent(text) for text in asked["parents"]]
    return body


def _program(
    words: Sequence[str], script: str | None, image: str | None, sha256: str | None, copy: str | None, **_: Any
) -> tuple[dict[str, Any], str, Sequence[str]]:
    """The fields that say what to run, its name, and those of the words that are its arguments."""
    other = "--script" if script is not None else "--image"
    if script is not None and image is not None:
        raise Failure(ExitCode.USAGE, "--script and --image are two programs; give one of them")
    if (script is not None or image is not None) and (sha256 or copy):
        raise Failure(ExitCode.USAGE, f"{other} takes no --sha256 and no --file")
    if script is not None:
        return {"script": _script(script)}, "script" if script == "-" else Path(script).name, words
    if image is not None:
        name = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
        # As of a URL, the first word is the program and the others go with --arg: the image's own runs without any.
        return {"image": image, **({"command": [words[0]]} if words else {})}, name, words[1:]
    if not words:
        raise Failure(ExitCode.USAGE, "nothing to run: give a URL with --sha256, --script FILE, or --image REF")
    url = words[0]
    program = {"binary_url": url, "binary_sha256": _checksum(url, sha256, copy)}
    return program, PurePosixPath(unquote(urlsplit(url).path)).name, words[1:]


def _script(source: str) -> str:
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except OSError as exc:
        raise Failure(ExitCode.USAGE, f"the script {source} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise Failure(ExitCode.USAGE, f"the script {source} is no UTF-8 text; submit programs by URL") from exc
    if not text.strip():
        raise Failure(ExitCode.USAGE, f"the script {source} is empty")
    return text


def _checksum(url: str, sha256: str | None, copy: str | None) -> str:
    if urlsplit(url).scheme not in {"http", "https"}:
        raise Failure(ExitCode.USAGE, f"{url!r} is no http or https URL; {_SERVING}")
    if copy is not None:
        try:
            with Path(copy).open("rb") as program:
                measured = hashlib.file_digest(program, "sha256").hexdigest()
        except OSError as exc:
            raise Failure(ExitCode.USAGE, f"--file {copy} cannot be read: {exc.strerror}") from exc
        if sha256 and sha256.lower() != measured:
            raise Failure(ExitCode.USAGE, f"--file {copy} has SHA-256 {measured}, but --sha256 says {sha256}")
        return measured
    if not sha256:
        message = "--sha256 is needed: `sha256sum FILE` prints it, or name a copy of the program with --file"
        raise Failure(ExitCode.USAGE, message)
    return sha256


def _parent(text: str) -> dict[str, str]:
    parent, _, word = text.partition(":")
    if word not in {"", "ok", "any", "notok"} or not parent:
        raise Failure(ExitCode.USAGE, f"--after {text!r} is no ID, ID:ok, ID:any or ID:notok")
    return {"job": parent, "on": "after" + (word or "ok")}


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise Failure(ExitCode.USAGE, f"--env {text!r} is no NAME=VALUE")
    return name, value
