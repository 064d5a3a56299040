"""The ledger's keys as lines of JSON, which any server can be filled from, whatever its version."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import redis

from touchstone.ledger.connection import map_redis_errors
from touchstone.ledger.schema import SCHEMA_KEY
from touchstone.storage.layout import split_batches

BATCH_KEYS = 500
_BATCH_ENTRIES = 1000

_OWN_KEYS = "ts:*"
_LEFT_OUT = frozenset((SCHEMA_KEY, "ts:turn", "ts:reaped", "ts:served", "ts:workers", "ts:workers:info"))
_LEFT_OUT_PREFIXES = ("ts:quarantine:", f"{SCHEMA_KEY}:")
"""What is true of the present processes only, and the schema, which is in the backup's description."""


class StoredKey(NamedTuple):
    """A key, when it expires in milliseconds of the epoch, and its value: a string, or a list of entries."""

    name: str
    kind: str
    expires_at: int | None
    value: Any


_READERS: Mapping[str, Callable[[Any, str], object]] = MappingProxyType(
    {
        "string": lambda pipe, key: pipe.get(key),
        "hash": lambda pipe, key: pipe.hgetall(key),
        "set": lambda pipe, key: pipe.smembers(key),
        "zset": lambda pipe, key: pipe.zrange(key, 0, -1, withscores=True),
        "list": lambda pipe, key: pipe.lrange(key, 0, -1),
        "stream": lambda pipe, key: pipe.xrange(key),
    }
)
_WRITERS: Mapping[str, Callable[[Any, str, Sequence[Any]], object]] = MappingProxyType(
    {
        "hash": lambda pipe, key, entries: pipe.hset(key, mapping=dict(entries)),
        "set": lambda pipe, key, entries: pipe.sadd(key, *entries),
        "zset": lambda pipe, key, entries: pipe.zadd(key, dict(entries)),
        "list": lambda pipe, key, entries: pipe.rpush(key, *entries),
        "stream": lambda pipe, key, entries: [pipe.xadd(key, fields, id=name) for name, fields in entries],
    }
)


def read_keys(client: redis.Redis) -> Iterator[StoredKey]:
    """All keys of the ledger that are worth keeping, from a server that does not change meanwhile."""
    with map_redis_errors():
        for names in split_batches(client.scan_iter(_OWN_KEYS, count=BATCH_KEYS), BATCH_KEYS):
            yield from _read_batch(client, [name for name in names if _is_kept(name)])


def _is_kept(name: str) -> bool:
    return name not in _LEFT_OUT and not name.startswith(_LEFT_OUT_PREFIXES)


def _read_batch(client: redis.Redis, names: Sequence[str]) -> Iterator[StoredKey]:
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.type(name)
            pipe.pexpiretime(name)
        about: list[list[Any]] = list(split_batches(pipe.execute(), 2))
        for name, (kind, _) in zip(names, about, strict=True):
            _READERS[kind](pipe, name)
        values = pipe.execute()
    for name, (kind, expires_at), value in zip(names, about, values, strict=True):
        yield StoredKey(name, kind, expires_at if expires_at > 0 else None, _to_json(value))


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return list(value.items())
    return sorted(value) if isinstance(value, set) else value


def write_keys(client: redis.Redis, keys: Iterator[StoredKey]) -> None:
    """Write keys into a server that has none of them; those that have expired meanwhile end there at once."""
    for some in split_batches(keys, BATCH_KEYS):
        with map_redis_errors(), client.pipeline(transaction=False) as pipe:
            for key in some:
                _write_key(pipe, key)
            pipe.execute()


def _write_key(pipe: Any, key: StoredKey) -> None:
    if key.kind == "string":
        pipe.set(key.name, key.value)
    else:
        for entries in split_batches(key.value, _BATCH_ENTRIES):
            _WRITERS[key.kind](pipe, key.name, entries)
    if key.expires_at is not None:
        pipe.pexpireat(key.name, key.expires_at)


def write_file(path: Path, keys: Iterator[StoredKey]) -> int:
    """Write keys to a new file, and return how many."""
    count = 0
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=5) as file:
        for key in keys:
            file.write(json.dumps(key, separators=(",", ":")) + "\n")
            count += 1
    return count


def read_file(path: Path) -> Iterator[StoredKey]:
    """The keys of a file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield StoredKey(*json.loads(line))


def find_key(client: redis.Redis) -> str | None:
    """A key that the ledger holds already, but for its schema; None where it is empty."""
    with map_redis_errors():
        names = client.scan_iter(_OWN_KEYS, count=BATCH_KEYS)
        return next((name for name in names if name != SCHEMA_KEY), None)
