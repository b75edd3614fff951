"""A fault-injecting TCP proxy in front of a local server, in a thread of this process."""

import asyncio
import contextlib
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator


class FaultProxy:
    """Set `mode`: it applies to all further traffic, on existing connections too.

    pass; delay: `delay_seconds` either way; blackhole: nothing arrives; noreply: commands arrive,
    answers do not; reset; half: `half_bytes` of commands arrive, then reset.
    """

    def __init__(self, target_port: int) -> None:
        self.mode, self.delay_seconds, self.half_bytes = "pass", 0.0, 0
        self.port = 0
        self._target_port = target_port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()

    def run(self, ready: threading.Event) -> None:
        asyncio.run(self._serve(ready))

    def stop(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stopped.set)

    def lead_to(self, target_port: int) -> None:
        """Send new connections to another port, and cut those that are open."""
        self._target_port = target_port
        self.cut()

    def cut(self) -> None:
        """Close every open connection; new ones pass."""
        assert self._loop is not None
        self.mode = "pass"
        self._loop.call_soon_threadsafe(self._abort)

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stopped.wait()
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        # Let the tasks of closed connections end.
        await asyncio.sleep(0.01)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        if self.mode == "reset":
            _reset(writer)
            return
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            _reset(writer)
            return
        self._writers.add(forth)
        await asyncio.gather(
            self._pump(reader, forth, writer, answers=False),
            self._pump(back, writer, forth, answers=True),
        )

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        other: asyncio.StreamWriter,
        *,
        answers: bool,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.mode == "delay":
                    await asyncio.sleep(self.delay_seconds)
                if self.mode == "half" and not answers:
                    writer.write(data[: self.half_bytes])
                    self.half_bytes -= len(data)
                    await writer.drain()
                if self.mode == "reset" or (self.mode == "half" and self.half_bytes <= 0):
                    _reset(writer)
                    _reset(other)
                    return
                if self.mode == "half" and not answers:
                    continue
                if self.mode == "blackhole" or (self.mode == "noreply" and answers):
                    continue
                writer.write(data)
                await writer.drain()
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    line = writer.get_extra_info("socket")
    if line is not None:
        with contextlib.suppress(OSError):
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.contextmanager
def fault_proxy(target_port: int) -> Iterator[FaultProxy]:
    """A proxy on a free port in front of `target_port`."""
    proxy, ready = FaultProxy(target_port), threading.Event()
    thread = threading.Thread(target=proxy.run, args=(ready,), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(10)


class ProxyProcess:
    """The proxy in its own process, for a busy test: `say` "noreply", or "delay 0.2"."""

    def __init__(self, target_port: int) -> None:
        command = [sys.executable, "-m", "tests.fault_proxy", str(target_port)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout
        self.port = int(self._process.stdout.readline())

    def say(self, mode: str) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{mode}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "so be it\n"

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


if __name__ == "__main__":
    with fault_proxy(int(sys.argv[1])) as here:
        print(here.port, flush=True)
        for line in sys.stdin:
            named, _, seconds = line.strip().partition(" ")
            here.delay_seconds = float(seconds or 0)
            if named == "cut":
                here.cut()
            else:
                here.mode = named
            print("so be it", flush=True)
