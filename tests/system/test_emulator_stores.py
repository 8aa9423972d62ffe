"""The Keboola emulator: the object stores behind it, with signatures, sizes and hashes as the real ones check them."""
import base64
import concurrent.futures
import gzip
import hashlib
import hmac
import http.client
import json
import os
import re
import socket
import sys
import threading
import urllib.parse
import zlib

import pytest
from chute import TOP
from emulator_client import (  # noqa: F401: fixtures
    api, Api, emulator, MIB, put_azure, put_gcs, running, sas_url, send, Signer, uploaded)
from keboola import Emulator
from servers import Azurite, S3rver

sys.path.insert(0, str(TOP / "tests/emulator"))
import blobs  # noqa: E402
import sigv4  # noqa: E402


# ---- S3 -----------------------------------------------------------------------------------------------------------------
VECTOR = {
    "host": "kbc-files-test.s3.eu-central-1.amazonaws.com", "x-amz-acl": "private", "x-amz-date": "20260301T101530Z",
    "x-amz-security-token": "FwoGZXIvYXdzEXAMPLE//token==", "x-amz-server-side-encryption": "AES256"}


@pytest.mark.parametrize("payload,signature", [
    ("628190ecc12ec8a68b5dedac62f29d1b14b4a6ffc42e601ca42aea1444a49848", "67b1d5b5a4c0e52f12ea63b1172efa228857bf704255062a5180e5817b8c5165"),
    ("UNSIGNED-PAYLOAD", "c759f7c35e2e90f964d189b615f4256a88b3cf70f7fdb44d75ba2115dfbfb1f2")])
def test_known_signatures(payload, signature):
    headers = {**VECTOR, "x-amz-content-sha256": payload}
    path = "/exp-15/4321/files/2026/03/01/1234567.cities.csv"
    canonical = sigv4.canonical_request("PUT", path, sigv4.canonical_query(""), headers, sorted(headers), payload)
    if payload != "UNSIGNED-PAYLOAD":
        assert hashlib.sha256(b'"id","name"\n"1","Praha"\n').hexdigest() == payload
        assert hashlib.sha256(canonical.encode()).hexdigest() == "c0400f9ff61837fbe51a183b6e4315900cb43679df31015fa8bf3e13b422307a"
    key = sigv4.signing_key("exampleSecret/Key+0000000000000000000001", "20260301", "eu-central-1")
    text = sigv4.string_to_sign("20260301T101530Z", "20260301/eu-central-1/s3/aws4_request", canonical)
    assert sigv4.sign(key, text) == signature
    # and the client of these tests, which is written apart from it
    mine, text = Signer.text_to_sign("PUT", path, "", headers, sorted(headers), payload, "20260301T101530Z", "eu-central-1")
    assert mine == canonical
    assert hmac.new(Signer.key("exampleSecret/Key+0000000000000000000001", "20260301T", "eu-central-1"), text.encode(), "sha256").hexdigest() == signature


