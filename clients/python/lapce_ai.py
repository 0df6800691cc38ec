#!/usr/bin/env python3
"""A client for the lapce-ai daemon: one file, standard library only, frames over the socket (docs/protocol.md, version 1).

    with Client() as c:
        for event in c.chat("hello", model="local"):
            print(event.get("text", ""), end="")

Many threads may use one Client, with many requests in flight. One thread reads the socket and one writes it, so that reading never
waits for writing. What the daemon refuses is raised as LapceError, a daemon that is not there as OSError.
"""
from __future__ import annotations

import contextlib, json, os, queue, socket, struct, sys, threading  # noqa: E401
from typing import Any, Iterator

ECHO, STATUS, SHUTDOWN = 1, 2, 3
CHAT, AUTOCOMPLETE, FILE_ANALYSIS, EMBEDDINGS, MODELS, TOKEN_COUNT = range(0x10, 0x16)
OPEN, DATA, END, CANCEL, CREDIT, ERROR, ACCEPTED, GOAWAY, PING, HELLO, WELCOME = range(1, 12)
FIN, MORE, PREFIX, CRC = 0x10, 0x20, 0x40, 0x80
FLAGS, SIZES = {DATA: MORE | PREFIX, END: FIN, PING: FIN}, {CREDIT: 4, ACCEPTED: 0, GOAWAY: 16, PING: 8}  # of the daemon's frames
RETRY = {2, 6, 7, 9, 11, 15, 25, 27, 28, 29, 30, 31}  # section 8: the same request may succeed later
HEADER, OPEN_PREFIX = struct.Struct("<IBBHIQI"), struct.Struct("<QI20x")
HELLO_HEAD, WELCOME_HEAD = struct.Struct("<BBHI16sII"), struct.Struct("<B3xI16sQQIII12x")
MAGIC, VERSION, WINDOW = 0x4C415043, 1, 1 << 18
CRC_TABLE = list(range(256))
for _ in range(8):
    CRC_TABLE = [c >> 1 ^ (0x82F63B78 if c & 1 else 0) for c in CRC_TABLE]


