"""Commands that work on a cluster's jobs: `throng submit`, `throng job list|logs|cancel`."""

from __future__ import annotations

import datetime
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer
from rich.table import Table

from ..scenarios.errors import InputError
from .cli_options import console

if TYPE_CHECKING:  # seconds to import
    from ray.job_submission import JobDetails, JobSubmissionClient

SENT = ("run", "compare", "validate", "whatif", "evaluate")  # commands that simulate
UNSENT = ("scenario.net", "scenario.demand", "scenario.additional", "target.observed")

Address = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Job server, e.g. http://HEAD:8265 [default: RAY_ADDRESS, or this machine]."),
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="Its id, as `throng submit` or `throng job list` says it.")]

job_app = typer.Typer(no_args_is_help=True, help="List, follow and cancel jobs of a Ray cluster.")


def submit(
    command: Annotated[
        list[str],
        typer.Argument(metavar="-- COMMAND …", help="As after `throng`: run, compare, validate, whatif, evaluate."),
    ],
    address: Address = None,
    workdir: Annotated[
        Path | None,
        typer.Option(
            help="Folder that all machines of the cluster see; paths such as runs/… lead there [default: this folder]."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="First part of the job's id [default: from the command].")] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="The cluster sees the named files at the same paths: send none of them.")
    ] = False,
    python: Annotated[
        str | None,
        typer.Option(
            help="Python with Ray and SUMO on the cluster [default: of a cluster on this machine, this one; python]."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow what the job prints until it ends.")] = True,
) -> None:
    """Run a command as a job of a Ray cluster: `throng submit -- run examples/bologna.yaml`.

    Sends Throng itself (its wheel) and the files that the command names; Ray, SUMO and all else must be there. The same
    command finds its job while that is under way; after it has failed, was cancelled or its cluster was lost, the same
    command starts another, which goes on where the last one stopped.
    """
    from ..cluster import jobs
    from .packing import pack

    _check(command)
    client = jobs.connect(address)
    with tempfile.TemporaryDirectory(prefix="throng-job-") as scratch:
        interpreter = python or (sys.executable if _here(address) else "python")
        package = pack(command, (workdir or Path.cwd()).resolve(), Path(scratch), interpreter, shared)
        wanted = f"{name or _name(command)}-{package.digest}"
        job, new = jobs.submit(client, wanted, package.entrypoint, package.folder, {"RAY_USAGE_STATS_ENABLED": "0"})
    console.print(f"job {job}{'' if new else ', under way already'}", highlight=False, soft_wrap=True)
    if wait:
        _follow(client, job, address)


@job_app.command("list")
def list_jobs(address: Address = None) -> None:
    """Say which jobs the cluster knows, and how they are."""
    from ..cluster import jobs

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("job", "state", "began", "took", "command"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "job")
    known = sorted(jobs.connect(address).list_jobs(), key=lambda one: one.start_time or 0)
    for one in known:
        table.add_row(one.submission_id or one.job_id, one.status.lower(), *_times(one), _command(one))
    console.print(table if known else "no jobs", highlight=False)


@job_app.command("logs")
def logs(job: JobName, address: Address = None) -> None:
    """Follow what a job prints, from its beginning until it ends."""
    from ..cluster import jobs

    client = jobs.connect(address)
    _known(client, job)
    _follow(client, job, address)


@job_app.command("cancel")
def cancel(job: JobName, address: Address = None) -> None:
    """Stop a job; what it has finished stays, and the same `throng submit` goes on with it."""
    from ..cluster import jobs

    client = jobs.connect(address)
    before = _known(client, job).status
    status = jobs.cancel(client, job) if before in jobs.UNDER_WAY else before
    console.print(f"job {job}: {status.lower()}", highlight=False, soft_wrap=True)


def _here(address: str | None) -> bool:
    from ..cluster import jobs

    return urlsplit(jobs.server(address)).hostname in ("127.0.0.1", "localhost", "::1")


def _known(client: JobSubmissionClient, job: str) -> JobDetails:
    from ..cluster import jobs

    found = jobs.find(client, job)
    if found is None:
        raise InputError(f"no job {job} on this cluster; `throng job list` lists them")
    return found


def _follow(client: JobSubmissionClient, job: str, address: str | None) -> None:
    from ..cluster import jobs

    at = f" --address {address}" if address else ""
    try:
        status = jobs.follow(client, job, lambda text: console.out(text, end="", highlight=False))
    except KeyboardInterrupt:
        console.print(f"\nthe job goes on: throng job logs {job}{at}, throng job cancel {job}{at}", soft_wrap=True)
        raise
    if status != "SUCCEEDED":
        message = (client.get_job_info(job).message or "").partition(", last available logs")[0]
        console.print(f"job {job}: {status.lower()}. {message}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1)


def _check(command: list[str]) -> None:
    """Raises before anything is sent: for an unknown command or option, a wrong configuration, paths that are not sent."""
    from .cli import app
    from .config import load_config

    if command[0] not in SENT:
        raise InputError(f"submit: cannot send `throng {command[0]}`; of its commands, {', '.join(SENT)}")
    group = typer.main.get_command(app)
    parameters = group.commands[command[0]].make_context(command[0], list(command[1:])).params  # type: ignore[attr-defined]
    overrides = parameters.get("overrides") or []
    for override in overrides:
        if override.partition("=")[0] in UNSENT:
            raise InputError(f"--set {override}: files named so are not sent; name them in a configuration file")
    if "overrides" in parameters:
        load_config(parameters.get("config"), overrides, parameters.get("profile") or "fast")


def _name(command: list[str]) -> str:
    config = next((Path(word).stem for word in command[1:] if word.endswith((".yaml", ".yml"))), "")
    return "-".join(filter(None, ("throng", command[0], "".join(c if c.isalnum() else "-" for c in config))))


def _times(job: JobDetails) -> tuple[str, str]:
    if job.start_time is None:
        return "–", "–"
    began = datetime.datetime.fromtimestamp(job.start_time / 1000)
    ended = datetime.datetime.fromtimestamp(job.end_time / 1000) if job.end_time else datetime.datetime.now()
    return began.isoformat(" ", "seconds"), str(ended - began).partition(".")[0]


def _command(job: JobDetails) -> str:
    return (job.entrypoint or "").rpartition("throng.tune.cli ")[2]
