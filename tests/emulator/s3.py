"""The S3 bucket that files of the aws provider go to. Signatures are recomputed; nothing is taken on trust.

Reached path-style at ENDPOINT/_s3/BUCKET/KEY and ENDPOINT/BUCKET/KEY, and host-style with Host: BUCKET.anything.
"""
import base64
import binascii
import calendar
import hashlib
import hmac
import re
import secrets
import time
import zlib
from urllib.parse import unquote

import blobs
import sigv4
import stores
from plumbing import Answer, BadRequest
from stores import Credentials, Store, Stored

BUCKET = "kbc-files-emulator"
MIN_PART = 5 * 1024 * 1024
MAX_PUT = 5 * 1024 ** 3
MAX_PARTS = 10000
MAX_SKEW = 15 * 60


class S3Error(Exception):
    def __init__(self, status, code, message):
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


DENIED = (403, "AccessDenied", "Access Denied")


class S3Credentials(Credentials):
    def __init__(self, file, kind, lifetime):
        super().__init__(file, kind, lifetime)
        self.access = "ASIA" + base64.b32encode(secrets.token_bytes(10)).decode()
        self.secret = base64.b64encode(secrets.token_bytes(30)).decode()
        self.session = "FwoGZXIvYXdzE" + base64.b64encode(secrets.token_bytes(96)).decode() + "//token=="

    def as_json(self):
        return {"AccessKeyId": self.access, "SecretAccessKey": self.secret, "SessionToken": self.session,
                "Expiration": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(self.expires))}


class Upload:
    """A multipart upload."""

    def __init__(self, key, headers):
        self.key = key
        self.headers = headers
        self.parts = {}  # number -> Stored


class _Checks:
    """Checksums that the client announced, in headers or trailers, computed while the body passes."""

    KINDS = {"crc32": 4, "crc32c": 4, "sha1": 20, "sha256": 32, "crc64nvme": 8, "md5": 16}

    def __init__(self, headers):
        self.expected = {}
        for kind in self.KINDS:
            text = headers.get("content-md5" if kind == "md5" else "x-amz-checksum-" + kind)
            if text is not None:
                self.expect(kind, text)
        trailer = headers.get("x-amz-trailer", "").strip().lower()
        self.trailer = trailer.removeprefix("x-amz-checksum-") if trailer else None
        if self.trailer is not None and self.trailer not in self.KINDS:
            raise S3Error(400, "InvalidRequest", "The value specified in the x-amz-trailer header is not supported")
        self.state = {}
        for kind in [*self.expected, *([self.trailer] if self.trailer else [])]:
            self.state[kind] = hashlib.new(kind) if kind in ("sha1", "sha256", "md5") else 0

    def expect(self, kind, text):
        try:
            value = base64.b64decode(text, validate=True)
        except binascii.Error:
            value = b""
        if len(value) != self.KINDS[kind]:
            if kind == "md5":
                raise S3Error(400, "InvalidDigest", "The Content-MD5 you specified is not valid.")
            raise S3Error(400, "InvalidRequest", "Value for x-amz-checksum-%s header is invalid." % kind)
        self.expected[kind] = value

    def update(self, data):
        for kind, state in self.state.items():
            if kind == "crc32":
                self.state[kind] = zlib.crc32(data, state)
            elif kind == "crc32c":
                self.state[kind] = blobs.crc32c(data, state)
            elif kind == "crc64nvme":
                self.state[kind] = blobs.crc64(data, state)
            else:
                state.update(data)

    def verify(self):
        """The header lines that confirm them; S3Error BadDigest."""
        confirmed = []
        for kind, expected in self.expected.items():
            state = self.state[kind]
            value = state.to_bytes(self.KINDS[kind], "big") if isinstance(state, int) else state.digest()
            if value != expected:
                if kind == "md5":
                    raise S3Error(400, "BadDigest", "The Content-MD5 you specified did not match what we received.")
                raise S3Error(400, "BadDigest", "The %s you specified did not match the calculated checksum." % kind.upper())
            if kind != "md5":
                confirmed.append(("x-amz-checksum-" + kind, base64.b64encode(value).decode()))
        return confirmed


