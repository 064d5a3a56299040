"""Everything an operator can set, read from `TOUCHSTONE_…` variables in one place."""

from __future__ import annotations

import os
import re
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from touchstone.errors import ModelUnusable
from touchstone.net.addresses import Permits

MIB = 2**20
LOCAL_TENANT = "local"
ALL_TENANTS = "*"
SECRET_PREFIX = "TOUCHSTONE_SECRET_"  # noqa: S105 - the start of a variable's name
_PRINTABLE = re.compile(r"[\x20-\x7e]+")


class Settings(BaseSettings):
    """The operator's choices, with defaults for one machine."""

    model_config = SettingsConfigDict(env_prefix="TOUCHSTONE_", frozen=True)

    home: Path = Field(
        Path("~/.local/share/touchstone").expanduser(),
        description="The folder for all data.",
    )
    host: str = Field("127.0.0.1", description="Address the API listens on.")
    require_keys: bool = Field(
        False,
        description="Require an API key on the loopback too; elsewhere, start even before one exists.",
    )
    allowed_hosts: str | None = Field(
        None,
        description="Host names, separated by commas, that are accepted without keys besides those of the "
        "loopback.",
    )
    api_key: SecretStr | None = Field(
        None, description="The API key that the command line sends to the service at `--url`."
    )
    port: int = Field(8000, ge=0, lt=65536, description="Port the API listens on; 0 picks a free one.")
    api_processes: int = Field(
        1,
        ge=1,
        le=64,
        description="API processes of `touchstone up`, on one address; limits of connections, streams, "
        "waits, bodies and refused keys are those of all together.",
    )
    connections: int = Field(
        1000,
        ge=1,
        description="Concurrent client connections of the API; one more is answered 503, but for health "
        "checks. Streams and waits may have three quarters.",
    )
    connections_each: int = Field(
        500,
        ge=1,
        description="Concurrent connections from one address, of IPv6 from one /64; behind a proxy, all have "
        "the proxy's address.",
    )
    proxies: str | None = Field(
        None,
        description="Addresses and networks of proxies, separated by commas, whose X-Forwarded-For is "
        "trusted; unset means none.",
    )
    refused_keys: int = Field(
        60,
        ge=1,
        description="Failed key attempts a minute from one address; more are answered 429, valid keys never.",
    )
    bodies_memory: int = Field(
        256 * MIB,
        ge=1,
        description="Memory limit in bytes for request bodies over 64 KiB; more is answered 503.",
    )
    redis_url: str | None = Field(
        None,
        description="URL of the ledger and broker; unset: the Valkey that `touchstone up` starts in `home`.",
    )
    blobs_url: str | None = Field(
        None, description="Where blobs are stored: s3://bucket/prefix; unset means `home`/blobs."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto selects CUDA if available.")
    memory_budget: int = Field(
        2048 * MIB, ge=1, description="Bytes of loaded models; the least recently used is unloaded first."
    )
    concurrency: int = Field(
        96,
        ge=1,
        le=1024,
        description="Slots of a worker: jobs that it runs at once; an eighth more for tenants without any.",
    )
    queue_limit: int = Field(20_000, ge=1, description="Jobs that may wait in all; one more is answered 429.")
    tenant_queue_limit: int = Field(
        10_000,
        ge=1,
        description="Quota of waiting jobs for each tenant; like the quotas below, for tenants with keys.",
    )
    tenant_passes: int | None = Field(
        None, ge=1, description="Quota of passes for each tenant in a day (UTC); unset means no limit."
    )
    tenant_requests: int = Field(
        6_000, ge=1, description="Rate limit of each tenant: reading requests a minute."
    )
    tenant_submissions: int = Field(
        3_000, ge=1, description="Rate limit of each tenant: requests a minute that start or end something."
    )
    tenant_streams: int = Field(
        100, ge=1, description="Event streams of each tenant that may be open; one more is answered 429."
    )
    tenant_waits: int = Field(
        250,
        ge=1,
        description="Requests of each tenant that may wait for jobs, by `Prefer: wait` or for inference; one "
        "more is answered 429.",
    )
    tenant_storage: int = Field(
        32 * 1024 * MIB,
        ge=1,
        description="Quota of bytes for each tenant's jobs and models, with results that jobs may yet store.",
    )
    cost_limit: int = Field(200_000, ge=1, description="Maximum forward and backward passes of one job.")
    job_memory: int = Field(
        6144 * MIB,
        ge=1,
        description="Maximum bytes of memory that one job may need for its images, as its method declares.",
    )
    worker_memory: int | None = Field(
        None,
        ge=1,
        description="Memory limit of a worker in bytes, beyond which a job fails as out_of_memory; unset "
        "means no limit.",
    )
    step_seconds: float = Field(
        10.0,
        gt=0,
        description="Maximum processor seconds of a job between two passes of its model, more on a machine "
        "that is slower than the reference; a job that takes longer fails as time_exceeded.",
    )
    upload_limit: int = Field(10 * MIB, ge=1, description="Maximum bytes of an uploaded image.")
    inference_rows: int = Field(1024, ge=1, description="Maximum images of one inference request.")
    model_limit: int = Field(512 * MIB, ge=1, description="Maximum bytes of a registered model's file.")
    probe_seconds: float = Field(
        120.0, gt=0, description="Maximum seconds for the trial of a model at its registration."
    )
    probe_memory: int = Field(
        8192 * MIB, ge=1, description="Maximum bytes of memory for the trial of a model at its registration."
    )
    models: str | None = Field(
        None,
        description="Ids of the models that this worker serves and loads at its start, separated by commas; "
        "unset means all, each loaded at its first query.",
    )
    outgoing_allow: str | None = Field(
        None,
        description="Hosts, host:port and networks, separated by commas, to which outbound requests are "
        "allowed although they are private or use plain http.",
    )
    deadline: float = Field(600.0, gt=0, description="Default deadline of a job in seconds.")
    lease: float = Field(
        5.0, gt=0, description="Lease in seconds: a worker that does not renew it loses its jobs."
    )
    hang: float = Field(60.0, gt=0, description="Seconds after which one step of the engine counts as hung.")
    max_attempts: int = Field(
        3,
        ge=1,
        description="How often a job may end a process that runs it alone before it fails as worker_lost.",
    )
    idempotency_days: float = Field(1.0, gt=0, description="Retention of an Idempotency-Key in days.")
    disk_reserve: int = Field(
        1024 * MIB,
        ge=0,
        description="Bytes to keep free on the disk of `home`/blobs; with fewer, submissions are refused.",
    )
    retention_days: float = Field(
        7.0, gt=0, description="Retention in days of a job, its image and its files after its end."
    )
    counts_days: float = Field(30.0, gt=0, description="Retention in days of the counts of certificates.")
    webhook_days: float = Field(
        7.0, gt=0, description="Retention in days of webhook deliveries, at most that of their jobs."
    )
    log_level: str = Field("info", description="debug, info, warning or error.")

    @field_validator("outgoing_allow")
    @classmethod
    def _check_outgoing_allow(cls, text: str | None) -> str | None:
        Permits.parse(text)
        return text

    @field_validator("proxies")
    @classmethod
    def _check_proxies(cls, text: str | None) -> str | None:
        for part in text.split(",") if text else ():
            ip_network(part.strip())
        return text

    @property
    def needs_keys(self) -> bool:
        """Whether a request without an API key is refused."""
        return self.require_keys or not on_loopback(self.host)

    @property
    def hosts(self) -> frozenset[str]:
        """The names in `allowed_hosts`."""
        return frozenset(
            filter(None, (name.strip().lower() for name in (self.allowed_hosts or "").split(",")))
        )

    @property
    def served_models(self) -> tuple[str, ...]:
        """The ids in `models`."""
        return tuple(filter(None, map(str.strip, (self.models or "").split(","))))


def to_environment(settings: Settings) -> dict[str, str]:
    """The environment of this process, secrets included, with exactly these settings: for a child process."""
    prefix = str(Settings.model_config["env_prefix"])
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(SECRET_PREFIX) or not name.upper().startswith(prefix)
    }
    chosen = settings.model_dump(mode="json", exclude_none=True, exclude={"api_key"})
    return inherited | {f"{prefix}{name.upper()}": str(value) for name, value in chosen.items()}


