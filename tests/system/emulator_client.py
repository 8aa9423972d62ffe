"""A client of the Keboola emulator as its tests use it: the API, signatures, uploads; and what each of them begins with."""
import hashlib
import hmac
import http.client
import json
import re
import time
import urllib.parse

import pytest
from chute import wait_until
from keboola import TOKEN, Emulator

MIB = 1024 * 1024


# ---- a client ---------------------------------------------------------------------------------------------------------
class Response:
    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        """(HTTP status, code of the API or of XML)."""
        if self.body.startswith(b"<"):
            return self.status, re.search(rb"<Code>(\w+)</Code>", self.body).group(1).decode()
        return self.status, self.json.get("code")


def send(url, method, path, body=None, headers=None, context=None):
    """PATH is sent as it is. HEADERS: a dict; those of http.client only where they are missing."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(parts.netloc, timeout=30, context=context)
    else:
        connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    try:
        connection.request(method, parts.path + path, body, headers or {})
        answer = connection.getresponse()
        return Response(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


class Api:
    """The API of one emulator, with its token."""

    def __init__(self, emulator, token=TOKEN):
        self.emulator = emulator
        self.token = token

    def __call__(self, method, path, body=None, form=None, headers=None):
        headers = dict(headers or {})
        if self.token is not None:
            headers.setdefault("X-StorageApi-Token", self.token)
        if form is not None:
            body = urllib.parse.urlencode(form)
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        elif body is not None and not isinstance(body, (str, bytes)):
            body = json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        return send(self.emulator.url, method, "/v2/storage" + path, body, headers)

    def get(self, path):
        answer = self("GET", path)
        assert answer.status == 200, (path, answer.status, answer.body)
        return answer.json

    def bucket(self, name="b", **fields):
        answer = self("POST", "/buckets", {"name": name, **fields})
        assert answer.status == 201, answer.body
        return answer.json["id"]

    def prepare(self, name="f.csv", **fields):
        answer = self("POST", "/files/prepare", {"name": name, "federationToken": True, "isEncrypted": True, **fields})
        assert answer.status == 201, answer.body
        return answer.json

    def upload(self, data, name="f.csv", **fields):
        """A file with DATA (text or bytes) in it; its id."""
        data = data.encode() if isinstance(data, str) else data
        file = self.prepare(name, sizeBytes=len(data), **fields)
        answer = put(self.emulator, file, data)
        assert answer.status in (200, 201), answer.body
        return file["id"]

    def job(self, answer):
        """The finished job that ANSWER (202) began."""
        assert answer.status == 202, (answer.status, answer.body)
        return wait_until(lambda: (lambda job: job if job["status"] in ("success", "error") else None)(self.get("/jobs/%s" % answer.json["id"])),
                          "a job")

    def create(self, bucket, name, data, file="f.csv", **fields):
        return self.job(self("POST", "/buckets/%s/tables-async" % bucket, {"name": name, "dataFileId": self.upload(data, file), **fields}))

    def load(self, table, data, file="f.csv", **fields):
        return self.job(self("POST", "/tables/%s/import-async" % table, {"dataFileId": self.upload(data, file), **fields}))


class Signer:
    """Signature Version 4, written apart from the emulator's, from the recipe of AWS."""

    def __init__(self, file, credentials=None, style="/_s3"):
        self.params = file.get("uploadParams") or {"bucket": file["s3Path"]["bucket"], "key": file["s3Path"]["key"]}
        self.credentials = credentials or file["credentials" if "s3Path" in file else "uploadParams"]
        if "credentials" in self.credentials:
            self.credentials = self.credentials["credentials"]
        self.region = file["region"]
        self.style = style

    @staticmethod
    def text_to_sign(method, path, query, headers, signed, payload, date, region):
        canonical = "\n".join([method, path, query, *("%s:%s" % (name, headers[name].strip()) for name in signed), "", ";".join(signed), payload])
        return canonical, "\n".join(["AWS4-HMAC-SHA256", date, "%s/%s/s3/aws4_request" % (date[:8], region),
                                     hashlib.sha256(canonical.encode()).hexdigest()])

    @staticmethod
    def key(secret, date, region):
        key = ("AWS4" + secret).encode()
        for part in (date[:8], region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return key

    def send(self, emulator, method, data=b"", query="", key=None, extra=None, payload=None, drop=(), unsigned=None, change=None, url=None,
             body=None, host=None, path=None, clock=0):
        """One signed request. DROP: headers left out before signing; UNSIGNED: added after it; CHANGE(headers): after it too;
        CLOCK: seconds by which ours is ahead."""
        url = url or emulator.url
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + clock))
        if path is None:
            path = "%s/%s/%s" % (self.style, self.params["bucket"], key or self.params["key"])
        headers = {"host": host or urllib.parse.urlsplit(url).netloc, "x-amz-date": date,
                   "x-amz-content-sha256": payload or hashlib.sha256(data).hexdigest(),
                   "x-amz-security-token": self.credentials["SessionToken"], **(extra or {})}
        if method in ("PUT", "POST") and ("uploadId" not in query) and "acl" in self.params:
            headers.setdefault("x-amz-acl", self.params["acl"])
            if "x-amz-server-side-encryption" in self.params:
                headers.setdefault("x-amz-server-side-encryption", self.params["x-amz-server-side-encryption"])
        for name in drop:
            headers.pop(name, None)
        signed = sorted(headers)
        canonical_query = "&".join(sorted(piece if "=" in piece else piece + "=" for piece in query.split("&") if piece))
        _, text = self.text_to_sign(method, path, canonical_query, headers, signed, headers.get("x-amz-content-sha256", ""), date, self.region)
        signature = hmac.new(self.key(self.credentials["SecretAccessKey"], date, self.region), text.encode(), "sha256").hexdigest()
        headers["authorization"] = "AWS4-HMAC-SHA256 Credential=%s/%s/%s/s3/aws4_request, SignedHeaders=%s, Signature=%s" % (
            self.credentials["AccessKeyId"], date[:8], self.region, ";".join(signed), signature)
        headers.update(unsigned or {})
        if change:
            change(headers)
        return send(url, method, path + ("?" + query if query else ""), body if body is not None else data or None, headers)

    def put(self, emulator, data, **more):
        return self.send(emulator, "PUT", data, **more)

    # ---- multipart ----
    def begin(self, emulator, **more):
        answer = self.send(emulator, "POST", query="uploads", **more)
        assert answer.status == 200, answer.body
        return re.search(rb"<UploadId>(.*?)</UploadId>", answer.body).group(1).decode()

    def part(self, emulator, upload, number, data, **more):
        return self.send(emulator, "PUT", data, query="partNumber=%d&uploadId=%s" % (number, upload), **more)

    def complete(self, emulator, upload, parts, **more):
        body = "<CompleteMultipartUpload>%s</CompleteMultipartUpload>" % "".join(
            "<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>" % part for part in parts)
        return self.send(emulator, "POST", body.encode(), query="uploadId=" + upload, **more)


