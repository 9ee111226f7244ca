"""Send requests at a fixed rate or from a fixed number of clients, and note what comes back and when.

A client here is a connection and little else: one of httpx takes as long for a request as the server.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

BOUNDARY = "a-boundary-that-no-picture-has"
PATIENCE = 60.0  # seconds until a request counts as lost

Check = Callable[[dict[str, Any]], bool]


@dataclass
class Seen:
    """What came back.

    Args:
        seconds: for which requests were sent.
        photos: that were classified.
        statuses: of HTTP, how many of each; 0 for requests that were lost.
        wrong: answers that are not as expected.
        waits: seconds from when each request was due to its answer, of those that were classified.
    """

    seconds: float = 0.0
    photos: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    waits: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Return photos classified per second."""
        return self.photos / self.seconds

    def wait(self, share: float) -> float:
        """Return the time within which a share of the requests was answered."""
        return sorted(self.waits)[min(len(self.waits) - 1, int(share * len(self.waits)))]

    @property
    def median(self) -> float:
        """Return the median time to an answer."""
        return statistics.median(self.waits)


def request(photos: Sequence[tuple[str, bytes]], port: int) -> bytes:
    """Return the bytes of a request to classify photos: names and contents of files."""
    head = 'Content-Disposition: form-data; name="files"; filename="{}"\r\n\r\n'
    parts = [f"--{BOUNDARY}\r\n{head.format(name)}".encode() + data + b"\r\n" for name, data in photos]
    body = b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])
    return (
        f"POST /classify HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    ).encode() + body


class Load:
    """Clients of a server on this machine.

    Args:
        port: of the server.
        requests: bytes of requests, sent in turn.
        check: says whether a result is as expected.
    """

    def __init__(self, port: int, requests: Sequence[bytes], check: Check) -> None:
        self.port, self.check = port, check
        self.requests = itertools.cycle(requests)
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    def at_rate(self, requests_per_second: float, seconds: float) -> Seen:
        """Send a request whenever one is due, whether or not those before it have been answered."""
        return asyncio.run(self._at_rate(requests_per_second, seconds))

    def from_clients(self, clients: int, seconds: float) -> Seen:
        """Let each client send a request as soon as its last one has been answered."""
        return asyncio.run(self._from_clients(clients, seconds))

    async def _at_rate(self, rate: float, seconds: float) -> Seen:
        seen, under_way, start = Seen(seconds), set[asyncio.Task[None]](), time.perf_counter()
        for number in range(int(rate * seconds)):
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(self._ask(due, seen))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)
        seen.seconds = max(seconds, time.perf_counter() - start)
        self._hang_up()
        return seen

    async def _from_clients(self, clients: int, seconds: float) -> Seen:
        seen, start = Seen(seconds), time.perf_counter()

        async def client() -> None:
            while (now := time.perf_counter()) < start + seconds:
                await self._ask(now, seen)

        await asyncio.gather(*(client() for _ in range(clients)))
        seen.seconds = time.perf_counter() - start
        self._hang_up()
        return seen

    async def _ask(self, due: float, seen: Seen) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                status, results = await self._exchange(next(self.requests))
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
            seen.statuses[0] += 1
            return
        seen.statuses[status] += 1
        if status == 200:
            seen.waits.append(time.perf_counter() - due)
            seen.photos += len(results)
            seen.wrong += sum(not self.check(one) for one in results)

    async def _exchange(self, request: bytes) -> tuple[int, list[dict[str, Any]]]:
        """Send a request and read its answer, on a connection that is kept if the server keeps it."""
        reader, writer = await self._connection()
        writer.write(request)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        body = await reader.readexactly(length)
        if "connection: close" in head:
            writer.close()
        else:
            self.idle.append((reader, writer))
        return int(head.split(" ", 2)[1]), json.loads(body).get("results", [])

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a connection: one that was used before, unless the server has closed it since."""
        while self.idle:
            reader, writer = self.idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self.port)

    def _hang_up(self) -> None:
        for _, writer in self.idle:
            writer.close()
        self.idle.clear()