def on_loopback(host: str) -> bool:
    """Whether this is a name or an address that leads to this machine alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()


def check_secret_tenant(name: str, tenant: str) -> None:
    """Raise ModelUnusable unless the operator lets this tenant use a secret; by default only `local` may.

    Whether there is such a secret is not told to others.
    """
    variable = f"{SECRET_PREFIX}{name}_TENANTS"
    tenants = {one.strip() for one in os.environ.get(variable, LOCAL_TENANT).split(",")}
    if name.endswith("_TENANTS") or not tenants & {tenant, ALL_TENANTS}:
        raise ModelUnusable(
            f"the secret {name} is not for the tenant {tenant}: the operator may name the tenant in "
            f"{variable} of the workers"
        )


def read_secret(name: str, host: str) -> str:
    """The operator's secret for requests to this host; read when it is needed, and never stored.

    It is sent only to the hosts that are named beside it: a user who may register a model could otherwise
    send it to a host of their own. Raises ModelUnusable.
    """
    variable = f"{SECRET_PREFIX}{name}"
    value, hosts = os.environ.get(variable, "").strip(), os.environ.get(f"{variable}_HOSTS", "")
    if not value:
        raise ModelUnusable(f"the worker has no secret {name}: set {variable}")
    if host not in (one.strip().lower() for one in hosts.split(",")):
        raise ModelUnusable(f"the secret {name} is not for {host}: name the host in {variable}_HOSTS")
    if not _PRINTABLE.fullmatch(value):
        raise ModelUnusable(f"the secret {name} is not printable ASCII, so no header can carry it")
    return value
