"""A real mail server on loopback: it accepts, or refuses, one mail after the other."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Mailbox:
    port: int
    # The envelope's receivers and the mail as it came over the wire.
    mails: list[tuple[list[str], str]] = field(default_factory=list)
    # How many mails are refused first.
    refusing: int = 0


@contextmanager
def smtp_server() -> Iterator[Mailbox]:
    """Serve until the context ends."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self._say("220 loopback")
            receivers: list[str] = []
            while line := self.rfile.readline().decode().strip():
                verb = line.upper()[:4]
                if verb == "RCPT":
                    receivers.append(line.partition("<")[2].rstrip(">"))
                if verb == "RCPT" and box.refusing:
                    box.refusing -= 1
                    self._say("451 try later")
                elif verb == "DATA":
                    self._say("354 go on")
                    box.mails.append((receivers, self._text()))
                    self._say("250 kept")
                elif verb == "QUIT":
                    self._say("221 bye")
                    return
                else:
                    self._say("250 ok")

        def _say(self, text: str) -> None:
            self.wfile.write(f"{text}\r\n".encode())

        def _text(self) -> str:
            lines = iter(lambda: self.rfile.readline().decode(), ".\r\n")
            return "".join(lines)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        box = Mailbox(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield box
        server.shutdown()
        thread.join()
