"""The bucket that files of the gcp provider go to: the JSON API (media, multipart, resumable) and the XML API.

Reached at ENDPOINT/upload/storage/v1/b/BUCKET/o, ENDPOINT/storage/v1/b/BUCKET/o/KEY and ENDPOINT/BUCKET/KEY, each also below /_gcs.
"""
import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import threading
import time
from urllib.parse import unquote, urlencode

import stores
from plumbing import Answer, BadRequest, json_answer
from stores import Credentials, Store, Stored

BUCKET = "kbc-files-emulator-gcs"
QUANTUM = 256 * 1024  # chunks of a resumable upload are multiples of it


class GcsError(Exception):
    def __init__(self, status, reason, message, code=None):
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.code = code or reason  # in XML


UNAUTHORIZED = (401, "authError", "Invalid Credentials", "AuthenticationRequired")
FORBIDDEN = (403, "forbidden", "The caller does not have storage access to the Google Cloud Storage object.", "AccessDenied")


class GcsCredentials(Credentials):
    def __init__(self, file, kind, lifetime):
        super().__init__(file, kind, lifetime)
        self.token = "ya29." + secrets.token_urlsafe(64)

    def as_json(self):
        return {"access_token": self.token, "token_type": "Bearer", "expires_in": max(0, int(self.expires - time.time()))}


class Session:
    """A resumable upload."""

    def __init__(self, name, writer, expected, headers, total):
        self.name = name
        self.writer = writer
        self.expected = expected  # hashes that the client announced
        self.headers = headers
        self.total = total  # size announced at the start, or None
        self.lock = threading.Lock()
        self.done = None  # the Stored object


def _hashes(text):
    """{"crc32c": bytes, "md5": bytes} of an x-goog-hash header."""
    found = {}
    for piece in text.split(","):
        kind, equals, value = piece.strip().partition("=")
        if kind in ("crc32c", "md5") and equals:
            try:
                found[kind] = base64.b64decode(value, validate=True)
            except binascii.Error:
                raise GcsError(400, "invalid", "Invalid %s hash" % kind, "InvalidDigest") from None
    return found


def _verify(blob, expected):
    for kind, value in expected.items():
        actual = blob.crc32c().to_bytes(4, "big") if kind == "crc32c" else blob.md5_digest()
        if actual != value:
            name, given, ours = kind.upper(), base64.b64encode(value).decode(), base64.b64encode(actual).decode()
            raise GcsError(400, "invalid", "Provided %s \"%s\" doesn't match calculated %s \"%s\"." % (name, given, name, ours), "BadDigest")


