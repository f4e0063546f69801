"""`python -m bench.traffic.onlooker HOST PORT PAUSE`: who answers a fresh connection, every PAUSE seconds.

Each answer is a line on standard output, `SECONDS WHO`: when the request was sent, by the clock that all
processes of a machine share, and its header X-Release, or `-` and why where it had none. Ends when standard
input does. It works on bare sockets, for it shares a full machine with what it looks at.
"""

import errno
import os
import re
import selectors
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field

DEADLINE = 2.0
GET = b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
RELEASE = re.compile(rb"\r\nx-release: ([^\r]*)\r\n", re.IGNORECASE)


@dataclass(eq=False)
class Request:
    """One, from its connection to the end of its answer."""

    sent: float
    socket: socket.socket
    answer: bytearray = field(default_factory=bytearray)
    asked: bool = False

    def go_on(self) -> str:
        """Send or read what can be; who has answered, '' where that is not known yet."""
        try:
            if not self.asked:
                self.socket.sendall(GET)
                self.asked = True
            elif part := self.socket.recv(65536):
                self.answer += part
            else:
                found = RELEASE.search(self.answer)
                return found[1].decode() if found else f"-{self.answer[9:12].decode()}"
        except BlockingIOError:
            pass
        except OSError as error:
            return f"-{errno.errorcode.get(error.errno or 0, 'error')}"
        return ""


class Onlooker:
    """Asks at a steady pace, whoever has not been answered yet."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._selector = selectors.DefaultSelector()
        self._under_way: deque[Request] = deque()
        self._selector.register(sys.stdin, selectors.EVENT_READ)

    def ask(self) -> None:
        """Begin a request."""
        request = Request(time.monotonic(), socket.socket())
        request.socket.setblocking(False)
        request.socket.connect_ex(self._address)
        self._selector.register(request.socket, selectors.EVENT_WRITE, request)
        self._under_way.append(request)

    def wait(self, until: float) -> bool:
        """Go on with what is under way. False once standard input has ended."""
        for key, _ in self._selector.select(max(until - time.monotonic(), 0.0)):
            if key.data is None:
                if not os.read(sys.stdin.fileno(), 4096):
                    return False
                continue
            who = key.data.go_on()
            if who:
                self._end(key.data, who)
            elif key.events == selectors.EVENT_WRITE and key.data.asked:
                self._selector.modify(key.data.socket, selectors.EVENT_READ, key.data)
        while self._under_way and time.monotonic() - self._under_way[0].sent > DEADLINE:
            self._end(self._under_way[0], "-timeout")
        return True

    def _end(self, request: Request, who: str) -> None:
        print(f"{request.sent:.6f} {who}", flush=True)
        self._selector.unregister(request.socket)
        request.socket.close()
        self._under_way.remove(request)

    def rest(self) -> None:
        """Wait for what is under way."""
        self._selector.unregister(sys.stdin)
        while self._under_way:
            self.wait(self._under_way[0].sent + DEADLINE)


def main(host: str, port: int, pause: float) -> None:
    """Ask until the end of standard input."""
    onlooker = Onlooker(host, port)
    due = time.monotonic()
    while onlooker.wait(due):
        if time.monotonic() >= due:
            onlooker.ask()
            due = max(due + pause, time.monotonic())
    onlooker.rest()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
