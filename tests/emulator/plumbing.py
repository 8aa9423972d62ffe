"""HTTP/1.1 on sockets, one thread per connection.

Why not http.server: its header parser costs more than everything else the emulator does with a small request, and the
scripted faults need the socket itself (half a body read, half an answer sent, a reset).
"""
import json
import socket
import ssl
import struct
import sys
import threading
import time
import traceback
from urllib.parse import parse_qsl, unquote

MAX_HEAD = 64 * 1024
MAX_BODY_IN_MEMORY = 16 * 1024 * 1024  # API bodies; object stores stream theirs
RECEIVE = 256 * 1024

REASONS = {
    100: "Continue", 200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 206: "Partial Content", 304: "Not Modified",
    308: "Resume Incomplete", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 409: "Conflict", 411: "Length Required", 412: "Precondition Failed", 413: "Request Entity Too Large",
    415: "Unsupported Media Type", 416: "Requested Range Not Satisfiable", 422: "Unprocessable Entity", 423: "Locked",
    429: "Too Many Requests", 499: "Client Closed Request", 500: "Internal Server Error", 501: "Not Implemented",
    502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout",
}


class Cut(Exception):
    """The connection ends here without an answer. RESET: by RST instead of FIN."""

    def __init__(self, reset=False):
        super().__init__("cut")
        self.reset = reset


class Disconnected(Exception):
    """The client went away in the middle of its request."""


class BadRequest(Exception):
    """What came is no HTTP request."""


class Answer:
    """STATUS, HEADERS (pairs) and BODY: bytes, or an iterable of bytes whose LENGTH is given."""

    __slots__ = ("status", "headers", "body", "length", "close", "cut_at", "reset")

    def __init__(self, status, body=b"", headers=(), length=None, close=False):
        self.status = status
        self.headers = list(headers)
        self.body = body
        self.length = len(body) if length is None else length
        self.close = close  # end the connection behind this answer
        self.cut_at = None  # a scripted fault: send this many bytes of the body, then cut
        self.reset = False  # that cut is an RST

    def header(self, name, default=None):
        for key, value in self.headers:
            if key.lower() == name.lower():
                return value
        return default

    def bytes(self):
        if not isinstance(self.body, bytes):
            self.body = b"".join(self.body)
        return self.body


class Request:
    """One request. Headers are lower-case and stripped, repeated ones joined with a comma; the body is read on demand."""

    def __init__(self, connection, method, target, version, headers):
        self.connection = connection
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers
        self.path, _, self.query_text = target.partition("?")
        if not self.path.startswith("/"):  # absolute form, as proxies are asked
            self.path = "/" + self.path.partition("://")[2].partition("/")[2]
        self._query = None
        self.received = 0  # body bytes taken from the socket, without the chunk sizes of a chunked body
        self.sha256 = None  # of the body, once it has been read
        self.body_json = None  # for the log of requests: what the API understood
        self.stop_after = None  # a scripted fault: cut when this many bytes of the body have been read
        self.reset_on_stop = False
        self._chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length")
        if length is not None and not length.isdigit():
            raise BadRequest("Content-Length %r" % length)
        self.length = int(length) if length is not None and not self._chunked else None
        self._left = self.length or 0
        self.at_end = not self._chunked and self._left == 0
        self._expects = headers.get("expect", "").lower() == "100-continue" and not self.at_end
        self._chunk_left = 0

    @property
    def query(self):
        """Decoded pairs as a dict of the last value of each name."""
        if self._query is None:
            self._query = dict(self.query_pairs())
        return self._query

    def query_pairs(self):
        return parse_qsl(self.query_text, keep_blank_values=True)

    def segments(self):
        return [unquote(part) for part in self.path.split("/")[1:]]

    @property
    def base_url(self):
        """Where the client reaches us: what it put into Host."""
        host = self.headers.get("host") or "%s:%d" % self.connection.server.address
        return "%s://%s" % (self.connection.server.scheme, host)

    # ---- body ----
    def has_length(self):
        return self.length is not None or self._chunked

    @property
    def chunked(self):
        return self._chunked

    def chunks(self):
        """The body in pieces as they arrive."""
        if self._expects:
            self._expects = False
            self.connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self.at_end:
            limit = RECEIVE
            if self.stop_after is not None:
                limit = min(limit, self.stop_after - self.received)
                if limit <= 0:
                    raise Cut(self.reset_on_stop)
            data = self._read_chunked(limit) if self._chunked else self.connection.receive(min(limit, self._left))
            if not self._chunked:
                self._left -= len(data)
                self.at_end = self._left == 0
            self.received += len(data)
            if data:
                yield data

    def _read_chunked(self, limit):
        if self._chunk_left == 0:
            line = self.connection.line()
            try:
                self._chunk_left = int(line.split(b";")[0], 16)
            except ValueError:
                raise BadRequest("chunk size %r" % line[:40]) from None
            if self._chunk_left == 0:
                while self.connection.line():  # trailers
                    pass
                self.at_end = True
                return b""
        data = self.connection.receive(min(limit, self._chunk_left))
        self._chunk_left -= len(data)
        if self._chunk_left == 0:
            self.connection.line()
        return data

    def read(self):
        """The whole body, for small ones."""
        parts = []
        for data in self.chunks():
            parts.append(data)
            if self.received > MAX_BODY_IN_MEMORY:
                raise BadRequest("a body of more than %d bytes" % MAX_BODY_IN_MEMORY)
        return b"".join(parts)

    def drain(self):
        for _ in self.chunks():
            pass

    def expects_continue(self):
        """The client waits for 100 Continue and hasn't got it."""
        return self._expects


