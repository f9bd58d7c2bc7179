"""A server in a process of its own, for tests."""

import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path


class Server:
    """A started server; the command is a shell's, and its port a free one."""

    def __init__(self, command: str) -> None:
        self.process = subprocess.Popen(
            ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        lines = [self.process.stdout.readline(), self.process.stdout.readline()]
        found = re.findall(r"http://[\d.]+:(\d+)", lines[1])
        if not found:
            raise AssertionError(f"The server did not start: {lines} {self.process.stderr.read()}")
        self.port = int(found[0])

    @classmethod
    def of(cls, checkpoint: Path, *options: str) -> "Server":
        program = [sys.executable, "-m", "histo_pl", "serve", str(checkpoint), "--port", "0", *options]
        return cls(f"exec {shlex.join(program)}")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def get(self, path: str) -> str:
        with self.connect() as link:
            link.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: link.recv(65536), b"")).decode()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(20)