def test_the_example_of_aws():
    headers = {"date": "Fri, 24 May 2013 00:00:00 GMT", "host": "examplebucket.s3.amazonaws.com", "x-amz-date": "20130524T000000Z",
               "x-amz-content-sha256": "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072", "x-amz-storage-class": "REDUCED_REDUNDANCY"}
    canonical = sigv4.canonical_request("PUT", "/test$file.text", "", headers, sorted(headers), headers["x-amz-content-sha256"])
    key = sigv4.signing_key("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "20130524", "us-east-1")
    assert sigv4.sign(key, sigv4.string_to_sign("20130524T000000Z", "20130524/us-east-1/s3/aws4_request", canonical)) == (
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd")



@pytest.mark.parametrize("style", ["/_s3", "", "host"])
def test_an_object_is_put(emulator, api, style):
    file = api.prepare("a b č.csv")
    signer = Signer(file, style="/_s3" if style == "host" else style)
    more = {}
    if style == "host":
        more = {"host": file["uploadParams"]["bucket"] + ".localhost:1", "path": "/" + file["uploadParams"]["key"]}
    answer = signer.put(emulator, b"abc", **more)
    assert (answer.status, answer.body, answer.headers["ETag"]) == (200, b"", '"%s"' % hashlib.md5(b"abc").hexdigest())
    assert answer.headers["x-amz-server-side-encryption"] == "AES256" and answer.headers["x-amz-request-id"]
    assert signer.put(emulator, b"", payload="UNSIGNED-PAYLOAD", **more).status == 200
    assert uploaded(emulator, file) == 0
    assert signer.put(emulator, b"again", payload="UNSIGNED-PAYLOAD", extra={"content-disposition": "attachment; filename=x;"}, **more).status == 200
    assert uploaded(emulator, file) == 5


def tampered(name, value):
    return lambda headers: headers.__setitem__(name, value)


REFUSED = {
    "other key": (dict(key="exp-15/4321/files/other"), (403, "AccessDenied")),
    "suffix of a file that is not sliced": (dict(key="SUFFIX"), (403, "AccessDenied")),
    "no encryption": (dict(drop=["x-amz-server-side-encryption"]), (403, "AccessDenied")),
    "other encryption": (dict(extra={"x-amz-server-side-encryption": "aws:kms"}), (403, "AccessDenied")),
    "public": (dict(extra={"x-amz-acl": "public-read"}), (403, "AccessDenied")),
    "no session token": (dict(drop=["x-amz-security-token"]), (403, "InvalidAccessKeyId")),
    "wrong session token": (dict(extra={"x-amz-security-token": "x"}), (400, "InvalidToken")),
    "unsigned header": (dict(unsigned={"x-amz-meta-a": "b"}), (403, "AccessDenied")),
    "changed header": (dict(change=tampered("x-amz-acl", "public-read")), (403, "SignatureDoesNotMatch")),
    "changed body": (dict(body=b"abd"), (400, "XAmzContentSHA256Mismatch")),
    "no payload hash": (dict(drop=["x-amz-content-sha256"]), (400, "InvalidRequest")),
    "clock": (dict(clock=-1000), (403, "RequestTimeTooSkewed")),
    "clock ahead": (dict(clock=1000), (403, "RequestTimeTooSkewed")),
    "malformed": (dict(change=tampered("authorization", "AWS4-HMAC-SHA256 nonsense")), (400, "AuthorizationHeaderMalformed")),
    "anonymous": (dict(change=lambda headers: headers.pop("authorization")), (403, "AccessDenied")),
    "content-md5 wrong": (dict(extra={"content-md5": base64.b64encode(b"0" * 16).decode()}), (400, "BadDigest")),
    "content-md5 no digest": (dict(extra={"content-md5": "abc"}), (400, "InvalidDigest")),
    "crc32c wrong": (dict(extra={"x-amz-checksum-crc32c": "AAAAAA=="}), (400, "BadDigest")),
    "sha256 wrong": (dict(extra={"x-amz-checksum-sha256": base64.b64encode(bytes(32)).decode()}), (400, "BadDigest")),
    "checksum of a wrong size": (dict(extra={"x-amz-checksum-crc32c": "AAAA"}), (400, "InvalidRequest")),
    "other bucket": (dict(path="/_s3/other/key"), (404, "NoSuchBucket")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_object_is_refused(emulator, api, case):
    arguments, expected = REFUSED[case]
    file = api.prepare()
    arguments = dict(arguments)
    if arguments.get("key") == "SUFFIX":
        arguments["key"] = file["uploadParams"]["key"] + "x"
    assert Signer(file).put(emulator, b"abc", **arguments).error == expected
    assert uploaded(emulator, file) is None


def test_keys_are_checked(emulator, api):
    file = api.prepare()
    credentials = file["uploadParams"]["credentials"]
    assert Signer(file, {**credentials, "SecretAccessKey": "x"}).put(emulator, b"").error == (403, "SignatureDoesNotMatch")
    assert Signer(file, {**credentials, "AccessKeyId": "ASIAX"}).put(emulator, b"").error == (403, "InvalidAccessKeyId")
    assert Signer({**file, "region": "us-east-1"}).put(emulator, b"").error == (400, "AuthorizationHeaderMalformed")
    emulator.expire(file["id"])
    assert Signer(file).put(emulator, b"").error == (400, "ExpiredToken")
    emulator.settings(expired_token_status=403, credentials_seconds=0)
    assert Signer(api.prepare()).put(emulator, b"").error == (403, "ExpiredToken")


@pytest.mark.parametrize("kind,value", [
    ("content-md5", hashlib.md5(b"abc").digest()), ("x-amz-checksum-crc32c", (0x364B3FB7).to_bytes(4, "big")),
    ("x-amz-checksum-crc32", zlib.crc32(b"abc").to_bytes(4, "big")), ("x-amz-checksum-sha1", hashlib.sha1(b"abc").digest()),
    ("x-amz-checksum-sha256", hashlib.sha256(b"abc").digest()), ("x-amz-checksum-crc64nvme", blobs.crc64(b"abc").to_bytes(8, "big"))])
def test_checksums_that_are_right(emulator, api, kind, value):
    text = base64.b64encode(value).decode()
    answer = Signer(api.prepare()).put(emulator, b"abc", extra={kind: text})
    assert answer.status == 200 and (kind == "content-md5" or answer.headers[kind] == text)


def test_checksum_functions():
    assert blobs.crc32c(b"123456789") == blobs.crc32c_by_table(b"123456789") == 0xE3069283
    assert blobs.crc32c(b"56789", blobs.crc32c(b"1234")) == 0xE3069283
    assert blobs.crc64(b"123456789") == 0xAE8B14860A799888


@pytest.mark.parametrize("method,query", [("HEAD", ""), ("GET", ""), ("DELETE", ""), ("DELETE", "uploadId=x"), ("GET", "uploadId=x"), ("GET", "uploads")])
def test_upload_credentials_can_only_upload(emulator, api, method, query):
    file = api.prepare()
    Signer(file).put(emulator, b"abc")
    answer = Signer(file).send(emulator, method, query=query)
    assert answer.status == 403 and (method == "HEAD" or answer.error == (403, "AccessDenied"))
    assert uploaded(emulator, file) == 3


def test_multipart(emulator, api):
    file = api.prepare()
    signer = Signer(file)
    upload = signer.begin(emulator)
    parts = [os.urandom(5 * MIB), os.urandom(5 * MIB + 1), b"end"]
    etags = []
    for number, data in reversed(list(enumerate(parts, 1))):
        answer = signer.part(emulator, upload, number, data, payload="UNSIGNED-PAYLOAD")
        assert answer.status == 200
        etags.insert(0, (number, answer.headers["ETag"]))
    assert uploaded(emulator, file) is None
    again = signer.part(emulator, upload, 3, b"the end")
    etags[2] = (3, again.headers["ETag"])
    done = signer.complete(emulator, upload, etags)
    assert done.status == 200 and b"<CompleteMultipartUploadResult" in done.body
    whole = parts[0] + parts[1] + b"the end"
    digest = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in (parts[0], parts[1], b"the end"))).hexdigest()
    assert ("&quot;%s-3&quot;" % digest).encode() in done.body
    detail = api.get("/files/%d?federationToken=1" % file["id"])
    assert Signer(detail).send(emulator, "GET").body == whole
    assert signer.complete(emulator, upload, etags).error == (404, "NoSuchUpload")


def test_multipart_is_refused(emulator, api):
    file = api.prepare()
    signer = Signer(file)
    assert signer.send(emulator, "POST", query="uploads", drop=["x-amz-server-side-encryption"]).error == (403, "AccessDenied")
    upload = signer.begin(emulator)
    small = [(n, signer.part(emulator, upload, n, b"small%d" % n).headers["ETag"]) for n in (1, 2)]
    assert signer.complete(emulator, upload, small).error == (400, "EntityTooSmall")
    assert signer.complete(emulator, upload, small[::-1]).error == (400, "InvalidPartOrder")
    assert signer.complete(emulator, upload, [(1, '"x"')]).error == (400, "InvalidPart")
    assert signer.complete(emulator, upload, [(3, small[0][1])]).error == (400, "InvalidPart")
    assert signer.complete(emulator, upload, []).error == (400, "MalformedXML")
    assert signer.part(emulator, "nosuch", 1, b"x").error == (404, "NoSuchUpload")
    assert signer.part(emulator, upload, 10001, b"x").error == (400, "InvalidArgument")
    assert signer.part(emulator, upload, 1, b"x", extra={"x-amz-server-side-encryption": "AES256"}).error == (400, "InvalidArgument")
    assert signer.part(emulator, upload, 1, b"x", extra={"content-md5": "AAAAAAAAAAAAAAAAAAAAAA=="}).error == (400, "BadDigest")
    assert uploaded(emulator, file) is None
    assert signer.complete(emulator, upload, small[:1]).status == 200  # the only part may be small
    assert uploaded(emulator, file) == 6


def test_expect_100_continue(emulator, api):
    file = api.prepare()
    host = urllib.parse.urlsplit(emulator.url).netloc
    path = "/_s3/%s/%s" % (file["uploadParams"]["bucket"], file["uploadParams"]["key"])
    credentials = file["uploadParams"]["credentials"]
    for secret, first in ((credentials["SecretAccessKey"], b"HTTP/1.1 100 Continue\r\n\r\n"), ("wrong", b"HTTP/1.1 403 Forbidden\r\n")):
        headers = sigv4.signed_headers("PUT", host, path, "", "UNSIGNED-PAYLOAD", credentials["AccessKeyId"], secret, file["region"],
                                       credentials["SessionToken"], [("x-amz-acl", "private"), ("x-amz-server-side-encryption", "AES256")])
        with socket.create_connection(host.split(":"), timeout=30) as sock:
            head = "PUT %s HTTP/1.1\r\n%s\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n" % (
                path, "\r\n".join("%s: %s" % pair for pair in headers.items()))
            sock.sendall(head.encode())
            stream = sock.makefile("rb")
            assert stream.read(len(first)) == first
            if b"100" in first:
                sock.sendall(b"abc")
                assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
            else:
                assert b"SignatureDoesNotMatch" in stream.read()  # and it closes: the body was not wanted
    assert uploaded(emulator, file) == 3


def test_bodies_without_a_length_are_refused(emulator, api):
    assert Signer(api.prepare()).put(emulator, b"", payload="UNSIGNED-PAYLOAD", body=iter([b"abc"])).error == (411, "MissingContentLength")


def aws_chunked(signer, data, signature=None, date=None, trailer=b""):
    """DATA in chunks of 100 KB, signed when SIGNATURE is given."""
    out, previous = b"", signature
    pieces = [data[i:i + 100000] for i in range(0, len(data), 100000)] + [b""]
    for piece in pieces:
        extension = ""
        if signature:
            text = "\n".join(["AWS4-HMAC-SHA256-PAYLOAD", date, "%s/%s/s3/aws4_request" % (date[:8], signer.region), previous,
                              hashlib.sha256(b"").hexdigest(), hashlib.sha256(piece).hexdigest()])
            previous = hmac.new(Signer.key(signer.credentials["SecretAccessKey"], date, signer.region), text.encode(), "sha256").hexdigest()
            extension = ";chunk-signature=" + previous
        out += ("%x%s\r\n" % (len(piece), extension)).encode() + piece + (b"\r\n" if piece else b"")
    return out + trailer + b"\r\n"


@pytest.mark.parametrize("wrong", [False, True])
def test_the_chunked_encoding_of_aws_with_a_checksum_behind(emulator, api, wrong):
    file = api.prepare()
    data = os.urandom(250000)
    crc = blobs.crc32c(data) ^ wrong
    trailer = b"x-amz-checksum-crc32c:%s\r\n" % base64.b64encode(crc.to_bytes(4, "big"))
    signer = Signer(file)
    answer = signer.put(emulator, b"", payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER", body=aws_chunked(signer, data, trailer=trailer), extra={
        "content-encoding": "aws-chunked", "x-amz-decoded-content-length": "250000", "x-amz-trailer": "x-amz-checksum-crc32c"})
    if wrong:
        assert answer.error == (400, "BadDigest") and uploaded(emulator, file) is None
    else:
        assert answer.status == 200 and answer.headers["ETag"] == '"%s"' % hashlib.md5(data).hexdigest()


@pytest.mark.parametrize("wrong", [False, True])
def test_the_signed_chunks_of_aws(emulator, api, wrong):
    file = api.prepare()
    data = os.urandom(250000)
    signer = Signer(file)
    seen = {}

    class Later:  # the body needs the signature of the head
        def __iter__(self):
            body = aws_chunked(signer, data, seen["signature"], seen["date"])
            yield body.replace(data[200000:200010], b"0123456789") if wrong else body
    length = len(aws_chunked(signer, data, "0" * 64, "20260101T000000Z"))

    def look(headers):
        seen["signature"] = headers["authorization"].rpartition("Signature=")[2]
        seen["date"] = headers["x-amz-date"]
        headers["content-length"] = str(length)
    answer = signer.put(emulator, b"", payload="STREAMING-AWS4-HMAC-SHA256-PAYLOAD", body=Later(), change=look, extra={
        "content-encoding": "aws-chunked", "x-amz-decoded-content-length": "250000"})
    if wrong:
        assert answer.error == (403, "SignatureDoesNotMatch") and uploaded(emulator, file) is None
    else:
        assert answer.status == 200 and uploaded(emulator, file) == 250000


# ---- Azure --------------------------------------------------------------------------------------------------------------
@pytest.fixture
def azure(emulator, api):
    emulator.settings(provider="azure")
    return api


def test_a_blob_is_put(emulator, azure):
    file = azure.prepare("a b.csv")
    params = file["absUploadParams"]
    assert file["provider"] == "azure" and "uploadParams" not in file and params["container"].startswith("exp-15-files-4321-%d-" % file["id"])
    text = params["absCredentials"]["SASConnectionString"]
    assert re.fullmatch(r"BlobEndpoint=http://127\.0\.0\.1:\d+/_azure/kbcemulator;SharedAccessSignature=sv=2017-11-09&sr=c&st=\S+&se=\S+&sp=rwl&sig=\S+",
                        text)
    md5 = base64.b64encode(hashlib.md5(b"abc").digest()).decode()
    answer = put_azure(file, b"abc", headers={"Content-MD5": md5, "x-ms-version": "2017-11-09", "x-ms-date": "x", "If-None-Match": "*"})
    assert answer.status == 201 and answer.headers["Content-MD5"] == md5 and answer.headers["ETag"] and answer.body == b""
    assert put_azure(file, b"abcd").status == 201  # again
    assert uploaded(emulator, file) == 4
    assert put_azure(file, b"x", headers={"If-None-Match": "*"}).error == (409, "BlobAlreadyExists")


def test_the_signature_is_compared_decoded(azure):
    file = azure.prepare()
    pairs = urllib.parse.parse_qsl(sas_url(file)[1])
    assert put_azure(file, b"", sas=urllib.parse.urlencode(pairs)).status == 201  # colons as %3A
    for name, value in (("se", "2030-01-01T00:00:00Z"), ("sp", "rwdl"), ("sig", "x"), ("sr", "b")):
        changed = urllib.parse.urlencode([(key, value if key == name else old) for key, old in pairs])
        answer = put_azure(file, b"", sas=changed)
        assert answer.error == (403, "AuthenticationFailed") and answer.headers["x-ms-error-code"] == "AuthenticationFailed"
    assert put_azure(file, b"", sas="a=b").error == (403, "AuthenticationFailed")
    other = azure.prepare()
    assert put_azure(file, b"", sas=sas_url(other)[1]).error == (403, "AuthenticationFailed")


def test_what_azure_refuses(emulator, azure):
    file = azure.prepare()
    base, text = sas_url(file)
    assert send(base, "PUT", "?" + text, b"x").error == (400, "MissingRequiredHeader")
    assert send(base, "PUT", "?" + text, b"x", {"x-ms-blob-type": "PageBlob"}).error == (400, "InvalidHeaderValue")
    assert send(base, "DELETE", "?" + text).error == (403, "AuthorizationPermissionMismatch")
    assert send(base, "PUT", "?" + text, iter([b"x"]), {"x-ms-blob-type": "BlockBlob"}).error == (411, "MissingContentLengthHeader")
    assert put_azure(file, b"abc", headers={"Content-MD5": base64.b64encode(bytes(16)).decode()}).error == (400, "Md5Mismatch")
    assert put_azure(file, b"abc", headers={"Content-MD5": "AAAA"}).error == (400, "InvalidMd5")
    assert put_azure(file, b"abc", headers={"x-ms-content-crc64": "AAAAAAAAAAA="}).error == (400, "Crc64Mismatch")
    crc = base64.b64encode(blobs.crc64(b"abc").to_bytes(8, "little")).decode()
    assert send(base, "GET", "?" + text).error == (404, "BlobNotFound")
    assert put_azure(file, b"abc", headers={"x-ms-content-crc64": crc}).status == 201
    emulator.expire(file["id"])
    assert put_azure(file, b"abc").error == (403, "AuthenticationFailed")


@pytest.mark.parametrize("version,block,blob", [(None, 100, 256), ("2015-12-11", 4, 64), ("2019-07-07", 100, 256), ("2019-12-12", 4000, 5000)])
def test_limits_of_azure(azure, version, block, blob):
    """The length decides before the body is there."""
    file = azure.prepare()
    base, text = sas_url(file)
    parts = urllib.parse.urlsplit(base)
    for query, limit in (("comp=block&blockid=MDAwMDA=&", block), ("", blob)):
        for size, wanted in ((limit * MIB, b"100 Continue"), (limit * MIB + 1, b"413 Request Entity Too Large")):
            with socket.create_connection(parts.netloc.split(":"), timeout=30) as sock:
                sock.sendall(("PUT %s?%s%s HTTP/1.1\r\nHost: %s\r\nx-ms-blob-type: BlockBlob\r\nContent-Length: %d\r\nExpect: 100-continue\r\n%s\r\n" % (
                    parts.path, query, text, parts.netloc, size, "x-ms-version: %s\r\n" % version if version else "")).encode())
                assert sock.makefile("rb").readline() == b"HTTP/1.1 %s\r\n" % wanted


def block_list(ids, kind="Latest"):
    return ('<?xml version="1.0" encoding="utf-8"?><BlockList>%s</BlockList>' % "".join("<%s>%s</%s>" % (kind, one, kind) for one in ids)).encode()


def test_a_blob_of_blocks(emulator, azure):
    file = azure.prepare()
    ids = [base64.b64encode(b"%05d" % i).decode() for i in range(3)]
    parts = [os.urandom(300000), b"", b"end"]
    for one, data in list(zip(ids, parts))[::-1]:
        assert put_azure(file, data, query="comp=block&blockid=" + urllib.parse.quote(one, safe="")).status == 201
    assert uploaded(emulator, file) is None
    assert put_azure(file, block_list([*ids, "MDAwMDk="]), query="comp=blocklist").error == (400, "InvalidBlockList")
    assert put_azure(file, b"x", query="comp=block&blockid=MDA=").error == (400, "InvalidBlobOrBlock")  # of another length
    assert put_azure(file, b"x", query="comp=block&blockid=" + "A" * 100).error == (400, "InvalidQueryParameterValue")
    assert put_azure(file, b"nonsense", query="comp=blocklist").error == (400, "InvalidXmlDocument")
    done = put_azure(file, block_list(ids), query="comp=blocklist")
    assert done.status == 201 and done.headers["ETag"]
    assert send(*sas_url(file)[:1], "GET", "?" + sas_url(file)[1]).body == b"".join(parts)
    assert put_azure(file, block_list(ids), query="comp=blocklist").status == 201  # idempotent: Latest finds the committed ones
    assert put_azure(file, block_list(ids, "Uncommitted"), query="comp=blocklist").error == (400, "InvalidBlockList")
    base, text = sas_url(file)
    listed = send(base.rpartition("/")[0], "GET", "?restype=container&comp=list&" + text)
    assert b"<Name>f.csv</Name>" in listed.body


# ---- Google -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def gcp(emulator, api):
    emulator.settings(provider="gcp")
    return api


def gcs_upload(emulator, file, kind, body=None, headers=None, name=None, query="", prefix=""):
    params = file["gcsUploadParams"]
    return send(emulator.url, "POST", "%s/upload/storage/v1/b/%s/o?uploadType=%s&name=%s%s" % (
        prefix, params["bucket"], kind, urllib.parse.quote(name or params["key"], safe=""), query), body,
        {"Authorization": "Bearer " + params["access_token"], **(headers or {})})


def goog_hash(data, wrong=0):
    return "crc32c=" + base64.b64encode((blobs.crc32c(data) ^ wrong).to_bytes(4, "big")).decode()


def test_an_object_is_put_by_xml(emulator, gcp):
    file = gcp.prepare()
    params = file["gcsUploadParams"]
    assert params["token_type"] == "Bearer" and 3500 < params["expires_in"] <= 3600 and params["key"].startswith("exp-15/4321/files/")
    answer = put_gcs(emulator, file, b"abc", headers={"x-goog-hash": goog_hash(b"abc")})
    assert answer.status == 200 and answer.body == b"" and goog_hash(b"abc") in answer.headers["x-goog-hash"]
    assert put_gcs(emulator, file, iter([b"ab", b"cd"]), prefix="/_gcs").status == 200  # chunked is allowed
    assert uploaded(emulator, file) == 4
    assert put_gcs(emulator, file, b"abc", headers={"x-goog-hash": goog_hash(b"abc", 1)}).error == (400, "BadDigest")
    assert put_gcs(emulator, file, b"abc", headers={"Content-MD5": base64.b64encode(bytes(16)).decode()}).error == (400, "BadDigest")
    assert put_gcs(emulator, file, b"abc", token="x").error == (401, "AuthenticationRequired")
    assert put_gcs(emulator, file, b"abc", key="other").error == (403, "AccessDenied")
    assert put_gcs(emulator, file, None, method="DELETE").error == (403, "AccessDenied")
    assert put_gcs(emulator, file, None, method="GET").body == b"abcd"  # this token may read what it wrote


def test_an_object_is_posted_as_media(emulator, gcp):
    file = gcp.prepare()
    answer = gcs_upload(emulator, file, "media", b"abc", {"Content-Type": "text/csv"})
    body = answer.json
    assert answer.status == 200 and body["name"] == file["gcsUploadParams"]["key"] and body["size"] == "3" and body["contentType"] == "text/csv"
    assert body["md5Hash"] == base64.b64encode(hashlib.md5(b"abc").digest()).decode() and "crc32c=" + body["crc32c"] == goog_hash(b"abc")
    assert gcs_upload(emulator, file, "media", b"abc", {"x-goog-hash": goog_hash(b"abc", 1)}).json["error"]["code"] == 400
    assert gcs_upload(emulator, file, "media", b"", prefix="/_gcs").json["size"] == "0"
    assert gcs_upload(emulator, file, "media", b"abc", name="other").status == 403
    assert gcs_upload(emulator, file, "media", b"abc", query="&ifGenerationMatch=0").status == 412
    assert gcs_upload(emulator, file, "nonsense", b"abc").status == 400
    refused = gcs_upload(emulator, file, "media", b"abc", {"Authorization": "Bearer x"})
    assert refused.status == 401 and refused.json["error"]["errors"][0]["reason"] == "authError" and "WWW-Authenticate" in refused.headers
    params = file["gcsUploadParams"]
    quoted = urllib.parse.quote(params["key"], safe="")
    token = {"Authorization": "Bearer " + params["access_token"]}
    assert send(emulator.url, "GET", "/storage/v1/b/%s/o/%s" % (params["bucket"], quoted), headers=token).json["size"] == "0"
    assert send(emulator.url, "GET", "/download/storage/v1/b/%s/o/%s?alt=media" % (params["bucket"], quoted), headers=token).body == b""


def test_an_object_is_posted_in_two_parts(emulator, gcp):
    file = gcp.prepare()
    params = file["gcsUploadParams"]

    def post(crc):
        body = b"\r\n".join([b"--B", b"Content-Type: application/json", b"", json.dumps({"name": params["key"], "crc32c": crc}).encode(), b"--B",
                             b"Content-Type: text/csv", b"", b"--x\r\nabc", b"--B--", b""])
        return send(emulator.url, "POST", "/upload/storage/v1/b/%s/o?uploadType=multipart" % params["bucket"], body, {
            "Authorization": "Bearer " + params["access_token"], "Content-Type": 'multipart/related; boundary="B"'})
    answer = post(goog_hash(b"--x\r\nabc")[7:])
    assert answer.json["size"] == "8" and answer.json["contentType"] == "text/csv"
    assert post(goog_hash(b"")[7:]).status == 400


class Resumable:
    QUANTUM = 256 * 1024

    def __init__(self, emulator, file, headers=None, body=None):
        answer = gcs_upload(emulator, file, "resumable", body or b"", headers)
        assert answer.status == 200, answer.body
        self.location = answer.headers["Location"]
        self.token = {"Authorization": "Bearer " + file["gcsUploadParams"]["access_token"]}

    def put(self, data, content_range=None, headers=None, method="PUT"):
        parts = urllib.parse.urlsplit(self.location)
        return send(parts.scheme + "://" + parts.netloc, method, parts.path + "?" + parts.query, data,
                    {**({"Content-Range": content_range} if content_range else {}), **self.token, **(headers or {})})


def test_a_resumable_upload(emulator, gcp):
    file = gcp.prepare()
    session = Resumable(emulator, file, {"X-Upload-Content-Length": "600000", "X-Upload-Content-Type": "text/csv"})
    assert session.location.startswith(emulator.url + "/upload/storage/v1/b/")
    data = os.urandom(600000)
    quantum = session.QUANTUM
    empty = session.put(None, "bytes */600000")
    assert empty.status == 308 and empty.headers["Range"] is None
    first = session.put(data[:quantum], "bytes 0-%d/600000" % (quantum - 1))
    assert first.status == 308 and first.headers["Range"] == "bytes=0-%d" % (quantum - 1)
    assert session.put(data[:100], "bytes %d-%d/600000" % (quantum, quantum + 99)).status == 400  # no multiple of 256 KiB
    assert session.put(data[:quantum], "bytes %d-%d/600000" % (quantum + 1, 2 * quantum)).status == 416  # a gap
    assert session.put(data[:quantum], "bytes %d-%d/700000" % (quantum, 2 * quantum - 1)).status == 400  # another total
    assert session.put(data[:quantum], "nonsense").status == 400
    again = session.put(data[:2 * quantum], "bytes 0-%d/600000" % (2 * quantum - 1))  # overlaps
    assert again.status == 308 and again.headers["Range"] == "bytes=0-%d" % (2 * quantum - 1)
    assert session.put(None, "bytes */600000").headers["Range"] == "bytes=0-%d" % (2 * quantum - 1)
    assert uploaded(emulator, file) is None
    last = session.put(data[2 * quantum:], "bytes %d-599999/600000" % (2 * quantum), {"x-goog-hash": goog_hash(data)})
    assert last.status == 200 and last.json["size"] == "600000" and "crc32c=" + last.json["crc32c"] == goog_hash(data)
    assert session.put(None, "bytes */600000").status == 200
    assert put_gcs(emulator, file, None, method="GET").body == data


def test_a_resumable_upload_of_unknown_size_and_in_one_piece(emulator, gcp):
    file = gcp.prepare()
    session = Resumable(emulator, file)
    data = os.urandom(Resumable.QUANTUM)
    assert session.put(data, "bytes 0-%d/*" % (len(data) - 1)).status == 308
    assert session.put(b"end", "bytes %d-%d/%d" % (len(data), len(data) + 2, len(data) + 3)).json["size"] == str(len(data) + 3)
    assert Resumable(emulator, file).put(b"abc").json["size"] == "3"
    assert Resumable(emulator, file).put(b"", "bytes */0").json["size"] == "0"
    wrong = Resumable(emulator, file, {"Content-Type": "application/json"}, json.dumps({"crc32c": goog_hash(b"x")[7:]}))
    assert wrong.put(b"abc").status == 400
    cancelled = Resumable(emulator, file)
    assert cancelled.put(None, method="DELETE").status == 499
    assert cancelled.put(b"abc").status == 404


def test_what_arrived_before_a_cut_stays(emulator, gcp):
    file = gcp.prepare()
    session = Resumable(emulator, file)
    data = os.urandom(4 * Resumable.QUANTUM)
    emulator.fault(r"upload_id", cut="mid_body", at=2 * Resumable.QUANTUM + 1000)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        session.put(data, "bytes 0-%d/%d" % (len(data) - 1, len(data)))
    status = session.put(None, "bytes */%d" % len(data))
    assert status.status == 308 and status.headers["Range"] == "bytes=0-%d" % (2 * Resumable.QUANTUM - 1)
    rest = data[2 * Resumable.QUANTUM:]
    assert session.put(rest, "bytes %d-%d/%d" % (2 * Resumable.QUANTUM, len(data) - 1, len(data))).status == 200
    assert put_gcs(emulator, file, None, method="GET").body == data


def test_tokens_of_google_are_refreshed(emulator, gcp):
    file = gcp.prepare()
    emulator.expire(file["id"])
    assert put_gcs(emulator, file, b"abc").status == 401
    assert gcs_upload(emulator, file, "media", b"abc").status == 401
    fresh = gcp("PUT", "/files/%d/refresh" % file["id"])
    assert fresh.status == 200 and fresh.json["gcsUploadParams"]["key"] == file["gcsUploadParams"]["key"]
    assert put_gcs(emulator, fresh.json, b"abc").status == 200
    emulator.settings(provider="aws")
    assert gcp("PUT", "/files/%d/refresh" % gcp.prepare()["id"]).status == 400


# ---- servers of others ----------------------------------------------------------------------------------------------------
def test_files_on_azurite(tmp_path):
    with Azurite() as azurite, Emulator(provider="azure", azurite=azurite.account_url) as one:
        api = Api(one)
        api.bucket("b")
        file = api.prepare("a b.csv")
        assert file["absUploadParams"]["absCredentials"]["SASConnectionString"].startswith("BlobEndpoint=%s;" % azurite.account_url)
        assert api.job(api("POST", "/buckets/in.c-b/tables-async", {"name": "t", "dataFileId": file["id"]}))["error"]["code"] == "storage.fileNotUploaded"
        assert put_azure(file, b"a,b\n1,2\n", headers={"x-ms-version": "2017-11-09"}).status == 201
        assert put_azure(file, b"", sas=sas_url(file)[1].replace("sp=rwl", "sp=rwdl")).status == 403
        assert api.job(api("POST", "/buckets/in.c-b/tables-async", {"name": "t", "dataFileId": file["id"]}))["status"] == "success"
        assert one.rows("in.c-b.t") == [["1", "2"]] and len(one.state("jobs")["jobs"]) == 2
        # in blocks, gzipped
        text = b"a,b\n" + b"".join(b"%d,%s\n" % (i, os.urandom(50).hex().encode()) for i in range(20000))
        data = gzip.compress(text)
        blocks = api.prepare("a.csv.gz")
        ids = []
        for number, at in enumerate(range(0, len(data), 300000)):
            ids.append(base64.b64encode(b"%05d" % number).decode())
            assert put_azure(blocks, data[at:at + 300000], query="comp=block&blockid=" + urllib.parse.quote(ids[-1], safe="")).status == 201
        assert put_azure(blocks, block_list(ids), query="comp=blocklist").status == 201
        job = api.job(api("POST", "/tables/in.c-b.t/import-async", {"dataFileId": blocks["id"]}))
        assert job["results"]["totalRowsCount"] == 20000 and one.tables()["in.c-b.t"]["sha256"] == hashlib.sha256(text).hexdigest()
        detail = api.get("/files/%d?federationToken=1" % blocks["id"])
        assert send(detail["url"], "GET", "?" + urllib.parse.urlsplit(detail["url"]).query).body == data
        job = api.job(api("POST", "/tables/in.c-b.t/export-async", {"columns": "a"}))
        exported = api.get("/files/%d" % job["results"]["file"]["id"])
        assert len(send(exported["url"], "GET", "?" + urllib.parse.urlsplit(exported["url"]).query).json["entries"]) == 1


def test_files_on_s3rver():
    with S3rver() as s3rver, Emulator(s3=s3rver.url) as one:
        api = Api(one)
        api.bucket("b")
        file = api.prepare()
        signer = Signer(file, style="")
        assert signer.credentials["AccessKeyId"] == "S3RVER"
        create = ("POST", "/buckets/in.c-b/tables-async", {"name": "t", "dataFileId": file["id"]})
        assert api.job(api(*create))["error"]["code"] == "storage.fileNotUploaded"
        assert signer.put(one, b"a,b\n1,2\n", url=s3rver.url).status == 200
        assert api.job(api(*create))["status"] == "success"
        assert one.rows("in.c-b.t") == [["1", "2"]]
        upload = signer.begin(one, url=s3rver.url)
        parts = [b"a,b\n" + b"1234567,12345678\n" * 320000, b"x,y\n"]
        etags = [(n, signer.part(one, upload, n, data, url=s3rver.url).headers["ETag"]) for n, data in enumerate(parts, 1)]
        assert signer.complete(one, upload, etags, url=s3rver.url).status == 200
        one.settings(keep_rows=10)
        job = api.job(api("POST", "/tables/in.c-b.t/import-async", {"dataFileId": file["id"]}))
        assert job["results"]["totalRowsCount"] == 320001
        assert one.tables()["in.c-b.t"]["sha256"] == hashlib.sha256(b"".join(parts)).hexdigest()


def test_many_clients_at_once(emulator, api):
    """Buckets, files and jobs of 16 threads do not mix."""
    api.bucket("b")
    began = threading.Barrier(16)

    def one(number):
        began.wait()
        for turn in range(5):
            name = "t%d" % number
            data = "n,turn\n%d,%d\n" % (number, turn)
            job = api.create("in.c-b", name, data) if turn == 0 else api.load("in.c-b." + name, data)
            assert job["status"] == "success", job
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(16)))
    for number in range(16):
        assert emulator.rows("in.c-b.t%d" % number) == [[str(number), "4"]]
        assert emulator.loads("in.c-b.t%d" % number)["succeeded"] == 5


def test_a_server_behind_it_that_is_gone_is_a_500():
    azurite = Azurite().start()
    try:
        with Emulator(provider="azure", azurite=azurite.account_url) as one:
            api = Api(one)
            file = api.prepare()
            api.bucket("b")
            azurite.stop()
            assert api("POST", "/files/prepare", {"name": "x", "federationToken": True}).status == 500
            job = api.job(api("POST", "/buckets/in.c-b/tables-async", {"name": "t", "dataFileId": file["id"]}))
            assert job["status"] == "error" and job["error"]["message"].startswith("Internal Server Error")
            assert api("GET", "/buckets").status == 200
    finally:
        azurite.stop()
