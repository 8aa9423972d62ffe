"""Shared access signatures and shared keys of Azure Storage."""
import base64
import hashlib
import hmac
import time
from urllib.parse import parse_qsl, quote

VERSION = "2017-11-09"
# Parameters of a service SAS in the order in which versions before 2018-11-09 sign them; None: the resource.
_SIGNED = ("sp", "st", "se", None, "si", "sip", "spr", "sv", "rscc", "rscd", "rsce", "rscl", "rsct")


def _hmac(key, text):
    return base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()


def iso(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def signature(key, account, container, parameters):
    """The signature of a SAS for a container; PARAMETERS decoded."""
    resource = "/blob/%s/%s" % (account, container)
    return _hmac(key, "\n".join(resource if name is None else parameters.get(name, "") for name in _SIGNED))


def container_sas(key, account, container, permissions, start, end):
    """The query text of a SAS: percent-encoded the way the service sends it, with the colons of times as they are."""
    parameters = {"sv": VERSION, "sr": "c", "st": iso(start), "se": iso(end), "sp": permissions}
    parameters["sig"] = signature(key, account, container, parameters)
    return "&".join("%s=%s" % (name, quote(value, safe=":-._~")) for name, value in parameters.items())


def shared_key_headers(method, account, key, path, query, length, version="2019-07-07"):
    """Headers of a request that the account's owner makes."""
    headers = {"x-ms-date": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()), "x-ms-version": version}
    if method == "PUT" and "restype" not in query:
        headers["x-ms-blob-type"] = "BlockBlob"
    canonical_headers = "".join("%s:%s\n" % pair for pair in sorted(headers.items()))
    resource = "/%s%s" % (account, path)
    for name, value in sorted(parse_qsl(query, keep_blank_values=True)):
        resource += "\n%s:%s" % (name, value)
    text = "\n".join([method, "", "", str(length) if length else "", "", "", "", "", "", "", "", ""]) + "\n" + canonical_headers + resource
    headers["Authorization"] = "SharedKey %s:%s" % (account, _hmac(key, text))
    return headers
