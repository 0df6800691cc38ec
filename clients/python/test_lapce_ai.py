"""Tests of lapce_ai.py: `python3 -m unittest` in this folder.

FakeDaemon is written from docs/protocol.md with its own packing and its own CRC, and plays one script per connection.
RealDaemon runs against the socket named by LAPCE_AI_TEST_SOCKET, and is skipped without it:

    lapce-ai --socket /tmp/mine/daemon.sock serve &
    LAPCE_AI_TEST_SOCKET=/tmp/mine/daemon.sock python3 -m unittest -v
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
import unittest.mock
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, NamedTuple

import lapce_ai as lapce
from lapce_ai import ECHO, Client, LapceError

OPEN, DATA, END, CANCEL, CREDIT, ERROR, ACCEPTED, GOAWAY, PING, HELLO, WELCOME = range(1, 12)
FIN, MORE, PREFIX, CRC = 0x10, 0x20, 0x40, 0x80
MAX_FRAME, MAX_STREAMS, INLINE = 16384, 4, 40000
FILE = os.path.abspath(lapce.__file__)


def le(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")


def slow_crc(data: bytes) -> int:
    """CRC-32C bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


class Frame(NamedTuple):
    kind: int
    flags: int
    type: int
    id: int
    payload: bytes


class Peer:
    """The daemon's side of one connection. Each frame that comes is held against section 2."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket, self.file, self.crc = connection, connection.makefile("rb"), False

    def frame(self) -> Frame:
        header = self.file.read(24)
        if len(header) < 24:
            raise EOFError("the client closed the connection")
        number = lambda at, size: int.from_bytes(header[at : at + size], "little")  # noqa: E731
        assert header[:5] == bytes([0x43, 0x50, 0x41, 0x4C, 1]), header
        payload = self.file.read(number(8, 4))
        assert len(payload) <= MAX_FRAME
        kind, flags = header[5] & 15, header[5] & 0xF0
        assert bool(flags & CRC) == self.crc
        assert number(20, 4) == (slow_crc(header[:20] + bytes(4) + payload) if self.crc else 0)
        allowed = {OPEN: FIN | PREFIX, PING: FIN}.get(kind, 0)
        assert kind in (OPEN, DATA, END, CANCEL, CREDIT, PING, HELLO) and not flags & 0x70 & ~allowed, (kind, flags)
        assert kind == OPEN or number(6, 2) == 0
        assert (number(12, 8) == 0) == (kind in (PING, HELLO))
        return Frame(kind, flags & 0x70, number(6, 2), number(12, 8), payload)

    def expect(self, kind: int, flags: int = 0) -> Frame:
        frame = self.frame()
        assert (frame.kind, frame.flags) == (kind, flags), frame
        return frame

    def send(self, kind: int, flags: int = 0, id: int = 0, payload: bytes = b"", type: int = 0) -> None:
        flags |= CRC if self.crc else 0
        header = le(0x4C415043, 4) + bytes([1, kind | flags]) + le(type, 2) + le(len(payload), 4) + le(id, 8)
        self.socket.sendall(header + le(slow_crc(header + bytes(4) + payload) if self.crc else 0, 4) + payload)

    def error(self, id: int, number: int, /, **body: Any) -> None:
        self.send(ERROR, 0, id, json.dumps(body).encode(), number)

    def welcome(self) -> Frame:
        hello = self.expect(HELLO)
        on = int.from_bytes(hello.payload[4:8], "little") & 2
        self.send(
            WELCOME,
            payload=bytes([1, 0, 0, 0]) + le(on, 4) + bytes(16) + le(7, 8) + le(1 << 24, 8)
            + le(MAX_FRAME, 4) + le(MAX_STREAMS, 4) + le(INLINE, 4) + le(0, 8) + le(4, 4) + b"fake",
        )  # fmt: skip
        self.crc = bool(on)
        return hello

    def request(self) -> Frame:
        """A whole request, whichever way it comes; gives credit for its rest."""
        first = self.frame()
        while first.kind == CREDIT:  # for a stream that has ended: it crossed the END
            first = self.frame()
        assert first.kind == OPEN, first
        body = first.payload[32:] if first.flags & PREFIX else first.payload
        if not first.flags & FIN:
            total = int.from_bytes(first.payload[:8], "little")
            self.send(CREDIT, 0, first.id, le(total - len(body), 4))
            kind = DATA
            while kind != END:
                piece = self.frame()
                assert piece.id == first.id and piece.kind in (DATA, END), piece
                kind, body = piece.kind, body + piece.payload
            assert len(body) == total
        return first._replace(payload=body)

    def item(self, id: int, body: bytes, last: bool, size: int = MAX_FRAME - 8) -> None:
        """One item in fragments of `size`; credit is for the script to mind."""
        pieces = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
        for index, piece in enumerate(pieces):
            prefix = le(len(body), 8) if index == 0 else b""
            if index < len(pieces) - 1:
                self.send(DATA, MORE | (PREFIX if prefix else 0), id, prefix + piece)
            else:
                self.send(END if last else DATA, FIN if last else 0, id, piece)

    def until_closed(self) -> list[Frame]:
        frames = []
        try:
            while True:
                frames.append(self.frame())
        except (EOFError, OSError):
            return frames


class FakeDaemon(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        os.mkdir(f"{self.folder}/lapce-ai")
        self.path = f"{self.folder}/lapce-ai/daemon.sock"

    def serve(self, script: Callable[[Peer], Any]) -> queue.Queue[Any]:
        """Plays `script` on the next connection; what it returns, or the exception that it raises, comes out of the queue."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen()
        done: queue.Queue[Any] = queue.Queue()

        def run() -> None:
            with listener, listener.accept()[0] as connection:
                connection.settimeout(20)
                try:
                    peer = Peer(connection)
                    with peer.file:
                        done.put(script(peer))
                except BaseException as error:  # the test's thread raises it
                    done.put(error)

        thread = threading.Thread(target=run)
        thread.start()
        self.addCleanup(thread.join, 30)
        return done

    def result(self, done: queue.Queue[Any]) -> Any:
        result = done.get(timeout=30)
        if isinstance(result, BaseException):
            raise result
        return result

    def fails(self, code: str, run: Callable[[], Any]) -> LapceError:
        with self.assertRaises(LapceError) as caught:
            run()
        self.assertEqual(caught.exception.code, code)
        return caught.exception

    def test_crc32c(self) -> None:
        self.assertEqual(lapce.crc32c(b"123456789"), 0xE3069283)
        self.assertEqual(lapce.crc32c(b"56789", lapce.crc32c(b"1234")), 0xE3069283)

    def test_hello(self) -> None:
        done = self.serve(lambda peer: peer.welcome())
        with Client(self.path, name="ä test") as client:
            self.assertEqual((client.server, client.connection), ("fake", 7))
        hello = self.result(done).payload
        self.assertEqual(hello[:8], bytes([1, 1, 0, 0, 0, 0, 0, 0]))
        self.assertEqual(hello[24:], le(1 << 18, 4) + le(7, 4) + "ä test".encode())

    def test_echo_whole_and_in_pieces(self) -> None:
        def script(peer: Peer) -> list[int]:
            peer.welcome()
            ids = []
            for _ in range(5):
                request = peer.request()
                self.assertEqual(request.type, ECHO)
                ids.append(request.id)
                window = 1 << 18
                for at in range(0, len(request.payload) - 1000, 1000):  # fragments, and the daemon minds its credit
                    while window < 1000:
                        window += int.from_bytes(peer.expect(CREDIT).payload, "little")
                    prefix = le(len(request.payload), 8) if at == 0 else b""
                    flags = MORE | (PREFIX if prefix else 0)
                    peer.send(DATA, flags, request.id, prefix + request.payload[at : at + 1000])
                    window -= 1000
                rest = len(request.payload) % 1000 or min(len(request.payload), 1000)
                while window < rest:
                    window += int.from_bytes(peer.expect(CREDIT).payload, "little")
                peer.send(END, FIN, request.id, request.payload[len(request.payload) - rest :])
            return ids

        for crc, big in ((False, 3_000_000), (True, 300_000)):
            with self.subTest(crc=crc):
                done = self.serve(script)
                with Client(self.path, crc=crc) as client:
                    for size in (0, 1, MAX_FRAME - 32, MAX_FRAME, big):
                        body = os.urandom(size)
                        self.assertEqual(client.call(ECHO, body), body)
                self.assertEqual(self.result(done), [1, 2, 3, 4, 5])
                os.unlink(self.path)

    def test_deadline_is_in_the_prefix(self) -> None:
        def script(peer: Peer) -> bytes:
            peer.welcome()
            request = peer.expect(OPEN, FIN | PREFIX)
            peer.send(END, FIN, request.id)
            return request.payload

        done = self.serve(script)
        with Client(self.path) as client:
            self.assertEqual(client.call(ECHO, b"abc", deadline=1.5), b"")
        self.assertEqual(self.result(done), le(3, 8) + le(1500, 4) + bytes(20) + b"abc")

    def test_events(self) -> None:
        events = [
            {"type": "start", "provider": "p", "model": "m"},
            {"type": "text", "text": "日" * 9000},
            {"type": "finish", "reason": "stop"},
        ]

        def script(peer: Peer) -> Any:
            peer.welcome()
            request = peer.request()
            peer.send(ACCEPTED, 0, request.id)
            for event in events:
                peer.item(request.id, json.dumps(event).encode(), False)
            peer.send(END, 0, request.id)
            return request.type, json.loads(request.payload)

        done = self.serve(script)
        with Client(self.path) as client:
            self.assertEqual(list(client.chat("hello", model="local", maxTokens=5)), events)
        request = {"messages": [{"role": "user", "content": "hello"}], "model": "local", "maxTokens": 5}
        self.assertEqual(self.result(done), (0x10, request))

    def test_credit_follows_the_reader(self) -> None:
        def script(peer: Peer) -> int:
            peer.welcome()
            request = peer.request()
            for _ in range(16):
                peer.send(DATA, 0, request.id, b"x" * MAX_FRAME)  # 2^18, the whole window
            peer.send(PING, payload=b"12345678")
            peer.expect(PING, FIN)  # no credit came first: nobody reads yet
            sent.set()
            credit = 0
            while credit < 16 * MAX_FRAME:
                credit += int.from_bytes(peer.expect(CREDIT).payload, "little")
            peer.send(END, 0, request.id)
            return credit

        sent = threading.Event()
        done = self.serve(script)
        with Client(self.path) as client:
            stream = client.stream(0x8001, b"", as_json=False)
            self.assertTrue(sent.wait(20))
            self.assertEqual(sum(len(item) for item in stream), 16 * MAX_FRAME)
        self.assertEqual(self.result(done), 16 * MAX_FRAME)

    def test_inline_window_and_max_streams(self) -> None:
        def script(peer: Peer) -> None:
            peer.welcome()
            opened = [peer.expect(OPEN, FIN) for _ in range(3)]  # 3 x 13000 of 40000
            peer.send(PING, payload=b"12345678")
            peer.expect(PING, FIN)  # and not the fourth
            peer.send(ACCEPTED, 0, opened[1].id)
            opened.append(peer.expect(OPEN, FIN))
            for frame in opened:
                peer.send(ACCEPTED, 0, frame.id)
            peer.send(PING, payload=b"12345678")
            peer.expect(PING, FIN)  # and not the fifth: it would be more than max_streams
            for frame in opened:
                peer.send(END, FIN, frame.id, b"ok")
            peer.send(END, FIN, peer.expect(OPEN, FIN).id, b"ok")

        done = self.serve(script)
        with Client(self.path) as client, ThreadPoolExecutor(5) as threads:
            self.assertEqual(list(threads.map(lambda _: client.call(0x8001, bytes(13000)), range(5))), [b"ok"] * 5)
        self.result(done)

    def test_many_in_flight_answered_backwards(self) -> None:
        def script(peer: Peer) -> None:
            peer.welcome()
            requests = [peer.request() for _ in range(4)]
            for request in reversed(requests):
                peer.send(DATA, MORE | PREFIX, request.id, le(len(request.payload), 8) + request.payload[:2])
            for request in requests:
                peer.send(END, FIN, request.id, request.payload[2:])

        done = self.serve(script)
        with Client(self.path) as client:
            bodies = [f"request {n}".encode() for n in range(4)]
            streams = [client.stream(ECHO, body, as_json=False) for body in bodies]
            self.assertEqual([list(stream) for stream in streams], [[body] for body in bodies])
        self.result(done)

    def test_error(self) -> None:
        def script(peer: Peer) -> None:
            peer.welcome()
            body = {"code": "rate_limited", "message": "slow down", "retryAfterMs": 1500, "provider": "p", "status": 429, "number": 1}
            peer.error(peer.request().id, 25, **body)
            peer.error(peer.request().id, 99, code="brand_new", message="from a later version")
            request = peer.request()
            peer.send(DATA, 0, request.id, b"half")
            peer.error(request.id, 31, code="stream_cut", message="gone")
            peer.send(END, FIN, peer.request().id, b"goes on")

        done = self.serve(script)
        with Client(self.path) as client:
            error = self.fails("rate_limited", lambda: client.call(ECHO))
            self.assertEqual((error.number, error.message, error.retry, error.retry_after), (25, "slow down", True, 1.5))
            self.assertEqual((error.provider, error.status), ("p", 429))
            self.assertFalse(self.fails("brand_new", lambda: client.call(ECHO)).retry)
            items = iter(client.stream(ECHO, b"", as_json=False))
            self.assertEqual(next(items), b"half")
            self.assertTrue(self.fails("stream_cut", lambda: next(items)).retry)
            self.assertEqual(client.call(ECHO), b"goes on")
        self.result(done)

    def test_error_in_place_of_welcome(self) -> None:
        def script(peer: Peer) -> None:
            peer.expect(HELLO)
            peer.error(0, 13, code="unsupported_version", message="too old")

        done = self.serve(script)
        self.fails("unsupported_version", lambda: Client(self.path, crc=True))
        self.result(done)

    def test_cancel(self) -> None:
        def script(peer: Peer) -> list[Frame]:
            peer.welcome()
            first = peer.request()
            peer.send(DATA, 0, first.id, b"{}")
            cancel = peer.frame()
            while cancel.kind == CREDIT:
                cancel = peer.frame()
            peer.send(DATA, 0, first.id, b"{}")  # was under way
            peer.error(first.id, 1, code="cancelled", message="")
            second = peer.request()
            peer.send(ACCEPTED, 0, second.id)
            self.assertEqual(peer.expect(CANCEL).id, second.id)
            peer.error(second.id, 1, code="cancelled", message="")
            peer.send(END, FIN, peer.request().id, b"goes on")
            return [cancel, *peer.until_closed()]

        done = self.serve(script)
        with Client(self.path) as client:
            for _ in client.chat("hello"):
                break
            stream = client.chat("hello")
            stream.cancel()
            self.fails("cancelled", lambda: list(stream))
            self.assertEqual(client.call(ECHO), b"goes on")
        self.assertEqual([(frame.kind, frame.id) for frame in self.result(done)], [(CANCEL, 1)])

    def test_goaway(self) -> None:
        def script(peer: Peer) -> list[Frame]:
            peer.welcome()
            request = peer.request()
            peer.send(GOAWAY, payload=le(request.id, 8) + le(1000, 4) + le(9, 2) + le(0, 2))
            peer.send(PING, payload=b"12345678")
            peer.expect(PING, FIN)
            gone.set()
            self.assertTrue(refused.wait(20))
            peer.send(END, FIN, request.id, b"{}")
            return peer.until_closed()

        gone, refused = threading.Event(), threading.Event()
        done = self.serve(script)
        client = Client(self.path)
        stream = client.chat("hello")
        self.assertTrue(gone.wait(20))
        self.assertTrue(self.fails("server_restarting", client.status).retry)
        refused.set()
        self.assertEqual(list(stream), [{}])
        self.assertEqual(self.result(done), [])  # the client hung up by itself
        client.close()

    def test_lost_connection(self) -> None:
        def script(peer: Peer) -> None:
            peer.welcome()
            peer.send(ACCEPTED, 0, [peer.request(), peer.request()][0].id)

        done = self.serve(script)
        client = Client(self.path)
        accepted, not_accepted = client.chat("a"), client.chat("b")
        self.result(done)
        self.assertFalse(self.fails("outcome_unknown", lambda: list(accepted)).retry)
        self.assertTrue(self.fails("server_restarting", lambda: list(not_accepted)).retry)
        with self.assertRaises(ConnectionError):
            client.status()
        client.close()

    def test_faults_of_the_daemon(self) -> None:
        good = le(0x4C415043, 4) + bytes([1, END | FIN]) + le(0, 2) + le(2, 4) + le(1, 8) + le(0, 4) + b"ok"
        change = lambda at, new: good[:at] + new + good[at + len(new) :]  # noqa: E731
        cases = {
            "bad_magic": bytes(24),
            "bad_version": change(4, b"\2"),
            "bad_flags": change(5, bytes([END | MORE])),
            "frame_too_large": change(8, le(MAX_FRAME + 1, 4)),
            "crc_unexpected": change(5, bytes([END | FIN | CRC])),
            "unexpected_frame": change(12, le(5, 8)),
            "bad_payload": change(5, bytes([ACCEPTED])),
            "length_mismatch": change(5, bytes([DATA | MORE | PREFIX]))[:8] + le(10, 4) + good[12:24] + le(3, 8) + b"ok" + good,
        }
        for fault, frames in cases.items():
            with self.subTest(fault):

                def script(peer: Peer, frames: bytes = frames) -> None:
                    peer.welcome()
                    peer.request()
                    peer.socket.sendall(frames)
                    peer.until_closed()

                done = self.serve(script)
                with Client(self.path) as client:
                    self.assertEqual(self.fails("protocol_error", lambda: client.call(ECHO)).fault, fault)
                self.result(done)
                os.unlink(self.path)

        def torn(peer: Peer) -> None:
            peer.welcome()
            request = peer.request()
            peer.crc = False
            peer.send(END, FIN | CRC, request.id, b"ok")  # flag without a CRC

        done = self.serve(torn)
        with Client(self.path, crc=True) as client:
            self.assertEqual(self.fails("protocol_error", lambda: client.call(ECHO)).fault, "crc_mismatch")
        self.result(done)

    @unittest.skipUnless(os.getuid() == 0, "only root can make a socket of somebody else")
    def test_somebody_elses_socket(self) -> None:
        os.chmod(self.folder, 0o755)
        os.chmod(f"{self.folder}/lapce-ai", 0o777)
        code = "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); " \
            "print(flush=True); c = s.accept()[0]; sys.exit(len(c.recv(100)))"  # fmt: skip
        with subprocess.Popen([sys.executable, "-c", code, self.path], stdout=subprocess.PIPE) as other:
            other.stdout.readline()
            with self.assertRaisesRegex(PermissionError, "65534"):
                Client(self.path)
            self.assertEqual(other.wait(20), 0)  # not a byte was sent

    def test_command_line(self) -> None:
        def script(peer: Peer) -> Any:
            peer.welcome()
            request = peer.request()
            for event in ({"type": "start"}, {"type": "text", "text": "Guten "}, {"type": "new"}, {"type": "text", "text": "Tag"}):
                peer.item(request.id, json.dumps(event).encode(), False)
            peer.item(request.id, b'{"type":"finish","reason":"stop"}', True)  # an END may carry the last item
            return json.loads(request.payload)["messages"][0]["content"]

        done = self.serve(script)
        environment = {**os.environ, "XDG_RUNTIME_DIR": self.folder}
        run = subprocess.run([sys.executable, FILE, "hello", "there"], env=environment, capture_output=True, text=True, timeout=30)
        self.assertEqual((run.stdout, run.stderr, run.returncode), ("Guten Tag\n", "", 0))
        self.assertEqual(self.result(done), "hello there")
        os.unlink(self.path)
        run = subprocess.run([sys.executable, FILE, "hello"], env=environment, capture_output=True, text=True, timeout=30)
        self.assertEqual((run.stdout, run.returncode), ("", 1))
        self.assertTrue(run.stderr.startswith("lapce_ai: "), run.stderr)


