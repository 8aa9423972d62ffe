"""The blob storage that files of the azure provider go to: ENDPOINT/_azure/ACCOUNT/CONTAINER/BLOB, a container for each file."""
import base64
import binascii
import html
import re
import secrets
import time
from urllib.parse import unquote

import blobs
import sas
import stores
from plumbing import Answer
from stores import Credentials, Store, Stored

ACCOUNT = "kbcemulator"
MIB = 1024 * 1024
MAX_BLOCKS = 50000
# (first version, largest block, largest Put Blob)
LIMITS = (("2019-12-12", 4000 * MIB, 5000 * MIB), ("2016-05-31", 100 * MIB, 256 * MIB), ("", 4 * MIB, 64 * MIB))


class AzureError(Exception):
    def __init__(self, status, code, message):
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


NOT_AUTHENTIC = (403, "AuthenticationFailed", "Server failed to authenticate the request. Make sure the value of Authorization header is "
                 "formed correctly including the signature.")


class SasCredentials(Credentials):
    def __init__(self, file, kind, lifetime, key, account):
        super().__init__(file, kind, lifetime)
        self.text = sas.container_sas(key, account, file.container, "rwl" if kind == "write" else "rl", time.time() - stores.HOUR, self.expires)
        self.signature = unquote(self.text.rpartition("sig=")[2])


class AzureParams:
    """The answers of the API for files on Azure; ENDPOINT(base url) is the BlobEndpoint, self.account and self.key the account."""

    provider = "azure"

    def prepare(self, file):
        file.container = "exp-15-files-4321-%d-%s" % (file.id, time.strftime("%Y-%m-%d", time.gmtime()))
        file.key = self.object_key(file).rpartition("/")[2].partition(".")[2]

    def issue(self, file, kind, lifetime):
        return SasCredentials(file, kind, lifetime, self.key, self.account)

    def _connection(self, base_url, credentials):
        return {"SASConnectionString": "BlobEndpoint=%s;SharedAccessSignature=%s" % (self.endpoint(base_url), credentials.text),
                "expiration": time.strftime("%Y-%m-%dT%H:%M:%S+0100", time.gmtime(credentials.expires + stores.HOUR))}

    def upload_params(self, file, base_url):
        credentials = self.issue(file, "write", self.credentials_lifetime())
        file.write_credentials.append(credentials)
        return {"absUploadParams": {"container": file.container, "blobName": file.key, "accountName": self.account,
                                    "absCredentials": self._connection(base_url, credentials)}}

    def read_params(self, file, base_url):
        return {"absPath": {"container": file.container, "name": file.key},
                "absCredentials": self._connection(base_url, self.issue(file, "read", self.credentials_lifetime()))}

    def read_url(self, file, base_url):
        return "%s/%s/%s?%s" % (self.endpoint(base_url), file.container, file.key + ("manifest" if file.is_sliced else ""),
                                self.issue(file, "read", stores.HOUR).text)

    def slice_url(self, file, suffix):
        return "azure://%s.blob.core.windows.net/%s/%s" % (self.account, file.container, file.key + suffix)