def sas_url(file, suffix=""):
    """(base of the blob, SAS text) of a file prepared on Azure."""
    params = file["absUploadParams"]
    pieces = dict(piece.split("=", 1) for piece in params["absCredentials"]["SASConnectionString"].split(";"))
    return "%s/%s/%s" % (pieces["BlobEndpoint"], params["container"], urllib.parse.quote(params["blobName"] + suffix)), pieces["SharedAccessSignature"]


def put_azure(file, data, suffix="", headers=None, query="", sas=None, method="PUT"):
    base, text = sas_url(file, suffix)
    kind = {} if query else {"x-ms-blob-type": "BlockBlob"}
    return send(base, method, "?" + (query + "&" if query else "") + (text if sas is None else sas), data, {**kind, **(headers or {})})


def put_gcs(emulator, file, data, suffix="", headers=None, token=None, method="PUT", key=None, prefix=""):
    params = file.get("gcsUploadParams") or {**file["gcsPath"], **file["gcsCredentials"]}
    return send(emulator.url, method, "%s/%s/%s" % (prefix, params["bucket"], key or params["key"] + suffix), data,
                {"Authorization": "Bearer " + (params["access_token"] if token is None else token), **(headers or {})})


def put(emulator, file, data, suffix=""):
    """Upload DATA for FILE the simple way of its provider."""
    if file["provider"] == "aws":
        return Signer(file).put(emulator, data, key=file["uploadParams"]["key"] + suffix)
    if file["provider"] == "azure":
        return put_azure(file, data, suffix)
    return put_gcs(emulator, file, data, suffix)



def uploaded(emulator, file):
    return next(one["uploaded"] for one in emulator.state()["files"] if one["id"] == file["id"])


# ---- fixtures ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def running():
    with Emulator() as one:
        yield one


@pytest.fixture
def emulator(running):
    running.reset()
    return running


@pytest.fixture
def api(emulator):
    return Api(emulator)


@pytest.fixture
def bucket(api):
    return api.bucket("b")


@pytest.fixture
def table(api, bucket):
    assert api.create(bucket, "t", "id,name,population\n1,Praha,1300000\n2,Brno,400000\n")["status"] == "success"
    return "in.c-b.t"
