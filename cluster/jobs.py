"""Jobs on a Ray cluster, over its job server: submitted under a name of their own, followed, cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

LIMIT = 100 * 2**20  # bytes: larger uploads are refused by Ray's job server (HTTP 413), whatever its documentation says
HERE = "http://127.0.0.1:8265"  # where `ray start --head` puts it
STARTING = 60.0  # seconds that a fresh cluster's job agent may take, at most
ENDING = 20.0  # seconds from the end of a job's output, or its cancelling, to its final state, at most
UNDER_WAY = (JobStatus.PENDING, JobStatus.RUNNING)


def server(address: str | None) -> str:
    """The job server's address: as given, or as Ray's own tools find it, or else on this machine."""
    return address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or HERE


def connect(address: str | None) -> JobSubmissionClient:
    """The job server at `server(address)`.

    Raises:
        ConnectionError: nobody there, or the cluster wants a token.
    """
    for chatty in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{chatty}").setLevel(logging.ERROR)
    where = server(address)
    try:
        try:
            return _client(where, {})
        except AuthenticationError:  # a process whose RAY_AUTH_MODE is not `token` sends none, even if it is there
            token = _token()
            if token is None:
                raise
            return _client(where, {"Authorization": f"Bearer {token}"})
    except Exception as error:  # of Ray, requests and aiohttp, in no common class
        hint = "`ray start --head` starts one here, --address http://HEAD:8265 names another"
        if isinstance(error, AuthenticationError):
            hint = (
                "the cluster wants its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE (or RAY_AUTH_TOKEN)"
            )
        said = (str(error).strip() or repr(error)).splitlines()[0]
        raise ConnectionError(f"no job server of a Ray cluster at {where}: {said}; {hint}") from error


def _client(where: str, headers: dict[str, str]) -> JobSubmissionClient:
    client = JobSubmissionClient(where, headers=headers)
    client.list_jobs()
    return client


def _token() -> str | None:
    """Where Ray keeps the token of this user; None: nowhere, or it is not to be used."""
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return None
    given = os.environ.get("RAY_AUTH_TOKEN")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return given or (path.read_text().strip() if path.is_file() else None)


def submit(
    client: JobSubmissionClient, name: str, entrypoint: str, folder: Path, env: dict[str, str]
) -> tuple[str, bool]:
    """Starts `entrypoint` (a shell command) in a copy of `folder` and returns the job's id and whether it is a new job.

    The job's id is its name. While one of that name is under way it is the answer; ended ones are followed by `NAME-2`, and
    so on.

    Raises:
        ConnectionError: the cluster takes no job.
    """
    there = {one.submission_id: one for one in client.list_jobs()}
    attempt, job = 1, name
    while job in there:
        if there[job].status in UNDER_WAY:
            return job, False
        attempt += 1
        job = f"{name}-{attempt}"
    environment: dict[str, Any] = {"working_dir": str(folder), "env_vars": env}
    waited_until = time.monotonic() + STARTING
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, submission_id=job, runtime_env=environment), True
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > waited_until:
                raise ConnectionError(f"the cluster refused job {job}: {error}{_hint(error)}") from error
        time.sleep(1.0)


def _hint(error: Exception) -> str:
    if "No available agent" not in str(error):
        return ""
    return (
        " Another Ray on the head's machine may hold its agent's port: begin the head with `ray start --head "
        "--dashboard-agent-listen-port=52399`"
    )


def follow(client: JobSubmissionClient, job: str, write: Callable[[str], object]) -> JobStatus:
    """Hands on what the job prints, from its beginning, until it ends; returns how.

    Raises:
        ConnectionError: the connection was lost; the job may go on.
    """

    async def tail() -> None:
        async for text in client.tail_job_logs(job):
            write(text)

    try:
        asyncio.run(tail())
        return _ended(client, job)
    except Exception as error:  # of Ray, requests and aiohttp, in no common class
        raise ConnectionError(
            f"lost sight of job {job}: {error}; follow it again with `throng job logs {job}`"
        ) from error


def cancel(client: JobSubmissionClient, job: str) -> JobStatus:
    """Asks the job to stop (SIGTERM, after seconds SIGKILL) and waits for it; what it has committed stays."""
    client.stop_job(job)
    return _ended(client, job)


def _ended(client: JobSubmissionClient, job: str) -> JobStatus:
    """The state of a job that is about to end."""
    waited_until = time.monotonic() + ENDING
    while (status := client.get_job_status(job)) in UNDER_WAY and time.monotonic() < waited_until:
        time.sleep(0.5)
    return status


def find(client: JobSubmissionClient, job: str) -> JobDetails | None:
    """The job of this id, or None."""
    with contextlib.suppress(RuntimeError):
        return client.get_job_info(job)
    return None
