"""What the tests of the verb `synthesize` write with: an endpoint that answers the same always."""

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from megatron_synth.corpus import Document, write_documents
from megatron_synth.tokens import train_tokenizer

WORDS = [a + b for a in ("ba", "ke", "li", "mo", "nu", "ra") for b in ("dan", "fer", "gol", "mis")]


def words(seed: str, count: int) -> str:
    """Text that differs from seed to seed."""
    choose = random.Random(seed)
    return " ".join(choose.choice(WORDS) for _ in range(count))


def write_inputs(folder: Path) -> None:
    """Source documents, and a model's folder as an endpoint needs it: no weights."""
    documents = [Document(f"doc-{n}", words(f"source {n}", 40)) for n in range(12)]
    write_documents(folder / "documents.jsonl.zst", documents)
    train_tokenizer([d.text for d in documents] + WORDS, 320, folder / "model")
    (folder / "model" / "config.json").write_text('{"max_position_embeddings": 8192}')


class Server(ThreadingHTTPServer):
    """Answers each chat with one pair; keeps what it was asked."""

    asked: list[dict[str, object]]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.server.asked.append(body)
            said = words(json.dumps(body), 30)
            text = f"Question: {said}?\nAnswer: {said[::-1]}."
            choice = {"message": {"content": text}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 50, "completion_tokens": 40}
            answer = json.dumps({"choices": [choice], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def serve() -> Iterator[Server]:
    found = Server(("127.0.0.1", 0), Server.Handler)
    found.asked = []
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.shutdown()
        thread.join()
        found.server_close()
