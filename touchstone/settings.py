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
SECRETS = "TOUCHSTONE_SECRET_"
_PRINTABLE = re.compile(r"[\x20-\x7e]+")


class Settings(BaseSettings):
    """The operator's choices, with defaults for one machine."""

    model_config = SettingsConfigDict(env_prefix="TOUCHSTONE_", frozen=True)

    home: Path = Field(
        Path("~/.local/share/touchstone").expanduser(),
        description="The folder that holds everything written.",
    )
    host: str = Field("127.0.0.1", description="Address the API listens on.")
    require_keys: bool = Field(
        False,
        description="Ask for an API key on the loopback too, and start elsewhere before there is any.",
    )
    allowed_hosts: str | None = Field(
        None,
        description="Names, separated by commas, by which the service may be asked without keys, besides "
        "those of the loopback.",
    )
    api_key: SecretStr | None = Field(
        None, description="The key that the command line sends to a service that it is given by `--url`."
    )
    port: int = Field(8000, ge=0, lt=65536, description="Port the API listens on; 0 picks a free one.")
    connections: int = Field(
        1000, ge=1, description="Clients' connections that the API holds at once; one more is answered 503."
    )
    connections_each: int = Field(
        500,
        ge=1,
        description="Of these from one address; behind a proxy, all have the proxy's.",
    )
    proxies: str | None = Field(
        None,
        description="Addresses and networks, separated by commas, that are believed when their "
        "X-Forwarded-For says whose request it is; unset: nobody is.",
    )
    refused_keys: int = Field(
        60,
        ge=1,
        description="Refused API keys a minute from one address; one more is answered 429, a good one never.",
    )
    bodies_memory: int = Field(
        256 * MIB,
        ge=1,
        description="Bytes of bodies over 64 KiB that the API holds at once; more is refused with 503.",
    )
    redis_url: str | None = Field(
        None,
        description="The ledger and broker; unset means the Valkey that `touchstone up` starts in `home`.",
    )
    blobs_url: str | None = Field(
        None, description="Where images are kept: unset means `home`/blobs, or s3://bucket/prefix."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto takes CUDA where there is one.")
    memory_budget: int = Field(
        2048 * MIB, ge=1, description="Bytes of models kept loaded; the least recently used leaves first."
    )
    concurrency: int = Field(
        96,
        ge=1,
        le=1024,
        description="Jobs that one worker runs at once; an eighth more for tenants that have none there.",
    )
    queue_limit: int = Field(20_000, ge=1, description="Jobs that may wait; one more is refused with 429.")
    tenant_queue_limit: int = Field(
        10_000, ge=1, description="Jobs of one tenant that may wait; for tenants with keys, like those below."
    )
    tenant_passes: int | None = Field(
        None, ge=1, description="Passes that one tenant's jobs may ask for in a day (UTC); unset: no bound."
    )
    tenant_requests: int = Field(6_000, ge=1, description="Requests a minute of one tenant that only read.")
    tenant_submissions: int = Field(
        3_000, ge=1, description="Requests a minute of one tenant that start or end something."
    )
    tenant_storage: int = Field(
        32 * 1024 * MIB,
        ge=1,
        description="Bytes that one tenant's jobs and models may hold, with what jobs may yet leave.",
    )
    cost_limit: int = Field(200_000, ge=1, description="Forward and backward passes one job may ask for.")
    upload_limit: int = Field(10 * MIB, ge=1, description="Bytes of an uploaded image.")
    inference_rows: int = Field(1024, ge=1, description="Images of one inference request.")
    model_limit: int = Field(512 * MIB, ge=1, description="Bytes of a registered model's file.")
    probe_seconds: float = Field(
        120.0, gt=0, description="Seconds that trying a model at its registration may take."
    )
    probe_memory: int = Field(
        8192 * MIB, ge=1, description="Bytes of memory that trying a model at its registration may take."
    )
    models: str | None = Field(
        None,
        description="Ids of the models that this worker serves, separated by commas, and loads as it starts; "
        "unset means all, each loaded when it is first asked for.",
    )
    outgoing_allow: str | None = Field(
        None,
        description="Hosts, host:port and networks, separated by commas, that may be asked although they are "
        "private, or by plain http.",
    )
    deadline: float = Field(
        600.0, gt=0, description="Seconds a job may run when it names no deadline of its own."
    )
    lease: float = Field(
        5.0, gt=0, description="Seconds without a sign of life after which a worker loses its jobs."
    )
    hang: float = Field(
        60.0, gt=0, description="Seconds that one step of the engine may take before it counts as hung."
    )
    max_attempts: int = Field(3, ge=1, description="How often a job is tried before it fails as worker_lost.")
    idempotency_days: float = Field(1.0, gt=0, description="How long an Idempotency-Key is remembered.")
    disk_reserve: int = Field(
        1024 * MIB,
        ge=0,
        description="Bytes that stay free on the disk of `home`/blobs; with fewer, nothing new is taken.",
    )
    retention_days: float = Field(
        7.0, gt=0, description="How long a job, its image and its files are kept after its end."
    )
    counts_days: float = Field(
        30.0, gt=0, description="How long the counts of certificates are kept to go on from."
    )
    webhook_days: float = Field(
        7.0, gt=0, description="How long deliveries of webhooks are kept, if their jobs are."
    )
    log_level: str = Field("info", description="debug, info, warning or error.")

    @field_validator("outgoing_allow")
    @classmethod
    def _can_be_read(cls, text: str | None) -> str | None:
        Permits.parse(text)
        return text

    @field_validator("proxies")
    @classmethod
    def _are_addresses(cls, text: str | None) -> str | None:
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
    def served(self) -> tuple[str, ...]:
        """The ids in `models`."""
        return tuple(filter(None, map(str.strip, (self.models or "").split(","))))


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


def secret(name: str, host: str) -> str:
    """The secret that the operator keeps for requests to this host; read when it is needed, and never kept.

    It goes nowhere but to the hosts that are named beside it: whoever may register a model could otherwise
    send it to a host of their own. Raises ModelUnusable.
    """
    variable = f"{SECRETS}{name}"
    value, hosts = os.environ.get(variable, "").strip(), os.environ.get(f"{variable}_HOSTS", "")
    if not value:
        raise ModelUnusable(f"the worker has no secret {name}: set {variable}")
    if host not in (one.strip().lower() for one in hosts.split(",")):
        raise ModelUnusable(f"the secret {name} is not for {host}: name the host in {variable}_HOSTS")
    if not _PRINTABLE.fullmatch(value):
        raise ModelUnusable(f"the secret {name} is not printable ASCII, so no header can carry it")
    return value
