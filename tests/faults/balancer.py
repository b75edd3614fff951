"""A TCP load balancer in its own process: new connections go round-robin to the ports set last."""

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Sequence

CONNECT_SECONDS = 2


class Balancer:
    """`lead_to` sets the ports for new connections; open ones live on, as in a drain."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.faults.balancer"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.port = int(self._answer())

    def lead_to(self, *ports: int) -> None:
        assert self._process.stdin
        self._process.stdin.write(" ".join(map(str, ports)) + "\n")
        self._process.stdin.flush()
        assert self._answer() == "done"

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout
        return str(self._process.stdout.readline()).strip()


class _Server:
    def __init__(self) -> None:
        self.ports: Sequence[int] = ()
        self._turn = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            back, forth = await self._open()
            await asyncio.gather(_pump(reader, forth), _pump(back, writer))
        writer.transport.abort()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the next server that accepts. Raises OSError if none does."""
        ports = self.ports
        self._turn += 1
        for offset in range(len(ports)):
            port = ports[(self._turn + offset) % len(ports)]
            with contextlib.suppress(OSError):
                async with asyncio.timeout(CONNECT_SECONDS):
                    return await asyncio.open_connection("127.0.0.1", port)
        raise ConnectionRefusedError


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy data and its end at once: else a server closing an idle connection goes unnoticed."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _serve() -> None:
    own = _Server()
    server = await asyncio.start_server(own.accept, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def listen() -> None:
        for line in sys.stdin:
            own.ports = [int(port) for port in line.split()]
            print("done", flush=True)
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=listen, daemon=True).start()
    await ended.wait()


if __name__ == "__main__":
    asyncio.run(_serve())