SOCKET, MODEL = os.environ.get("LAPCE_AI_TEST_SOCKET"), os.environ.get("LAPCE_AI_TEST_MODEL", "local")


@unittest.skipUnless(SOCKET, "no daemon to test against: set LAPCE_AI_TEST_SOCKET to the socket of one that runs")
class RealDaemon(unittest.TestCase):
    """Any daemon that echoes; what needs a provider is skipped if it has no `status`. LAPCE_AI_TEST_MODEL is asked, or "local"."""

    def full(self, client: Client) -> None:
        try:
            client.status()
        except LapceError as error:
            if error.code != "unknown_type":
                raise
            self.skipTest("the daemon at LAPCE_AI_TEST_SOCKET only echoes")

    def test_echo(self) -> None:
        for crc in (False, True):
            with Client(SOCKET, crc=crc) as client:
                for size in (0, 1024, 1 << 20, 5 << 20):
                    with self.subTest(crc=crc, size=size):
                        body = os.urandom(size)
                        self.assertTrue(client.call(ECHO, body) == body)

    def test_fifty_interleaved(self) -> None:
        with Client(SOCKET) as client, ThreadPoolExecutor(50) as threads:
            bodies = [os.urandom(n * 4001) for n in range(50)]
            self.assertEqual(list(threads.map(lambda body: client.call(ECHO, body), bodies)), bodies)
            streams = [client.stream(ECHO, body[:4000], as_json=False) for body in bodies]  # and from one thread
            self.assertEqual([b"".join(stream) for stream in reversed(streams)], [body[:4000] for body in reversed(bodies)])

    def test_errors_leave_the_connection_alone(self) -> None:
        with Client(SOCKET) as client:
            for body in (b"", b"x" * 100_000):
                with self.assertRaises(LapceError) as caught:
                    client.call(0x7FFF, body)
                self.assertEqual((caught.exception.code, caught.exception.number), ("unknown_type", 4))
            self.assertEqual(client.call(ECHO, b"still here"), b"still here")

    def test_leaving_a_large_answer(self) -> None:
        with Client(SOCKET) as client:
            stream = client.stream(ECHO, bytes(5 << 20), as_json=False)
            stream.cancel()  # before, while or after it is sent: each is allowed
            with self.assertRaises(LapceError) as caught:
                list(stream)
            self.assertEqual(caught.exception.code, "cancelled")
            self.assertEqual(client.call(ECHO, b"still here"), b"still here")

    def test_chat(self) -> None:
        with Client(SOCKET) as client:
            self.full(client)
            events = list(client.chat("hello", model=MODEL))
        kinds = [event["type"] for event in events]
        self.assertEqual((kinds[0], kinds[-1], kinds.count("start"), kinds.count("finish")), ("start", "finish", 1, 1))
        self.assertGreater(kinds.count("text"), 1)
        self.assertIn("provider", events[0])
        self.assertIn(events[-1]["reason"], ("stop", "length"))

    def test_chat_at_once(self) -> None:
        with Client(SOCKET) as client:
            self.full(client)
            [answer] = client.chat("hello", model=MODEL, stream=False)
        self.assertTrue(answer["content"])
        self.assertIn("finishReason", answer)

    def test_chat_cancelled_midway(self) -> None:
        # So small a window that the answer cannot have ended when the first words are read, however fast it is made.
        with unittest.mock.patch.object(lapce, "WINDOW", 256), Client(SOCKET) as client:
            self.full(client)
            stream = client.chat("tell me a story that goes on forever", model=MODEL)
            with self.assertRaises(LapceError) as caught:
                for event in stream:
                    if event["type"] == "text":
                        stream.cancel()
            self.assertEqual(caught.exception.code, "cancelled")
            self.assertEqual(client.call(ECHO, b"still here"), b"still here")

    def test_models(self) -> None:
        with Client(SOCKET) as client:
            self.full(client)
            models = client.models()
        self.assertTrue(models)
        self.assertTrue(all(model["id"] and model["provider"] for model in models), models)


if __name__ == "__main__":
    unittest.main()