class Connection:
    def __init__(self, server, sock):
        self.server = server
        self.socket = sock
        self.buffer = b""

    def _more(self):
        try:
            data = self.socket.recv(RECEIVE)
        except (ConnectionError, ssl.SSLError, OSError):
            data = b""
        if not data:
            raise Disconnected
        return data

    def receive(self, limit):
        """At least one and at most LIMIT bytes."""
        data = self.buffer or self._more()
        self.buffer = data[limit:]
        return data[:limit] if self.buffer else data

    def line(self):
        while b"\n" not in self.buffer:
            if len(self.buffer) > MAX_HEAD:
                raise BadRequest("a line too long")
            self.buffer += self._more()
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line.rstrip(b"\r")

    def send(self, data):
        try:
            self.socket.sendall(data)
        except OSError:
            raise Disconnected from None

    def next_request(self):
        """The head of the next request, or None when the client has closed."""
        while b"\r\n\r\n" not in self.buffer:
            if len(self.buffer) > MAX_HEAD:
                raise BadRequest("a head of more than %d bytes" % MAX_HEAD)
            try:
                self.buffer += self._more()
            except Disconnected:
                return None
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise BadRequest("request line %r" % lines[0][:200])
        headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or name != name.strip():
                raise BadRequest("header line %r" % line[:200])
            name, value = name.lower(), value.strip()
            headers[name] = headers[name] + "," + value if name in headers else value
        return Request(self, words[0], words[1], words[2], headers)

    def answer(self, request, answer, keep_alive, cut_at=None):
        """Send ANSWER. CUT_AT: stop after that many bytes of its body."""
        body = answer.bytes() if isinstance(answer.body, bytes) or answer.length < RECEIVE else answer.body
        has_body = request is None or (request.method != "HEAD" and answer.status not in (204, 304))
        lines = ["HTTP/1.1 %d %s" % (answer.status, REASONS.get(answer.status, "Unknown"))]
        lines += ["%s: %s" % pair for pair in answer.headers]
        if answer.status not in (204, 304) and answer.header("Content-Length") is None:
            lines.append("Content-Length: %d" % answer.length)
        lines.append("Connection: %s" % ("keep-alive" if keep_alive else "close"))
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        if cut_at is not None:
            self.send(head + answer.bytes()[:cut_at])
        elif not has_body:
            self.send(head)
        elif isinstance(body, bytes):
            self.send(head + body)
        else:
            self.send(head)
            for data in body:
                self.send(data)

    def close(self, reset=False):
        try:
            if reset:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if isinstance(self.socket, ssl.SSLSocket):
                    self.socket = _plain(self.socket)
            else:
                # A close with bytes unread sends RST, and an RST makes the client lose an answer it has not read yet.
                self.socket.shutdown(socket.SHUT_WR)
                self.socket.settimeout(0.2)
                for _ in range(64):
                    if not self.socket.recv(RECEIVE):
                        break
        except (OSError, ValueError):
            pass
        finally:
            try:
                self.socket.close()
            except OSError:
                pass