class Signed:
    """What the signature of a request says."""

    def __init__(self, credentials, payload, signature=None, key=None, date_time=None, scope=None):
        self.credentials = credentials
        self.payload = payload
        self.signature = signature
        self.key = key
        self.date_time = date_time
        self.scope = scope


class S3Store(Store):
    provider = "aws"

    def __init__(self, project):
        super().__init__(project)
        self.by_access = {}
        self.uploads = {}

    def reset(self):
        super().reset()
        with self.lock:
            for upload in self.uploads.values():
                for part in upload.parts.values():
                    part.blob.drop()
            self.by_access = {}
            self.uploads = {}

    # ---- for the API ----
    def prepare(self, file):
        file.container = BUCKET
        file.key = self.object_key(file)

    def _issue(self, file, kind, lifetime):
        credentials = S3Credentials(file, kind, lifetime)
        self.by_access[credentials.access] = credentials
        return credentials

    def upload_params(self, file, base_url):
        credentials = self._issue(file, "write", self.credentials_lifetime())
        file.write_credentials.append(credentials)
        params = {"key": file.key, "bucket": file.container, "acl": "private"}
        if file.is_encrypted:
            params["x-amz-server-side-encryption"] = "AES256"
        params["credentials"] = credentials.as_json()
        return {"uploadParams": params}

    def read_params(self, file, base_url):
        return {"s3Path": {"bucket": file.container, "key": file.key},
                "credentials": self._issue(file, "read", self.credentials_lifetime()).as_json()}

    def read_url(self, file, base_url):
        credentials = self._issue(file, "read", stores.HOUR)
        path = "/_s3/%s/%s" % (file.container, file.key + ("manifest" if file.is_sliced else ""))
        host = base_url.partition("://")[2]
        return "%s%s?%s" % (base_url, path, sigv4.presigned_query("GET", host, path, credentials.access, credentials.secret, file.region,
                                                                  credentials.session, stores.HOUR))

    def slice_url(self, file, suffix):
        return "s3://%s/%s" % (file.container, file.key + suffix)

    # ---- requests ----
    def route(self, request):
        """(bucket, key) when REQUEST is for S3, else None."""
        path = request.path
        if path.startswith("/_s3/"):
            bucket, _, key = path[5:].partition("/")
            return unquote(bucket), unquote(key)
        host = request.headers.get("host", "")
        if host.startswith(BUCKET + "."):
            return BUCKET, unquote(path[1:])
        if path.startswith("/%s/" % BUCKET) or path == "/" + BUCKET:
            return BUCKET, unquote(path[len(BUCKET) + 2:])
        return None

    def expire_of(self, request):
        """Scripted: the credentials that REQUEST uses are over."""
        access = self._access_key(request)
        if access in self.by_access:
            self.by_access[access].expires = 0

    @staticmethod
    def _access_key(request):
        found = re.search(r"Credential=([^/,\s]+)/", request.headers.get("authorization", ""))
        return found.group(1) if found else request.query.get("X-Amz-Credential", "").partition("/")[0]

    def handle(self, request, bucket, key):
        request_id = secrets.token_hex(8).upper()
        ids = [("x-amz-request-id", request_id), ("x-amz-id-2", "emulator"), ("Server", "AmazonS3")]
        try:
            signed = self._authenticate(request)
            if bucket != BUCKET:
                raise S3Error(404, "NoSuchBucket", "The specified bucket does not exist")
            answer = self._serve(request, key, signed)
            answer.headers += ids
            return answer
        except S3Error as error:
            if request.method == "HEAD":
                return Answer(error.status, b"", [*ids, ("Content-Type", "application/xml")])
            return stores.xml_error(error.status, error.code, error.message, ids,
                                    "<RequestId>%s</RequestId><HostId>emulator</HostId>" % request_id)

    # ---- signature ----
    def _authenticate(self, request):
        authorization = request.headers.get("authorization")
        if authorization is None:
            if "X-Amz-Signature" in request.query:
                return self._authenticate_query(request)
            raise S3Error(*DENIED)
        found = re.match(r"AWS4-HMAC-SHA256 +Credential=([^/,\s]+)/(\d{8})/([^/,]+)/([^/,]+)/aws4_request\s*,\s*"
                         r"SignedHeaders=([^,\s]+)\s*,\s*Signature=([0-9a-f]{64})\Z", authorization)
        if not found:
            raise S3Error(400, "AuthorizationHeaderMalformed", "The authorization header is malformed")
        access, date, region, service, names, signature = found.groups()
        headers = request.headers
        date_time = headers.get("x-amz-date", "")
        payload = headers.get("x-amz-content-sha256")
        credentials = self._credentials(access)
        self._check_time(date_time, date)
        self._check_scope(region, service)
        if payload is None:
            raise S3Error(400, "InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
        signed = names.split(";")
        if signed != sorted(signed) or "host" not in signed:
            raise S3Error(400, "AuthorizationHeaderMalformed", "The authorization header is malformed; the signed headers are not in order")
        unsigned = [name for name in headers if name.startswith("x-amz-") and name not in signed]
        if unsigned:
            raise S3Error(403, "AccessDenied", "There were headers present in the request which were not signed: %s" % ", ".join(unsigned))
        self._check_session(credentials, headers.get("x-amz-security-token"))
        scope = "%s/%s/s3/aws4_request" % (date, region)
        key = sigv4.signing_key(credentials.secret, date, region)
        canonical = sigv4.canonical_request(request.method, request.path, sigv4.canonical_query(request.query_text), headers, signed, payload)
        self._check_signature(key, date_time, scope, canonical, signature)
        self._check_expiry(credentials)
        return Signed(credentials, payload, signature, key, date_time, scope)

    def _authenticate_query(self, request):
        query = request.query
        try:
            access, date, region, service, _ = query["X-Amz-Credential"].split("/")
            date_time, signed, expires = query["X-Amz-Date"], query["X-Amz-SignedHeaders"].split(";"), int(query["X-Amz-Expires"])
        except (KeyError, ValueError):
            raise S3Error(400, "AuthorizationQueryParametersError", "Query-string authentication requires all its parameters") from None
        credentials = self._credentials(access)
        self._check_scope(region, service)
        self._check_session(credentials, query.get("X-Amz-Security-Token"))
        canonical = sigv4.canonical_request(request.method, request.path,
                                            sigv4.canonical_query(request.query_text, without=("X-Amz-Signature",)),
                                            request.headers, signed, sigv4.UNSIGNED)
        self._check_signature(sigv4.signing_key(credentials.secret, date, region), date_time, "%s/%s/s3/aws4_request" % (date, region),
                              canonical, query["X-Amz-Signature"])
        if time.time() > calendar.timegm(time.strptime(date_time, "%Y%m%dT%H%M%SZ")) + expires:
            raise S3Error(403, "AccessDenied", "Request has expired")
        self._check_expiry(credentials)
        return Signed(credentials, sigv4.UNSIGNED)

    def _credentials(self, access):
        try:
            return self.by_access[access]
        except KeyError:
            raise S3Error(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.") from None

    @staticmethod
    def _check_time(date_time, date):
        try:
            sent = calendar.timegm(time.strptime(date_time, "%Y%m%dT%H%M%SZ"))
        except ValueError:
            raise S3Error(403, "AccessDenied", "AWS authentication requires a valid Date or x-amz-date header") from None
        if abs(time.time() - sent) > MAX_SKEW:
            raise S3Error(403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.")
        if date_time[:8] != date:
            raise S3Error(400, "AuthorizationHeaderMalformed", "The authorization header is malformed; the date of the credential is wrong")

    def _check_scope(self, region, service):
        ours = self.project.settings["region"]
        if service != "s3":
            raise S3Error(400, "AuthorizationHeaderMalformed", "The authorization header is malformed; incorrect service \"%s\"" % service)
        if region != ours:
            raise S3Error(400, "AuthorizationHeaderMalformed",
                          "The authorization header is malformed; the region '%s' is wrong; expecting '%s'" % (region, ours))

    @staticmethod
    def _check_session(credentials, session):
        if session != credentials.session:
            raise S3Error(403 if session is None else 400, "InvalidAccessKeyId" if session is None else "InvalidToken",
                          "The AWS Access Key Id you provided does not exist in our records." if session is None
                          else "The provided token is malformed or otherwise invalid.")

    @staticmethod
    def _check_signature(key, date_time, scope, canonical, signature):
        if not hmac.compare_digest(sigv4.sign(key, sigv4.string_to_sign(date_time, scope, canonical)), signature):
            raise S3Error(403, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. "
                          "Check your key and signing method. We signed: %r" % canonical)

    def _check_expiry(self, credentials):
        if credentials.is_expired:
            raise S3Error(self.project.settings["expired_token_status"], "ExpiredToken", "The provided token has expired.")

    # ---- operations ----
    def _serve(self, request, key, signed):
        method, query = request.method, request.query
        credentials = signed.credentials
        if not credentials.covers(key):
            raise S3Error(*DENIED)
        if method in ("GET", "HEAD") and credentials.kind == "read" and "uploadId" not in query:
            return self._get(request, key)
        if credentials.kind != "write":
            raise S3Error(*DENIED)
        if method == "PUT" and "uploadId" in query:
            return self._put_part(request, key, signed)
        if method == "PUT":
            return self._put(request, key, signed)
        if method == "POST" and "uploads" in query:
            return self._create(request, key, signed)
        if method == "POST" and "uploadId" in query:
            return self._complete(request, key, signed)
        raise S3Error(*DENIED)  # HEAD, GET, DELETE, lists, AbortMultipartUpload

    def _get(self, request, key):
        if "x-amz-server-side-encryption" in request.headers:
            raise S3Error(400, "InvalidArgument", "x-amz-server-side-encryption header is not supported for this operation.")
        stored = self.find(BUCKET, key)
        if stored is None:
            raise S3Error(404, "NoSuchKey", "The specified key does not exist.")
        extra = [(name.title(), stored.headers[name]) for name in ("content-disposition", "content-encoding") if name in stored.headers]
        if "x-amz-server-side-encryption" in stored.headers:
            extra.append(("x-amz-server-side-encryption", stored.headers["x-amz-server-side-encryption"]))
        return stores.content_answer(request, stored, extra, request.headers.get("range"), stores.xml_error(
            416, "InvalidRange", "The requested range is not satisfiable"))

    @staticmethod
    def _check_object_headers(request, credentials):
        headers = request.headers
        if credentials.file.is_encrypted and headers.get("x-amz-server-side-encryption") != "AES256":
            raise S3Error(*DENIED)  # the policy of the credentials asks for it
        if headers.get("x-amz-acl", "private") != "private":
            raise S3Error(*DENIED)

    def _receive(self, request, signed):
        """The body of a PUT as a Blob, with the header lines that confirm its checksums."""
        if request.chunked or not request.has_length():
            raise S3Error(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
        checks = _Checks(request.headers)
        streaming = signed.payload.startswith("STREAMING-")
        chunks = request.chunks()
        if streaming:
            chunks = _AwsChunked(request, signed, checks)
        elif request.length > MAX_PUT:
            raise S3Error(400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
        writer = self.writer()
        try:
            for data in chunks:
                writer.write(data)
                if checks.state:
                    checks.update(data)
            blob = writer.finish()
        except BaseException:
            writer.discard()
            raise
        request.sha256 = blob.sha256
        try:
            if not streaming and signed.payload != sigv4.UNSIGNED and signed.payload != blob.sha256:
                raise S3Error(400, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed.")
            return blob, checks.verify()
        except S3Error:
            blob.drop()
            raise

    @staticmethod
    def _object_headers(request):
        return {name: request.headers[name] for name in ("content-type", "content-disposition", "content-encoding", "x-amz-acl",
                                                         "x-amz-server-side-encryption") if name in request.headers}

    def _put(self, request, key, signed):
        self._check_object_headers(request, signed.credentials)
        blob, confirmed = self._receive(request, signed)
        stored = Stored(blob, blob.md5_digest().hex(), self._object_headers(request))
        self.keep(BUCKET, key, stored)
        return Answer(200, b"", [("ETag", '"%s"' % stored.etag), *self._encryption(stored.headers), *confirmed])

    @staticmethod
    def _encryption(headers):
        value = headers.get("x-amz-server-side-encryption")
        return [("x-amz-server-side-encryption", value)] if value else []

    def _create(self, request, key, signed):
        self._check_object_headers(request, signed.credentials)
        request.drain()
        upload_id = secrets.token_urlsafe(48)
        with self.lock:
            self.uploads[upload_id] = Upload(key, self._object_headers(request))
        return stores.xml_answer(200, '<InitiateMultipartUploadResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Bucket>%s</Bucket>'
                                 "<Key>%s</Key><UploadId>%s</UploadId></InitiateMultipartUploadResult>" % (BUCKET, key, upload_id),
                                 self._encryption(self._object_headers(request)))

    def _upload(self, request, key):
        upload = self.uploads.get(request.query["uploadId"])
        if upload is None or upload.key != key:
            raise S3Error(404, "NoSuchUpload", "The specified upload does not exist. The upload ID may be invalid, or the upload may have "
                          "been aborted or completed.")
        return upload

    def _put_part(self, request, key, signed):
        upload = self._upload(request, key)
        number = request.query.get("partNumber", "")
        if not number.isdigit() or not 1 <= int(number) <= MAX_PARTS:
            raise S3Error(400, "InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive")
        if "x-amz-server-side-encryption" in request.headers:
            raise S3Error(400, "InvalidArgument", "x-amz-server-side-encryption header is not supported for this operation.")
        blob, confirmed = self._receive(request, signed)
        stored = Stored(blob, blob.md5_digest().hex())
        with self.lock:
            upload.parts[int(number)] = stored
        return Answer(200, b"", [("ETag", '"%s"' % stored.etag), *self._encryption(upload.headers), *confirmed])

    def _complete(self, request, key, signed):
        upload = self._upload(request, key)
        body = request.read()
        if signed.payload != sigv4.UNSIGNED and signed.payload != hashlib.sha256(body).hexdigest():
            raise S3Error(400, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed.")
        text = body.decode("utf-8", "replace")
        parts = []
        for part in re.findall(r"<Part>(.*?)</Part>", text, re.S):
            number = re.search(r"<PartNumber>\s*(\d+)\s*</PartNumber>", part)
            etag = re.search(r"<ETag>\s*(.*?)\s*</ETag>", part, re.S)
            if not number or not etag:
                raise S3Error(400, "MalformedXML", "The XML you provided was not well-formed or did not validate against our published schema")
            parts.append((int(number.group(1)), etag.group(1).replace("&quot;", '"').replace("&#34;", '"').strip('"')))
        if not parts or "<CompleteMultipartUpload" not in text:
            raise S3Error(400, "MalformedXML", "The XML you provided was not well-formed or did not validate against our published schema")
        if [number for number, _ in parts] != sorted({number for number, _ in parts}):
            raise S3Error(400, "InvalidPartOrder", "The list of parts was not in ascending order. The parts list must be specified in order by "
                          "part number.")
        with self.lock:
            chosen = []
            for number, etag in parts:
                stored = upload.parts.get(number)
                if stored is None or stored.etag != etag:
                    raise S3Error(400, "InvalidPart", "One or more of the specified parts could not be found.  The part may not have been "
                                  "uploaded, or the specified entity tag may not match the part's entity tag.")
                chosen.append(stored)
            if any(stored.blob.size < MIN_PART for stored in chosen[:-1]):
                raise S3Error(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size")
            if self.uploads.pop(request.query["uploadId"], None) is None:
                raise S3Error(404, "NoSuchUpload", "The specified upload does not exist.")
            etag = "%s-%d" % (hashlib.md5(b"".join(stored.blob.md5_digest() for stored in chosen)).hexdigest(), len(chosen))
            self.keep(BUCKET, key, Stored(blobs.Blob.joined([stored.blob for stored in chosen]), etag, upload.headers))
        return stores.xml_answer(200, '<CompleteMultipartUploadResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Location>'
                                 "https://%s.s3.amazonaws.com/%s</Location><Bucket>%s</Bucket><Key>%s</Key><ETag>&quot;%s&quot;</ETag>"
                                 "</CompleteMultipartUploadResult>" % (BUCKET, key, BUCKET, key, etag), self._encryption(upload.headers))


class _AwsChunked:
    """The payload of a body in aws-chunked encoding, with or without signatures of the chunks, with or without trailers."""

    def __init__(self, request, signed, checks):
        self.request = request
        self.signed = signed
        self.checks = checks
        self.source = request.chunks()
        self.buffer = b""
        self.is_signed = signed.payload.startswith("STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
        if not self.is_signed and signed.payload != "STREAMING-UNSIGNED-PAYLOAD-TRAILER":
            raise S3Error(400, "InvalidArgument", "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, a STREAMING- value, or a valid sha256 value.")
        length = request.headers.get("x-amz-decoded-content-length", "")
        if not length.isdigit():
            raise S3Error(411, "MissingContentLength", "You must provide the x-amz-decoded-content-length HTTP header.")
        self.expected = int(length)
        self.previous = signed.signature

    def _line(self):
        while b"\r\n" not in self.buffer:
            self._more()
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line

    def _more(self):
        data = next(self.source, None)
        if data is None:
            raise S3Error(400, "IncompleteBody", "The request body terminated unexpectedly")
        self.buffer += data

    def __iter__(self):
        total = 0
        while True:
            size_text, _, extension = self._line().partition(b";")
            try:
                size = int(size_text, 16)
            except ValueError:
                raise BadRequest("chunk size %r" % size_text[:40]) from None
            while len(self.buffer) < size:
                self._more()
            data, self.buffer = self.buffer[:size], self.buffer[size:]
            if self.is_signed:
                self._check(data, extension)
            if size == 0:
                break
            total += size
            yield data
            if self._line():
                raise S3Error(400, "IncompleteBody", "The request body terminated unexpectedly")
        self._trailers()
        if total != self.expected:
            raise S3Error(400, "IncompleteBody", "The request body has not the length of x-amz-decoded-content-length")

    def _check(self, data, extension):
        given = extension.decode("latin-1").removeprefix("chunk-signature=")
        text = "\n".join(["AWS4-HMAC-SHA256-PAYLOAD", self.signed.date_time, self.signed.scope, self.previous, sigv4.EMPTY_SHA256,
                          hashlib.sha256(data).hexdigest()])
        self.previous = sigv4.sign(self.signed.key, text)
        if self.previous != given:
            raise S3Error(403, "SignatureDoesNotMatch", "The signature of a chunk does not match.")

    def _trailers(self):
        for data in self.source:
            self.buffer += data
        for line in self.buffer.split(b"\r\n"):
            name, colon, value = line.decode("latin-1").partition(":")
            kind = name.strip().lower().removeprefix("x-amz-checksum-")
            if colon and kind in _Checks.KINDS:
                self.checks.expect(kind, value.strip())
        if self.checks.trailer and self.checks.trailer not in self.checks.expected:
            raise S3Error(400, "MalformedTrailerError", "The request contained trailing data that was not well-formed.")
