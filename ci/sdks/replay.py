"""The other side of an SDK: a server on loopback that notes a request and replays an answer; and the loop around it.

An exchange is {"kind": "chat" | "embeddings" | "models", "body": ..., "answer": {"status", "media_type", "body"}}; "answer" may
be missing. What comes back is {"sent": {"method", "path", "body"}, "differs": [...], "drops": [...], "got": ...}.
"""

import http.server
import json
import sys
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.replay()

    def do_GET(self):
        self.replay()

    def replay(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.sent = {
            "method": self.command,
            "path": self.path,
            "body": json.loads(body) if body else None,
        }
        answer = self.server.answer or {"status": 418, "media_type": "application/json", "body": "{}"}
        self.send_response(answer["status"])
        self.send_header("content-type", answer["media_type"])
        payload = answer["body"].encode()
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_):
        pass


EMPTY = ("", [], {}, None)


def compare(ours, theirs, path=""):
    """Where the SDK sends something else than we do, and what it leaves out."""
    differs, drops = [], []
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            here = f"{path}.{key}"
            # What is empty is as good as absent.
            if key not in theirs:
                if ours[key] not in EMPTY:
                    drops.append(here)
            elif key not in ours:
                if theirs[key] not in EMPTY:
                    differs.append(f"{here}: only the SDK has {json.dumps(theirs[key])}")
            else:
                more = compare(ours[key], theirs[key], here)
                differs += more[0]
                drops += more[1]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for at, (one, other) in enumerate(zip(ours, theirs)):
            more = compare(one, other, f"{path}.{at}")
            differs += more[0]
            drops += more[1]
    elif ours != theirs:
        differs.append(f"{path}: {json.dumps(ours)} is {json.dumps(theirs)} there")
    return differs, drops


def serve(talk):
    """Reads exchanges from standard input; `talk(url, exchange)` lets the SDK have each, and says what it got."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    for line in sys.stdin:
        exchange = json.loads(line)
        server.answer, server.sent = exchange.get("answer"), None
        got = talk(url, exchange)
        differs, drops = compare(exchange["body"], server.sent and server.sent["body"])
        print(json.dumps({"sent": server.sent, "differs": differs, "drops": drops, "got": got}), flush=True)