def crc32c(data: bytes | memoryview, crc: int = 0) -> int:
    """CRC-32C (RFC 3720 B.4) of `data`, or of what `crc` was made from and then `data`."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class LapceError(Exception):
    """What an ERROR frame says (section 8). `retry`: the same request may succeed later, after `retry_after` seconds."""

    def __init__(self, number: int, body: dict[str, Any]) -> None:
        self.number, self.retry = number, number in RETRY
        self.code, self.message = body.get("code", "internal"), body.get("message", "")
        self.retry_after: float | None = body["retryAfterMs"] / 1000 if "retryAfterMs" in body else None
        self.provider, self.status, self.fault = body.get("provider"), body.get("status"), body.get("fault")
        super().__init__(f"{self.code}: {self.message}")


def _check(holds: bool, fault: str) -> None:
    if not holds:
        raise LapceError(14, {"code": "protocol_error", "message": f"the daemon broke the protocol: {fault}", "fault": fault})


class Stream:
    """The response to one request. Iterating gives its items; leaving the loop early cancels the request."""

    def __init__(self, client: Client, id: int, rest: bytes, as_json: bool) -> None:
        self._client, self.id, self._rest, self._as_json = client, id, memoryview(rest), as_json
        self._frames: queue.SimpleQueue[Any] = queue.SimpleQueue()  # (kind, flags, payload), or the exception that ends it
        self.accepted = self.ended = False

    def __iter__(self) -> Iterator[Any]:
        item, length, owed, kind = bytearray(), None, 0, 0
        try:
            while kind != END:
                if owed > WINDOW // 2 or owed and self._frames.empty():  # credit for what the reader has taken
                    self._client._send(CREDIT, 0, self.id, struct.pack("<I", owed))
                    owed = 0
                frame = self._frames.get()
                if isinstance(frame, Exception):
                    raise frame
                kind, flags, payload = frame
                if flags & PREFIX:
                    length, payload = int.from_bytes(payload[:8], "little"), payload[8:]
                item += payload
                owed += len(payload)
                if flags & FIN or kind == DATA and not flags & MORE:
                    _check(length in (None, len(item)), "length_mismatch")
                    yield json.loads(item) if self._as_json else bytes(item)
                    item, length = bytearray(), None
        finally:
            self.cancel()

    def _pour(self, credit: int) -> None:
        """Sends so much more of the request, in pieces."""
        while credit and self._rest:
            size = min(credit, len(self._rest), self._client._max_frame)
            piece, self._rest, credit = self._rest[:size], self._rest[size:], credit - size
            self._client._send(DATA if self._rest else END, 0, self.id, piece)

    def cancel(self) -> None:
        """Asks the daemon to drop the request, unless it has ended. Whoever iterates gets LapceError `cancelled`."""
        if not self.ended:
            self._client._send(CANCEL, 0, self.id)


class Client:
    """One connection. After the daemon's GOAWAY what runs goes on, and a new request raises its reason: make another Client."""

    def __init__(self, path: str | None = None, crc: bool = False, name: str = "lapce_ai.py") -> None:
        folder, uid = os.environ.get("XDG_RUNTIME_DIR"), os.getuid()
        path = path or (f"{folder}/lapce-ai" if folder else f"/tmp/lapce-ai-{uid}") + "/daemon.sock"
        self._crc, self._max_frame, self._last_id = False, 1 << 16, 0
        self._gone: Exception | None = None  # why this connection takes no more requests
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._changed = threading.Condition()  # for the two dictionaries and _gone
        self._streams: dict[int, Stream] = {}  # those without a terminal frame
        self._unseen: dict[int, int] = {}  # OPEN payload of those that have seen no frame from the daemon
        self._socket = socket.socket(socket.AF_UNIX)
        with contextlib.ExitStack() as undo:
            self._file = undo.enter_context(undo.enter_context(self._socket).makefile("rb"))
            self._socket.settimeout(10)
            if failed := self._socket.connect_ex(path):
                raise ConnectionError(f"no daemon answers at {path}: {os.strerror(failed)}. Start one with `lapce-ai serve`")
            owner = struct.unpack("3i", self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
            if owner not in (0, uid):
                raise PermissionError(f"{path} belongs to uid {owner}, which is neither yours nor root")
            label = name.encode()[:64]
            self._write(HELLO, 0, 0, HELLO_HEAD.pack(VERSION, VERSION, 0, 2 * crc, os.urandom(16), WINDOW, len(label)) + label)
            kind, _, number, _, body = self._read()
            if kind == ERROR:
                raise LapceError(number, json.loads(body))
            _check(kind == WELCOME and len(body) >= 64, "unexpected_frame")
            _, on, _, self.connection, _, self._max_frame, self._max_streams, self._inline = WELCOME_HEAD.unpack(body[:64])
            self.server, self._crc = body[64:].decode(), bool(on & 2)
            self._socket.settimeout(None)
            undo.pop_all()
        for run in (self._reader, self._writer):
            threading.Thread(target=run, daemon=True).start()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: Any) -> None:
        """Ends the connection; the daemon cancels what still runs."""
        with contextlib.suppress(OSError):  # it may have ended already
            self._socket.shutdown(socket.SHUT_RDWR)

    close = __exit__

    def stream(self, type: int, request: Any = b"", as_json: bool = True, deadline: float = 0) -> Stream:
        """Sends a request (bytes, or what JSON can say) as soon as it fits into the daemon's windows. `deadline` is in seconds."""
        rest = request if isinstance(request, bytes) else json.dumps(request).encode()
        payload, flags = OPEN_PREFIX.pack(len(rest), int(deadline * 1000)), PREFIX
        if len(rest) + 32 <= min(self._max_frame, self._inline):  # whole; else the rest follows when there is credit for it
            payload, flags, rest = (payload + rest, PREFIX | FIN, b"") if deadline else (rest, FIN, b"")
        with self._changed:
            self._changed.wait_for(lambda: self._gone or len(self._streams) < self._max_streams
                                   and sum(self._unseen.values()) + len(payload) <= self._inline)  # fmt: skip
            if self._gone:
                raise self._gone
            self._last_id += 1
            stream = self._streams[self._last_id] = Stream(self, self._last_id, rest, as_json)
            self._unseen[stream.id] = len(payload)
            self._send(OPEN, flags, stream.id, payload, type)
        return stream

    def call(self, type: int, request: Any = b"", deadline: float = 0) -> bytes:
        """One request with an answer of one item, as bytes."""
        return b"".join(self.stream(type, request, False, deadline))

    def status(self) -> Any:
        return json.loads(self.call(STATUS))

    def models(self) -> Any:
        return json.loads(self.call(MODELS))["models"]

    def chat(self, messages: str | list[dict[str, Any]], model: str = "", deadline: float = 0, **fields: Any) -> Stream:
        """The events of a chat about one prompt, or a list of `Message`; `fields` are more of `AIRequest`'s."""
        messages = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        return self.stream(CHAT, {"messages": messages, "model": model, **fields}, True, deadline)

    def _send(self, kind: int, flags: int, id: int, payload: bytes | memoryview = b"", type: int = 0) -> None:
        self._queue.put((kind, flags, id, payload, type))  # never waits; windows and credit bound what lies there

    def _write(self, kind: int, flags: int, id: int, payload: bytes | memoryview, type: int = 0) -> None:
        header = HEADER.pack(MAGIC, VERSION, kind | flags | CRC * self._crc, type, len(payload), id, 0)
        crc = crc32c(payload, crc32c(header)) if self._crc else 0
        self._socket.sendall(header[:20] + struct.pack("<I", crc) + payload)

    def _writer(self) -> None:
        with self._socket, contextlib.suppress(OSError):  # the reader finds the same, and tells the streams
            for frame in iter(self._queue.get, None):
                self._write(*frame)

    def _read(self) -> tuple[int, int, int, int, bytes]:
        """The next frame: kind, flags, type, id, payload."""
        header = self._file.read(24)
        if len(header) < 24:
            raise ConnectionError("the daemon closed the connection")
        magic, version, bits, type, length, id, crc = HEADER.unpack(header)
        kind, flags = bits & 0x0F, bits & 0x70
        _check(magic == MAGIC, "bad_magic")
        _check(version == VERSION, "bad_version")
        _check(not flags & ~FLAGS.get(kind, 0), "bad_flags")
        _check(length <= self._max_frame, "frame_too_large")
        _check(bool(bits & CRC) == self._crc, "crc_missing" if self._crc else "crc_unexpected")
        payload = self._file.read(length)
        _check(len(payload) == SIZES.get(kind, length), "bad_payload")
        _check(not self._crc or crc == crc32c(payload, crc32c(header[:20] + bytes(4))), "crc_mismatch")
        return kind, flags, type, id, payload

    def _reader(self) -> None:
        lost: Exception = ConnectionError("this client was asked for nothing more")
        with self._file:
            try:
                while self._streams or not self._gone:
                    self._take(*self._read())
            except Exception as error:  # whatever it is, nobody may wait for it for ever
                lost = error
        with self._changed:
            self._gone = self._gone or lost
            for stream in self._streams.values():
                number, code = (10, "outcome_unknown") if stream.accepted else (9, "server_restarting")
                stream.ended = True
                stream._frames.put(lost if isinstance(lost, LapceError) else LapceError(number, {"code": code, "message": str(lost)}))
            self._streams.clear()
            self._changed.notify_all()
        self._queue.put(None)

    def _take(self, kind: int, flags: int, number: int, id: int, payload: bytes) -> None:
        error = LapceError(number, json.loads(payload)) if kind == ERROR else None
        with self._changed:
            if error and not id:
                raise error
            if kind == PING and not flags & FIN:
                self._send(PING, FIN, 0, payload)
            elif kind == GOAWAY:
                code = int.from_bytes(payload[12:14], "little")
                name = {9: "server_restarting", 15: "idle_timeout"}.get(code, "internal")
                self._gone = LapceError(code, {"code": name, "message": "the daemon takes no more requests on this connection"})
            elif kind != PING:
                _check(id in self._streams and kind in (DATA, END, CREDIT, ERROR, ACCEPTED), "unexpected_frame")
                stream = self._streams[id]
                self._unseen.pop(id, None)
                stream.accepted |= kind in (ACCEPTED, DATA)
                if kind in (END, ERROR):
                    stream.ended = True
                    del self._streams[id]
                if kind == CREDIT:
                    stream._pour(int.from_bytes(payload, "little"))
                elif kind != ACCEPTED:
                    stream._frames.put(error or (kind, flags, payload))
            self._changed.notify_all()


if __name__ == "__main__":
    try:
        with Client() as client:
            for event in client.chat(" ".join(sys.argv[1:]) or sys.stdin.read()):
                print(event["text"] if event["type"] == "text" else "", end="", flush=True)
        print()
    except (LapceError, OSError) as error:
        sys.exit(f"lapce_ai: {error}")
