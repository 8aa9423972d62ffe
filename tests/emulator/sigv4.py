"""AWS Signature Version 4, both ways: recomputed for what clients sent, made for URLs and for another S3 server."""
import hashlib
import hmac
import time
from functools import lru_cache
from urllib.parse import quote, unquote

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


def encode(text, safe=""):
    return quote(text, safe=safe + "-_.~")


def canonical_path(path):
    """PATH as sent, percent-encoded the way the signature wants it."""
    return encode(unquote(path), "/")


def canonical_query(text, without=()):
    pairs = []
    for piece in text.split("&"):
        if piece:
            name, _, value = piece.partition("=")
            name = unquote(name)
            if name not in without:
                pairs.append((encode(name), encode(unquote(value))))
    return "&".join("%s=%s" % pair for pair in sorted(pairs))


def canonical_request(method, path, query, headers, signed, payload):
    """HEADERS: lower-case names; SIGNED: the names in order."""
    lines = [method, canonical_path(path), query]
    lines += ["%s:%s" % (name, " ".join(headers.get(name, "").split())) for name in signed]
    lines += ["", ";".join(signed), payload]
    return "\n".join(lines)


@lru_cache(maxsize=1024)
def signing_key(secret, date, region, service="s3"):
    key = ("AWS4" + secret).encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key


def sign(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def string_to_sign(date_time, scope, canonical):
    return "\n".join([ALGORITHM, date_time, scope, hashlib.sha256(canonical.encode()).hexdigest()])


def amz_time(seconds=None):
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))


def signed_headers(method, host, path, query, payload, access, secret, region, session=None, extra=()):
    """The headers of a request to another S3 server, signed."""
    now = amz_time()
    headers = {"host": host, "x-amz-date": now, "x-amz-content-sha256": payload, **dict(extra)}
    if session:
        headers["x-amz-security-token"] = session
    signed = sorted(headers)
    scope = "%s/%s/s3/aws4_request" % (now[:8], region)
    canonical = canonical_request(method, path, canonical_query(query), headers, signed, payload)
    signature = sign(signing_key(secret, now[:8], region), string_to_sign(now, scope, canonical))
    headers["authorization"] = "%s Credential=%s/%s, SignedHeaders=%s, Signature=%s" % (ALGORITHM, access, scope, ";".join(signed), signature)
    return headers


def presigned_query(method, host, path, access, secret, region, session, expires):
    """The query text of a signed URL that EXPIRES seconds from now."""
    now = amz_time()
    scope = "%s/%s/s3/aws4_request" % (now[:8], region)
    pairs = {"X-Amz-Algorithm": ALGORITHM, "X-Amz-Credential": "%s/%s" % (access, scope), "X-Amz-Date": now,
             "X-Amz-Expires": str(expires), "X-Amz-SignedHeaders": "host"}
    if session:
        pairs["X-Amz-Security-Token"] = session
    query = "&".join("%s=%s" % (encode(name), encode(value)) for name, value in sorted(pairs.items()))
    canonical = canonical_request(method, path, query, {"host": host}, ["host"], UNSIGNED)
    return query + "&X-Amz-Signature=" + sign(signing_key(secret, now[:8], region), string_to_sign(now, scope, canonical))