class AzureStore(AzureParams, Store):
    account = ACCOUNT

    def __init__(self, project):
        super().__init__(project)
        self.key = base64.b64encode(secrets.token_bytes(64)).decode()
        self.issued = {}  # signature -> SasCredentials
        self.staged = {}  # (container, blob) -> {block id: Stored}
        self.committed = {}  # the same, of the blocks that the blob is made of

    def reset(self):
        super().reset()
        with self.lock:
            for blocks in self.staged.values():
                for stored in blocks.values():
                    stored.blob.drop()
            self.issued, self.staged, self.committed = {}, {}, {}

    def endpoint(self, base_url):
        return "%s/_azure/%s" % (base_url, self.account)

    def issue(self, file, kind, lifetime):
        credentials = super().issue(file, kind, lifetime)
        self.issued[credentials.signature] = credentials
        return credentials

    # ---- requests ----
    def route(self, request):
        """(account, container, blob) when REQUEST is for Azure, else None."""
        if not request.path.startswith("/_azure/"):
            return None
        account, _, rest = request.path[8:].partition("/")
        container, _, name = rest.partition("/")
        return account, unquote(container), unquote(name)

    def expire_of(self, request):
        credentials = self.issued.get(request.query.get("sig", ""))
        if credentials:
            credentials.expires = 0

    def handle(self, request, account, container, name):
        request_id = secrets.token_hex(16)
        version = request.headers.get("x-ms-version") or request.query.get("sv", "")
        ids = [("x-ms-request-id", request_id), ("x-ms-version", version), ("Server", "Windows-Azure-Blob/1.0")]
        try:
            permissions = self._authenticate(request, account, container)
            answer = self._serve(request, container, name, permissions, self._limits(version))
        except AzureError as error:
            ids.append(("x-ms-error-code", error.code))
            text = "%s\nRequestId:%s\nTime:%s" % (error.message, request_id, sas.iso(time.time()))
            answer = stores.xml_error(error.status, error.code, text)
        answer.headers += ids
        return answer

    @staticmethod
    def _limits(version):
        return next((block, blob) for first, block, blob in LIMITS if version >= first)

    def _authenticate(self, request, account, container):
        query = request.query
        if "sig" not in query or account != self.account:
            raise AzureError(*NOT_AUTHENTIC)
        # Compared decoded: SDKs encode the text again in their own way.
        if sas.signature(self.key, account, container, query) != query["sig"] or query.get("sr") != "c":
            raise AzureError(*NOT_AUTHENTIC)
        credentials = self.issued.get(query["sig"])
        if credentials is None or credentials.is_expired:
            raise AzureError(403, "AuthenticationFailed", "Server failed to authenticate the request. Signature not valid in the specified "
                             "time frame: Start [%s] - Expiry [%s]" % (query.get("st"), query.get("se")))
        return query.get("sp", "")

    def _serve(self, request, container, name, permissions, limits):
        method, query = request.method, request.query
        if not name:
            if method == "GET" and query.get("restype") == "container" and query.get("comp") == "list" and "l" in permissions:
                return self._list(container)
            raise AzureError(403, "AuthorizationPermissionMismatch", "This request is not authorized to perform this operation using this "
                             "permission.")
        needs = {"GET": "r", "HEAD": "r", "PUT": "w"}.get(method)
        if needs is None or needs not in permissions:
            raise AzureError(403, "AuthorizationPermissionMismatch", "This request is not authorized to perform this operation using this "
                             "permission.")
        if method in ("GET", "HEAD"):
            return self._get(request, container, name)
        comp = query.get("comp")
        if comp == "block":
            return self._put_block(request, container, name, limits[0])
        if comp == "blocklist":
            return self._put_block_list(request, container, name)
        if comp is None:
            return self._put_blob(request, container, name, limits[1])
        raise AzureError(400, "InvalidQueryParameterValue", "Value for one of the query parameters specified in the request URI is invalid.")

    def _receive(self, request, limit):
        if request.chunked or not request.has_length():
            raise AzureError(411, "MissingContentLengthHeader", "The Content-Length header was not specified.")
        if request.length > limit:
            raise AzureError(413, "RequestBodyTooLarge", "The request body is too large and exceeds the maximum permissible limit.")
        md5 = self._digest(request, "content-md5", 16, "InvalidMd5", "The MD5 value specified in the request is invalid.")
        crc64 = self._digest(request, "x-ms-content-crc64", 8, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the "
                             "correct format.")
        writer, sum64 = self.writer(), 0
        try:
            for data in request.chunks():
                writer.write(data)
                if crc64 is not None:
                    sum64 = blobs.crc64(data, sum64)
            blob = writer.finish()
        except BaseException:
            writer.discard()
            raise
        request.sha256 = blob.sha256
        if md5 is not None and md5 != blob.md5_digest():
            blob.drop()
            raise AzureError(400, "Md5Mismatch", "The MD5 value specified in the request did not match with the MD5 value calculated by the "
                             "server.")
        if crc64 is not None and crc64 != sum64.to_bytes(8, "little"):
            blob.drop()
            raise AzureError(400, "Crc64Mismatch", "The CRC64 value specified in the request did not match with the CRC64 value calculated by "
                             "the server.")
        confirmed = [("Content-MD5", base64.b64encode(blob.md5_digest()).decode())]
        if crc64 is not None:
            confirmed.append(("x-ms-content-crc64", base64.b64encode(crc64).decode()))
        return blob, confirmed

    @staticmethod
    def _digest(request, header, length, code, message):
        text = request.headers.get(header)
        if text is None:
            return None
        try:
            value = base64.b64decode(text, validate=True)
        except binascii.Error:
            value = b""
        if len(value) != length:
            raise AzureError(400, code, message)
        return value

    def _check_conditions(self, request, container, name):
        exists = self.find(container, name) is not None
        if request.headers.get("if-none-match") == "*" and exists:
            raise AzureError(409, "BlobAlreadyExists", "The specified blob already exists.")

    def _keep_blob(self, request, container, name, blob):
        headers = {key: request.headers[header] for key, header in (
            ("content-type", "x-ms-blob-content-type"), ("content-disposition", "x-ms-blob-content-disposition")) if header in request.headers}
        stored = Stored(blob, "0x8D%s" % secrets.token_hex(6).upper(), headers)
        self.keep(container, name, stored)
        return [("ETag", '"%s"' % stored.etag), ("Last-Modified", stores.http_date(stored.modified)), ("x-ms-request-server-encrypted", "true")]

    def _put_blob(self, request, container, name, limit):
        kind = request.headers.get("x-ms-blob-type")
        if kind is None:
            raise AzureError(400, "MissingRequiredHeader", "An HTTP header that's mandatory for this request is not specified.")
        if kind != "BlockBlob":
            raise AzureError(400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format.")
        self._check_conditions(request, container, name)
        blob, confirmed = self._receive(request, limit)
        with self.lock:
            self._check_conditions(request, container, name)
            self.staged.pop((container, name), None)
            self.committed.pop((container, name), None)
            headers = self._keep_blob(request, container, name, blob)
        return Answer(201, b"", headers + confirmed)

    def _put_block(self, request, container, name, limit):
        block_id = self._block_id(request.query.get("blockid", ""))
        with self.lock:
            known = self.staged.setdefault((container, name), {})
            if any(len(other) != len(block_id) for other in known):
                raise AzureError(400, "InvalidBlobOrBlock", "The specified blob or block content is invalid.")
            if len(known) >= 2 * MAX_BLOCKS:
                raise AzureError(409, "BlockCountExceedsLimit", "The uncommitted block count cannot exceed the maximum limit of 100,000 blocks.")
        blob, confirmed = self._receive(request, limit)
        with self.lock:
            self.staged.setdefault((container, name), {})[block_id] = Stored(blob, "")
        return Answer(201, b"", [("x-ms-request-server-encrypted", "true"), *confirmed])

    @staticmethod
    def _block_id(text):
        try:
            raw = base64.b64decode(text, validate=True)
        except binascii.Error:
            raw = b""
        if not 1 <= len(raw) <= 64:
            raise AzureError(400, "InvalidQueryParameterValue", "Value for one of the query parameters specified in the request URI is invalid.")
        return raw

    def _put_block_list(self, request, container, name):
        self._check_conditions(request, container, name)
        md5 = self._digest(request, "content-md5", 16, "InvalidMd5", "The MD5 value specified in the request is invalid.")
        body = request.read()
        if md5 is not None and blobs.Blob.of(body).md5 != md5:
            raise AzureError(400, "Md5Mismatch", "The MD5 value specified in the request did not match with the MD5 value calculated by the "
                             "server.")
        text = body.decode("utf-8-sig", "replace")
        if "<BlockList" not in text:
            raise AzureError(400, "InvalidXmlDocument", "XML specified is not syntactically valid.")
        wanted = re.findall(r"<(Latest|Uncommitted|Committed)>\s*(.*?)\s*</\1>", text, re.S)
        if len(wanted) > MAX_BLOCKS:
            raise AzureError(400, "BlockListTooLong", "The block list may not contain more than 50,000 blocks.")
        with self.lock:
            self._check_conditions(request, container, name)
            staged, committed = self.staged.get((container, name), {}), self.committed.get((container, name), {})
            places = {"Latest": (staged, committed), "Uncommitted": (staged,), "Committed": (committed,)}
            chosen = []
            for kind, block_id in wanted:
                raw = self._block_id(html.unescape(block_id))
                stored = next((place[raw] for place in places[kind] if raw in place), None)
                if stored is None:
                    raise AzureError(400, "InvalidBlockList", "The specified block list is invalid.")
                chosen.append((raw, stored))
            headers = self._keep_blob(request, container, name, blobs.Blob.joined([stored.blob for _, stored in chosen]))
            self.committed[container, name] = dict(chosen)
            self.staged.pop((container, name), None)
        return Answer(201, b"", headers)

    def _get(self, request, container, name):
        stored = self.find(container, name)
        if stored is None:
            raise AzureError(404, "BlobNotFound", "The specified blob does not exist.")
        extra = [("x-ms-blob-type", "BlockBlob"), ("x-ms-creation-time", stores.http_date(stored.modified)), ("x-ms-server-encrypted", "true"),
                 ("x-ms-lease-status", "unlocked"), ("x-ms-lease-state", "available")]
        if "content-disposition" in stored.headers:
            extra.append(("Content-Disposition", stored.headers["content-disposition"]))
        wanted = request.headers.get("x-ms-range") or request.headers.get("range")
        if not wanted:
            extra.append(("Content-MD5", base64.b64encode(stored.blob.md5_digest()).decode()))
        unsatisfiable = stores.xml_error(416, "InvalidRange", "The range specified is invalid for the current size of the resource.",
                                         [("x-ms-error-code", "InvalidRange")])
        return stores.content_answer(request, stored, extra, wanted, unsatisfiable)

    def _list(self, container):
        with self.lock:
            found = sorted((name, stored) for (where, name), stored in self.objects.items() if where == container)
        text = "".join("<Blob><Name>%s</Name><Properties><Content-Length>%d</Content-Length><Etag>%s</Etag><BlobType>BlockBlob</BlobType>"
                       "</Properties></Blob>" % (html.escape(name), stored.blob.size, stored.etag) for name, stored in found)
        return stores.xml_answer(200, '<EnumerationResults ContainerName="%s"><Blobs>%s</Blobs><NextMarker /></EnumerationResults>'
                                 % (container, text))