class GcsStore(Store):
    provider = "gcp"
    lifetime = stores.HOUR

    def __init__(self, project):
        super().__init__(project)
        self.issued = {}
        self.sessions = {}
        self.url_key = secrets.token_bytes(32)

    def reset(self):
        super().reset()
        with self.lock:
            for session in self.sessions.values():
                if session.done is None:
                    session.writer.discard()
            self.issued, self.sessions = {}, {}

    # ---- for the API ----
    def prepare(self, file):
        file.container = BUCKET
        file.key = self.object_key(file)

    def _issue(self, file, kind):
        credentials = GcsCredentials(file, kind, self.credentials_lifetime())
        self.issued[credentials.token] = credentials
        return credentials

    def upload_params(self, file, base_url):
        credentials = self._issue(file, "write")
        file.write_credentials.append(credentials)
        return {"gcsUploadParams": {"projectId": "kbc-emulator", "bucket": BUCKET, "key": file.key, **credentials.as_json()}}

    def read_params(self, file, base_url):
        return {"gcsPath": {"bucket": BUCKET, "key": file.key}, "gcsCredentials": self._issue(file, "read").as_json()}

    def _url_signature(self, path, expires):
        return hmac.new(self.url_key, ("%s\n%d" % (path, expires)).encode(), hashlib.sha256).hexdigest()

    def read_url(self, file, base_url):
        path = "/%s/%s" % (BUCKET, file.key + ("manifest" if file.is_sliced else ""))
        expires = int(time.time()) + stores.HOUR
        return "%s%s?%s" % (base_url, path, urlencode({"Expires": expires, "X-Goog-Signature": self._url_signature(path, expires)}))

    def slice_url(self, file, suffix):
        return "gs://%s/%s" % (BUCKET, file.key + suffix)

    # ---- requests ----
    def route(self, request):
        """(prefix, form, bucket, key) when REQUEST is for GCS, else None."""
        path = request.path
        prefix = "/_gcs" if path.startswith("/_gcs/") else ""
        path = path[len(prefix):]
        found = re.match(r"/(upload|resumable/upload)/storage/v1/b/([^/]+)/o/?\Z", path)
        if found:
            return prefix, "upload", unquote(found.group(2)), None
        found = re.match(r"/(?:download/)?storage/v1/b/([^/]+)/o/(.+)\Z", path)
        if found:
            return prefix, "object", unquote(found.group(1)), unquote(found.group(2))
        bucket, _, key = path[1:].partition("/")
        if bucket == BUCKET or prefix:
            return prefix, "xml", unquote(bucket), unquote(key)
        return None

    def expire_of(self, request):
        credentials = self.issued.get(self._bearer(request))
        if credentials:
            credentials.expires = 0

    @staticmethod
    def _bearer(request):
        text = request.headers.get("authorization", "")
        return text[7:] if text.startswith("Bearer ") else ""

    def handle(self, request, prefix, form, bucket, key):
        ids = [("X-GUploader-UploadID", secrets.token_urlsafe(48)), ("Server", "UploadServer")]
        try:
            answer = self._serve(request, prefix, form, bucket, key)
        except GcsError as error:
            if form == "xml":
                answer = stores.xml_error(error.status, error.code, error.message)
            else:
                answer = json_answer(error.status, {"error": {"code": error.status, "message": error.message, "errors": [
                    {"message": error.message, "domain": "global", "reason": error.reason}]}})
            if error.status == 401:
                answer.headers.append(("WWW-Authenticate", 'Bearer realm="https://accounts.google.com/"'))
        answer.headers += ids
        return answer

    def _credentials(self, request):
        credentials = self.issued.get(self._bearer(request))
        if credentials is None or credentials.is_expired:
            raise GcsError(*UNAUTHORIZED)
        return credentials

    @staticmethod
    def _may(credentials, kinds, key):
        if credentials.kind not in kinds or not key or not credentials.covers(key):
            raise GcsError(*FORBIDDEN)

    def _serve(self, request, prefix, form, bucket, key):
        method, query = request.method, request.query
        if form == "upload" and "upload_id" in query:
            return self._continue(request)
        if form == "xml" and method in ("GET", "HEAD") and "X-Goog-Signature" in query:
            self._check_url(request, prefix)
        else:
            credentials = self._credentials(request)
            if bucket != BUCKET:
                raise GcsError(404, "notFound", "The specified bucket does not exist.", "NoSuchBucket")
            if form == "upload":
                if method != "POST":
                    raise GcsError(405, "methodNotAllowed", "Method not allowed")
                return self._upload(request, prefix, credentials)
            if method == "PUT" and form == "xml":
                self._may(credentials, ("write",), key)
                return self._put_xml(request, key)
            if method not in ("GET", "HEAD"):
                raise GcsError(*FORBIDDEN)
            self._may(credentials, ("read", "write"), key)
        stored = self.find(BUCKET, key)
        if stored is None:
            raise GcsError(404, "notFound", "No such object: %s/%s" % (BUCKET, key), "NoSuchKey")
        if form == "object" and query.get("alt") != "media" and not request.path.startswith(prefix + "/download/"):
            return json_answer(200, self._object_json(key, stored))
        return stores.content_answer(request, stored, [("x-goog-hash", self._hash_text(stored.blob)),
                                                       ("x-goog-stored-content-length", stored.blob.size)], request.headers.get("range"),
                                     stores.xml_error(416, "InvalidRange", "The requested range cannot be satisfied."))

    def _check_url(self, request, prefix):
        try:
            expires = int(request.query["Expires"])
        except (KeyError, ValueError):
            raise GcsError(400, "invalid", "Expires is missing", "InvalidArgument") from None
        if request.query["X-Goog-Signature"] != self._url_signature(unquote(request.path[len(prefix):]), expires):
            raise GcsError(403, "forbidden", "The request signature does not match.", "SignatureDoesNotMatch")
        if time.time() > expires:
            raise GcsError(400, "invalid", "The provided token has expired.", "ExpiredToken")

    @staticmethod
    def _hash_text(blob):
        return "crc32c=%s,md5=%s" % (base64.b64encode(blob.crc32c().to_bytes(4, "big")).decode(), base64.b64encode(blob.md5_digest()).decode())

    @staticmethod
    def _object_json(key, stored):
        blob = stored.blob
        moment = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stored.modified))
        return {"kind": "storage#object", "id": "%s/%s/%s" % (BUCKET, key, stored.etag), "name": key, "bucket": BUCKET,
                "generation": stored.etag, "metageneration": "1", "contentType": stored.headers.get("content-type", "application/octet-stream"),
                "timeCreated": moment, "updated": moment, "storageClass": "STANDARD", "size": str(blob.size),
                "md5Hash": base64.b64encode(blob.md5_digest()).decode(), "crc32c": base64.b64encode(blob.crc32c().to_bytes(4, "big")).decode(),
                "etag": base64.b64encode(stored.etag.encode()).decode()}

    # ---- uploads ----
    def _store(self, key, blob, content_type):
        stored = Stored(blob, str(time.time_ns() // 1000), {"content-type": content_type or "application/octet-stream"})
        self.keep(BUCKET, key, stored)
        return stored

    def _receive(self, request, chunks=None):
        writer = self.writer()
        try:
            for data in request.chunks() if chunks is None else chunks:
                writer.write(data)
            blob = writer.finish()
        except BaseException:
            writer.discard()
            raise
        request.sha256 = blob.sha256
        return blob

    def _expected(self, request, metadata=None):
        expected = _hashes(request.headers.get("x-goog-hash", ""))
        if "content-md5" in request.headers:
            expected.update(_hashes("md5=" + request.headers["content-md5"]))
        for name, kind in (("crc32c", "crc32c"), ("md5Hash", "md5")):
            if metadata and metadata.get(name):
                expected.update(_hashes("%s=%s" % (kind, metadata[name])))
        return expected

    @staticmethod
    def _needs_length(request):
        if not request.has_length():
            raise GcsError(411, "required", "POST requests require a Content-length header.", "MissingContentLength")

    def _put_xml(self, request, key):
        self._needs_length(request)
        expected = self._expected(request)
        blob = self._receive(request)
        try:
            _verify(blob, expected)
        except GcsError:
            blob.drop()
            raise
        stored = self._store(key, blob, request.headers.get("content-type"))
        return Answer(200, b"", [("ETag", '"%s"' % blob.md5_digest().hex()), ("x-goog-generation", stored.etag), ("x-goog-metageneration", "1"),
                                 ("x-goog-hash", self._hash_text(blob)), ("x-goog-stored-content-length", blob.size)])

    def _precondition(self, request, key):
        if request.query.get("ifGenerationMatch") == "0" and self.find(BUCKET, key) is not None:
            raise GcsError(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")

    def _upload(self, request, prefix, credentials):
        query = request.query
        kind = query.get("uploadType")
        if kind == "media":
            self._needs_length(request)
            key = query.get("name", "")
            self._may(credentials, ("write",), key)
            self._precondition(request, key)
            return self._finish(request, key, self._receive(request), self._expected(request), request.headers.get("content-type"))
        if kind == "multipart":
            return self._multipart(request, credentials)
        if kind == "resumable":
            return self._begin(request, prefix, credentials)
        raise GcsError(400, "invalid", "Invalid upload type: %s" % kind)

    def _finish(self, request, key, blob, expected, content_type):
        try:
            _verify(blob, expected)
        except GcsError:
            blob.drop()
            raise
        return json_answer(200, self._object_json(key, self._store(key, blob, content_type)))

    def _multipart(self, request, credentials):
        """multipart/related: metadata, then content; held in memory, as SDKs use it for small objects."""
        found = re.search(r'boundary="?([^";]+)', request.headers.get("content-type", ""))
        if not found:
            raise GcsError(400, "badContent", "Missing multipart boundary")
        try:
            body = request.read()
        except BadRequest:
            raise GcsError(413, "uploadTooLarge", "The emulator takes multipart uploads of up to 16 MB") from None
        parts = (b"\r\n" + body).split(b"\r\n--" + found.group(1).encode())
        if len(parts) != 4 or not parts[3].startswith(b"--"):
            raise GcsError(400, "badContent", "Malformed multipart body.")
        metadata = json.loads(parts[1].partition(b"\r\n\r\n")[2] or b"{}")
        head, _, content = parts[2].partition(b"\r\n\r\n")
        key = metadata.get("name") or request.query.get("name", "")
        self._may(credentials, ("write",), key)
        self._precondition(request, key)
        blob = self._receive(request, [content])
        kind = re.search(rb"content-type:\s*([^\r\n]+)", head, re.I)
        return self._finish(request, key, blob, self._expected(request, metadata), metadata.get("contentType") or
                            (kind.group(1).decode() if kind else None))

    def _begin(self, request, prefix, credentials):
        self._needs_length(request)
        try:
            metadata = json.loads(request.read() or b"{}")
        except ValueError:
            raise GcsError(400, "parseError", "Parse Error") from None
        key = request.query.get("name") or metadata.get("name", "")
        self._may(credentials, ("write",), key)
        self._precondition(request, key)
        total = request.headers.get("x-upload-content-length", "")
        session = Session(key, self.writer(), self._expected(request, metadata),
                          metadata.get("contentType") or request.headers.get("x-upload-content-type"), int(total) if total.isdigit() else None)
        upload_id = secrets.token_urlsafe(64)
        with self.lock:
            self.sessions[upload_id] = session
        location = "%s%s/upload/storage/v1/b/%s/o?%s" % (request.base_url, prefix, BUCKET, urlencode(
            {"uploadType": "resumable", "name": key, "upload_id": upload_id}))
        return Answer(200, b"", [("Location", location), ("X-GUploader-UploadID", upload_id)])

    def _continue(self, request):
        if self._bearer(request):  # the address of the session is a credential itself; a wrong one beside it is refused
            self._credentials(request)
        session = self.sessions.get(request.query["upload_id"])
        if session is None:
            raise GcsError(404, "notFound", "No such upload session")
        if request.method == "DELETE":
            with self.lock:
                self.sessions.pop(request.query["upload_id"], None)
            return Answer(499)
        if request.method not in ("PUT", "POST"):
            raise GcsError(405, "methodNotAllowed", "Method not allowed")
        with session.lock:
            return self._take(request, session)

    def _progress(self, session):
        size = session.writer.size
        return Answer(308, b"", [("Range", "bytes=0-%d" % (size - 1))] if size else [])

    def _take(self, request, session):
        if session.done is not None:
            request.drain()
            return json_answer(200, self._object_json(session.name, session.done))
        text = request.headers.get("content-range")
        if text is None:
            first, last, total = 0, (request.length or 0) - 1, request.length
        else:
            found = re.match(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)\Z", text)
            if not found:
                raise GcsError(400, "badRequest", "Failed to parse Content-Range header.")
            total = int(found.group(3)) if found.group(3) != "*" else None
            if found.group(1) is None:
                request.drain()
                if total is not None and session.writer.size == total:
                    return self._end(request, session)
                return self._progress(session)
            first, last = int(found.group(1)), int(found.group(2))
        self._check_range(request, session, first, last, total)
        is_last = total is not None and last + 1 == total
        if not is_last and (last + 1 - first) % QUANTUM:
            raise GcsError(400, "badRequest", "Invalid request. The number of bytes uploaded is required to be equal or greater than 262144, "
                           "except for the final request (it's recommended to be the exact multiple of 262144).")
        # What arrives before a connection breaks stays, in whole quanta.
        skip, pending = session.writer.size - first, bytearray()
        hashing = hashlib.sha256()
        for data in request.chunks():
            hashing.update(data)
            if skip:
                dropped = min(skip, len(data))
                skip, data = skip - dropped, data[dropped:]
            pending += data
            whole = len(pending) // QUANTUM * QUANTUM
            if whole:
                session.writer.write(bytes(pending[:whole]))
                del pending[:whole]
        request.sha256 = hashing.hexdigest()
        if pending:
            session.writer.write(bytes(pending))
        if is_last or text is None:
            session.expected.update(self._expected(request))
            return self._end(request, session)
        return self._progress(session)

    @staticmethod
    def _check_range(request, session, first, last, total):
        if request.length is not None and request.length != last + 1 - first:
            raise GcsError(400, "badRequest", "Content-Range does not fit Content-Length.")
        if total is not None and (last >= total or session.total not in (None, total)):
            raise GcsError(400, "badRequest", "Content-Range has the wrong total size.")
        session.total = total if session.total is None else session.total
        if first > session.writer.size:
            raise GcsError(416, "requestedRangeNotSatisfiable", "There is a gap: %d bytes are there." % session.writer.size)

    def _end(self, request, session):
        blob = session.writer.finish()
        try:
            _verify(blob, session.expected)
        except GcsError:
            blob.drop()
            with self.lock:
                self.sessions = {key: one for key, one in self.sessions.items() if one is not session}
            raise
        session.done = self._store(session.name, blob, session.headers)
        return json_answer(200, self._object_json(session.name, session.done))