def _plain(wrapped):
    """The TCP socket below TLS: a reset must not say goodbye first."""
    return socket.socket(fileno=wrapped.detach())


class Server:
    """Accepts on ADDRESS and calls HANDLER(request) -> Answer in the thread of each connection.

    HANDLER may raise Cut; it decides itself what of the body it reads: the rest is drained before the answer is sent, or,
    when the client still waits for 100 Continue, the connection is closed behind the answer.
    """

    def __init__(self, host, port, handler, on_answer, tls=None):
        self.handler = handler
        self.on_answer = on_answer  # ON_ANSWER(request, answer or None, error text or None) once the request has ended
        self.tls = tls
        self.scheme = "https" if tls else "http"
        self.stopping = False
        self.connections = set()
        self.connections_lock = threading.Lock()
        self.refused_until = 0.0
        self._listen(host, port)

    def _listen(self, host, port):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
        self.listener = listener
        self.address = listener.getsockname()[:2]

    def start(self):
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def _accept(self):
        while not self.stopping:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                if self.stopping:
                    return
                self._wait_refused()
                continue
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _wait_refused(self):
        """The listener was closed by refuse(): open it again on the same port when its time is over."""
        while not self.stopping and time.monotonic() < self.refused_until:
            time.sleep(0.02)
        while not self.stopping:
            try:
                self._listen(*self.address)
                return
            except OSError:
                time.sleep(0.05)

    def refuse(self, seconds):
        """Refuse connections for SECONDS, and end those that are open."""
        self.refused_until = time.monotonic() + seconds
        try:
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        except OSError:
            pass
        self.listener.close()
        with self.connections_lock:
            for connection in self.connections:
                try:
                    connection.socket.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def stop(self):
        self.stopping = True
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()

    def _serve(self, sock):
        connection = Connection(self, sock)
        reset = False
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls is not None:
                connection.socket = self.tls.wrap_socket(sock, server_side=True)
            with self.connections_lock:
                self.connections.add(connection)
            while self._serve_one(connection):
                pass
        except Cut as cut:
            reset = cut.reset
        except (Disconnected, OSError):
            pass
        finally:
            with self.connections_lock:
                self.connections.discard(connection)
            connection.close(reset)

    def _handled(self, request):
        """HANDLER's answer; a mistake of ours, or a server behind us that fails, is an answer too."""
        try:
            return self.handler(request)
        except (BadRequest, Cut, Disconnected):
            raise
        except Exception:
            print("keboola: %s %s failed" % (request.method, request.target), file=sys.stderr)
            traceback.print_exc()
            return json_answer(500, {"error": "Application error. The emulator failed; its standard error says why.", "exceptionId": "emulator"})

    def _serve_one(self, connection):
        try:
            request = connection.next_request()
            if request is None:
                return False
        except BadRequest as error:
            connection.answer(None, Answer(400, ("bad request: %s\n" % error).encode(), [("Content-Type", "text/plain")]), False)
            return False
        try:
            answer = self._handled(request)
            keep_alive = not answer.close and "close" not in request.headers.get("connection", "").lower() \
                and request.version == "HTTP/1.1"
            if not request.at_end:
                if request.expects_continue():
                    keep_alive = False
                else:
                    request.drain()
        except BadRequest as error:
            answer = Answer(400, ("bad request: %s\n" % error).encode(), [("Content-Type", "text/plain")])
            keep_alive = False
        except (Cut, Disconnected) as error:
            self.on_answer(request, None, "cut" if isinstance(error, Cut) else "the client went away")
            raise
        # Before the answer leaves: who has it can rely on finding the request in the log.
        self.on_answer(request, answer, None if answer.cut_at is None else "cut")
        connection.answer(request, answer, keep_alive, answer.cut_at)
        if answer.cut_at is not None:
            raise Cut(answer.reset)
        return keep_alive


def json_answer(status, value, headers=()):
    """As PHP writes JSON: ASCII, and slashes escaped, so that a client's parser meets what the service sends."""
    text = json.dumps(value, separators=(",", ":")).replace("/", "\\/")
    return Answer(status, text.encode(), [("Content-Type", "application/json"), *headers])
