"""A real HTTP server that follows a script: it answers, fails, hangs, cuts, talks nonsense."""

import json
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def answer(body, text=None, reason="stop"):
    """An OpenAI answer that repeats its prompt."""
    if "messages" in body:
        said = body["messages"][0]["content"]
        choice = {"message": {"role": "assistant", "content": text or f"re: {said}"}}
    else:
        choice = {"text": text or f"re: {body['prompt']}"}
    usage = {"prompt_tokens": 3, "completion_tokens": 5}
    return {"choices": [choice | {"index": 0, "finish_reason": reason}], "usage": usage}


class Server(ThreadingHTTPServer):
    """Follows `script(body, nth time that it is asked this)`: a status and a body to send.

    A script may answer "cut" (the connection is reset), "half" (it is reset within the answer),
    "hang" (silent until the test is over) or "drip" (silent within the answer).
    """

    daemon_threads = True

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.asked: list[dict] = []
        self.times: Counter[str] = Counter()
        self.arrivals: list[float] = []
        self.running = self.most_running = 0
        self.lock = threading.Lock()
        self.over = threading.Event()

    def handle_error(self, request, client_address):
        """A client that left is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.asked.append(
                {"path": self.path, "authorization": self.headers.get("Authorization"), **body}
            )
            server.arrivals.append(time.monotonic())
            name = json.dumps(body.get("messages") or body.get("prompt"))
            server.times[name] += 1
            time_ = server.times[name]
            server.running += 1
            server.most_running = max(server.most_running, server.running)
        try:
            said = server.script(body, time_)
            if said == "cut":
                reset = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                self.close_connection = True
                self.connection.close()
                return
            if said == "hang":
                server.over.wait(30)
                self.close_connection = True
                return
            if said in ("half", "drip"):
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                self.wfile.flush()
                if said == "drip":
                    server.over.wait(30)
                self.close_connection = True
                return
            status, content, *headers = said
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for header in headers:
                self.send_header(*header)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        finally:
            with server.lock:
                server.running -= 1

    def log_message(self, *_):
        """Silent."""


@contextmanager
def serving(script):
    server = Server(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
