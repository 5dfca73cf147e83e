"""`cfab`: the group of all commands. Each is imported when it is used, so that the others cost nothing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import click

# Where a command is, and its line in the list of commands: printing the list must import none of them.
_RUN: Mapping[str, tuple[str, str]] = {
    "up": ("app.local.up:command", "Run the whole fabric on this machine until Ctrl-C."),
    "token": ("app.local.tokens.command:command", "Print the machine's token, or sign one for a tenant."),
    "demo": ("app.local.demo.command:command", "Show the whole fabric at work, then leave nothing."),
    "simulate": ("app.cli.simulate:command", "Try the scheduler on a load, in virtual time."),
}
_USE: Mapping[str, tuple[str, str]] = {
    "submit": ("app.cli.submit:command", "Submit a program or a script."),
    "ps": ("app.cli.ps:command", "List jobs, newest first."),
    "show": ("app.cli.show:command", "Show one job with its attempts."),
    "explain": ("app.cli.explain:command", "Say why a job waits."),
    "top": ("app.cli.top:command", "Show what running jobs use, live."),
    "events": ("app.cli.events:command", "Tell what happened to jobs, or follow it."),
    "logs": ("app.cli.logs:command", "Print a job's output, or follow it."),
    "wait": ("app.cli.wait:command", "Wait until a job has ended."),
    "stop": ("app.cli.stop:command", "Stop a job, pending or running."),
    "hold": ("app.cli.control:hold", "Keep a pending job from being started."),
    "release": ("app.cli.control:release", "Let a held job start."),
    "reprioritise": ("app.cli.control:reprioritise", "Give a pending job another class or priority."),
    "requeue": ("app.cli.control:requeue", "Stop a job and let it wait again."),
    "resubmit": ("app.cli.control:resubmit", "Submit the same as a job anew."),
    "checkpoint": ("app.cli.control:checkpoint", "Say that a running job has saved its work."),
    "cancel": ("app.cli.cancel:command", "Cancel a job that has not started."),
    "array": ("app.cli.array:command", "List and show arrays, cancel them, run failed indices again."),
    "nodes": ("app.cli.nodes:command", "List, show, drain, resume, label and forget nodes; take GPUs out and in."),
    "plan": ("app.cli.plan:command", "Show what the planner reserves, for whom, and who makes room."),
    "tenant": ("app.cli.tenant:command", "Make, list, show and change tenants and their quotas."),
}
_ROLES: Mapping[str, tuple[str, str]] = {
    "api": ("app.cli.api:command", "Serve the API."),
    "worker": ("app.cli.worker:command", "Run jobs on this host."),
    "scheduler": ("app.cli.scheduler:command", "Decide what should happen next."),
    "flower": ("app.cli.flower:command", "Serve Flower, the operators' view of nodes and attempts."),
    "migrate": ("app.cli.migrate:command", "Bring the database to this version's schema."),
}
_SECTIONS = (("Use it", _USE), ("One machine", _RUN), ("Roles (settings come from CFAB_… variables)", _ROLES))
_COMMANDS = {**_RUN, **_USE, **_ROLES}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, as the list shows them."""
        return [name for _, section in _SECTIONS for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The imported command, or None for an unknown name."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing any."""
        for title, section in _SECTIONS:
            with formatter.section(title):
                formatter.write_dl([(name, line) for name, (_, line) in section.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="compute-fabric", prog_name="cfab")
def main() -> None:
    """Compute Fabric: runs verified work by priority, under quotas, and loses nothing."""


if __name__ == "__main__":
    main(prog_name="cfab")
