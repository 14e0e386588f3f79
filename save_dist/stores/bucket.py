"""A storage in S3 or what speaks its language; endpoint and login come from the environment.

An object is replaced as a whole by S3 itself, and it is durable once it has answered; so files are
prepared on a local disk and sent. There is no rename: files arrive one by one, in order.
"""

import asyncio
import contextlib
import functools
import hashlib
import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from save_dist.core.errors import ConfigError, InfrastructureError
from save_dist.stores.storage import Entry, Item, Result, Storage

AT_ONCE = 32
"""Requests under way at the same time, where there are many small ones."""
_TOGETHER = 4096
"""Items handed out before the first result is asked for."""
_PIECE = 2**22
_CONNECT_S, _ANSWER_S = 10, 120


class Bucket(Storage):
    """Objects below a prefix.

    Args:
        uri: `s3://bucket/prefix`.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        self._root = self._uri.removeprefix("s3://")
        if "/" not in self._root:
            raise ConfigError(f"{uri} names a bucket alone, expected s3://BUCKET/NAME.zarr")

    def __str__(self) -> str:
        return self._uri

    def __reduce__(self) -> tuple[type["Bucket"], tuple[str]]:
        return Bucket, (self._uri,)

    @property
    def zarr(self) -> "BucketStore":
        """A zarr store of the objects."""
        return BucketStore(self)

    def exists(self) -> bool:
        """Whether there is an object below the prefix."""
        return bool(self._info("").type != pafs.FileType.NotFound)

    def read(self, name: str) -> bytes:
        """All bytes of an object."""
        with self._asking(name), self._files.open_input_stream(self._key(name)) as stream:
            return bytes(stream.read())

    def read_piece(self, name: str, asked: ByteRequest | None) -> bytes:
        """Some bytes of an object, or all."""
        if asked is None:
            return self.read(name)
        with self._asking(name), self._files.open_input_file(self._key(name)) as file:
            start, stop = 0, file.size()
            if isinstance(asked, RangeByteRequest):
                start, stop = asked.start, min(asked.end, stop)
            elif isinstance(asked, OffsetByteRequest):
                start = asked.offset
            elif isinstance(asked, SuffixByteRequest):
                start = max(0, stop - asked.suffix)
            return bytes(file.read_at(stop - start, start))

    def n_bytes(self, name: str) -> int | None:
        """Length of an object; None if it is absent."""
        found = self._info(name)
        return int(found.size) if found.type == pafs.FileType.File else None

    def sha256(self, name: str) -> str:
        """Digest of an object, as hex."""
        value = hashlib.sha256()
        with self._asking(name), self._files.open_input_stream(self._key(name)) as stream:
            while piece := stream.read(_PIECE):
                value.update(piece)
        return value.hexdigest()

    def entries(self) -> Iterator[Entry]:
        """Objects directly below the prefix."""
        for found in self.below("", is_deep=False):
            if found.type == pafs.FileType.File:
                modified_s = found.mtime.timestamp() if found.mtime else 0.0
                yield Entry(found.base_name, found.size, modified_s)

    def below(self, name: str, *, is_deep: bool) -> list[pafs.FileInfo]:
        """Objects, and if not deep also what looks like folders, below a name."""
        selector = pafs.FileSelector(self._key(name), allow_not_found=True, recursive=is_deep)
        with self._asking(name):
            found: list[pafs.FileInfo] = self._files.get_file_info(selector)
        return found

    def relative(self, found: pafs.FileInfo) -> str:
        """The name of what was found."""
        return str(found.path).removeprefix(f"{self._root}/")

    def write(self, name: str, data: bytes) -> None:
        """Replace an object."""
        self._send(name, pa.py_buffer(data))

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""
        with contextlib.suppress(FileNotFoundError), self._asking(name):
            self._files.delete_file(self._key(name))

    def sync(self, names: Iterable[str]) -> None:
        """Nothing to do: what S3 has answered stands."""

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A temporary folder of this machine (TMPDIR); it holds one part."""
        with tempfile.TemporaryDirectory(prefix="sd-part-") as folder:
            yield Path(folder)

    def adopt(self, workspace: Path, names: Sequence[str]) -> None:
        """Send files in this order."""
        for name in names:
            with pa.memory_map(str(workspace / name)) as file:
                self._send(name, file.read_buffer())

    def sweep(self) -> None:
        """Nothing to do: an upload that was not finished is no object."""

    def each(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results in the order of the items, many of them worked on at once."""
        source = iter(items)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            while some := list(itertools.islice(source, _TOGETHER)):
                yield from pool.map(work, some)

    @property
    def _files(self) -> pafs.S3FileSystem:
        return _connect(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _info(self, name: str) -> pafs.FileInfo:
        with self._asking(name):
            return self._files.get_file_info(self._key(name))

    def _send(self, name: str, data: pa.Buffer) -> None:
        # in one write: leaving the block after a part of it would publish that part
        with self._asking(name), self._files.open_output_stream(self._key(name)) as stream:
            stream.write(data)

    @contextlib.contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as e:
            raise InfrastructureError(
                f"{self._uri}/{name}: {e}; check that the bucket is there, AWS_ENDPOINT_URL and "
                "the login of this machine (AWS_ACCESS_KEY_ID or its role), then run again"
            ) from e


class BucketStore(Store):
    """What zarr reads and writes a bucket through."""

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(self, bucket: Bucket, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self._bucket = bucket

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketStore) and str(self._bucket) == str(other._bucket)

    def __str__(self) -> str:
        return str(self._bucket)

    def with_read_only(self, read_only: bool = False) -> "BucketStore":
        """The same objects, with or without the right to write."""
        return BucketStore(self._bucket, read_only=read_only)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Bytes of an object; None if it is absent."""
        try:
            data = await asyncio.to_thread(self._bucket.read_piece, key, byte_range)
        except FileNotFoundError:
            return None
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Several pieces."""
        return list(await asyncio.gather(*(self.get(k, prototype, r) for k, r in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return await asyncio.to_thread(self._bucket.n_bytes, key) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Replace an object."""
        self._check_writable()
        await asyncio.to_thread(self._bucket.write, key, value.to_bytes())

    async def delete(self, key: str) -> None:
        """Remove an object."""
        self._check_writable()
        await asyncio.to_thread(self._bucket.delete, key)

    def list(self) -> AsyncIterator[str]:
        """Names of all objects."""
        return self.list_prefix("")

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Names of all objects below a prefix."""
        for found in await self._below(prefix, is_deep=True):
            if found.type == pafs.FileType.File:
                yield self._bucket.relative(found)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Last words of what stands directly below a prefix."""
        for found in await self._below(prefix, is_deep=False):
            yield str(found.base_name)

    async def _below(self, prefix: str, *, is_deep: bool) -> Any:
        return await asyncio.to_thread(self._bucket.below, prefix.rstrip("/"), is_deep=is_deep)


@functools.cache
def _connect(endpoint: str | None) -> pafs.S3FileSystem:
    """One client per process and endpoint."""
    place = urlsplit(endpoint) if endpoint else None
    return pafs.S3FileSystem(
        endpoint_override=place.netloc if place else None,
        scheme=(place.scheme if place else None) or "https",
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        connect_timeout=_CONNECT_S,
        request_timeout=_ANSWER_S,
        allow_delayed_open=True,  # small objects take one request instead of three
    )
