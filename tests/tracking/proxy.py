"""A proxy in front of a real MLflow server that can be slow, answer with errors, or be gone."""

from __future__ import annotations

import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Proxy:
    """Passes requests on to a server on this machine.

    Args:
        server_port: of the real server.
    """

    def __init__(self, server_port: int) -> None:
        self.delay_s = 0.0
        """Seconds before each answer."""
        self.status: int | None = None
        """Answer with this error instead of asking the server."""
        self.loses_answer_after: int | None = None
        """After so many more answers, ask the server but close the connection without an answer, once."""
        self.requests = 0
        """Requests seen so far, also those that were not passed on."""
        self._server_port = server_port
        self._listener: ThreadingHTTPServer | None = None
        self.listen()
        self.port = self._listener.server_address[1]

    @property
    def uri(self) -> str:
        """The address to give to MLflow's clients."""
        return f"http://127.0.0.1:{self.port}"

    def listen(self) -> None:
        """Be there (again)."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                proxy.requests += 1
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                time.sleep(proxy.delay_s)
                if proxy.status is not None:
                    self.reply(proxy.status, b'{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "not now"}')
                    return
                server = http.client.HTTPConnection("127.0.0.1", proxy._server_port, timeout=60)
                server.request(self.command, self.path, body, dict(self.headers))
                answer = server.getresponse()
                content = answer.read()
                server.close()
                if proxy.loses_answer_after is not None:
                    proxy.loses_answer_after -= 1
                    if proxy.loses_answer_after < 0:
                        proxy.loses_answer_after = None
                        self.close_connection = True
                        return
                self.reply(answer.status, content, answer.getheader("Content-Type"))

            def reply(self, status: int, content: bytes, kind: str | None = "application/json") -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind or "application/octet-stream")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        port = self.port if self._listener else 0
        self._listener = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._listener.daemon_threads = True
        threading.Thread(target=self._listener.serve_forever, daemon=True).start()

    def go(self) -> None:
        """Be gone: nobody listens at the port any more."""
        self._listener.shutdown()
        self._listener.server_close()
