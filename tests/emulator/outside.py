"""Files on real servers: Azurite for the azure provider, s3rver (or another S3) for aws. They check what clients send; we read it back."""
import hashlib
import http.client
import io
import time
from urllib.parse import quote, urlsplit

import azure
import s3
import sas
import sigv4
import stores

# The account that Azurite has unless told otherwise; both are published in its manual.
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Remote:
    """Plain requests to a server at URL."""

    def __init__(self, url):
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError("%s: an address like http://127.0.0.1:10000 is needed" % url)
        self.host = parts.netloc
        self.path = parts.path.rstrip("/")

    def send(self, method, target, headers, body=b""):
        """(status, headers, body stream); the stream closes the connection when it is closed."""
        connection = http.client.HTTPConnection(self.host, timeout=60)
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, _Body(connection, answer)


class _Body(io.RawIOBase):
    def __init__(self, connection, answer):
        self.connection = connection
        self.answer = answer

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.answer.readinto(buffer)

    def close(self):
        if not self.closed:
            self.connection.close()
        super().close()


class OutsideStore(stores.Store):
    """The content is elsewhere; route() never claims a request."""

    def route(self, request):
        return None

    def expire_of(self, request):
        pass

    def uploaded(self, file):
        """Not known without a request for each file."""
        return None

    def open(self, file, suffix):
        status, headers, body = self._get(file, suffix)
        if status != 200:
            body.close()
            if status == 404:
                return None
            raise OSError("%s answered %d for %s" % (self.remote.host, status, file.key + suffix))
        return io.BufferedReader(body, 1 << 18), int(headers["Content-Length"])

    def drop(self, file):
        pass


class AzuriteStore(azure.AzureParams, OutsideStore):
    """A container of its own for each file, and a SAS for it signed with the account's key, as the service makes them."""

    def __init__(self, project, url, key=None):
        super().__init__(project)
        self.remote = Remote(url)
        self.url = url.rstrip("/")
        self.key = key or AZURITE_KEY
        self.account = self.remote.path.strip("/")
        if not self.account or "/" in self.account:
            raise ValueError("%s: an address like http://127.0.0.1:10000/devstoreaccount1 is needed" % url)

    def endpoint(self, base_url):
        return self.url

    def _own(self, method, container, blob, query="", body=b""):
        path = "%s/%s%s" % (self.remote.path, container, "/" + quote(blob) if blob else "")
        headers = sas.shared_key_headers(method, self.account, self.key, path, query, len(body))
        if method == "PUT":
            headers["Content-Length"] = str(len(body))
        return self.remote.send(method, path + ("?" + query if query else ""), headers, body)

    def prepare(self, file):
        super().prepare(file)
        status, _, body = self._own("PUT", file.container, "", "restype=container")
        text = body.read()
        body.close()
        if status != 201:
            raise OSError("Azurite did not make the container %s: %d %s" % (file.container, status, text[:300]))

    def _get(self, file, suffix):
        return self._own("GET", file.container, file.key + suffix)

    def put(self, file, suffix, data):
        status, _, body = self._own("PUT", file.container, file.key + suffix, "", data)
        body.close()
        if status != 201:
            raise OSError("Azurite did not take %s: %d" % (file.key + suffix, status))


class OtherS3Store(OutsideStore):
    """s3rver takes the fixed key S3RVER / S3RVER; it looks at the form of a signature of version 4, not at its value."""

    provider = "aws"
    ACCESS = SECRET = "S3RVER"

    def __init__(self, project, url):
        super().__init__(project)
        self.remote = Remote(url)
        self.url = url.rstrip("/")
        self._signed("PUT", "", b"")[2].close()  # the bucket

    def _signed(self, method, key, body=b""):
        path = "%s/%s%s" % (self.remote.path, s3.BUCKET, "/" + quote(key) if key else "")
        headers = sigv4.signed_headers(method, self.remote.host, path, "", hashlib.sha256(body).hexdigest(), self.ACCESS, self.SECRET,
                                       self.project.settings["region"])
        return self.remote.send(method, path, headers, body)

    def prepare(self, file):
        file.container = s3.BUCKET
        file.key = self.object_key(file)

    def _credentials(self):
        return {"AccessKeyId": self.ACCESS, "SecretAccessKey": self.SECRET, "SessionToken": "s3rver-ignores-session-tokens",
                "Expiration": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + self.credentials_lifetime()))}

    def upload_params(self, file, base_url):
        params = {"key": file.key, "bucket": file.container, "acl": "private"}
        if file.is_encrypted:
            params["x-amz-server-side-encryption"] = "AES256"
        return {"uploadParams": {**params, "credentials": self._credentials()}}

    def read_params(self, file, base_url):
        return {"s3Path": {"bucket": file.container, "key": file.key}, "credentials": self._credentials()}

    def read_url(self, file, base_url):
        path = "%s/%s/%s" % (self.remote.path, file.container, file.key + ("manifest" if file.is_sliced else ""))
        return "http://%s%s?%s" % (self.remote.host, path, sigv4.presigned_query("GET", self.remote.host, path, self.ACCESS, self.SECRET,
                                                                                  file.region, None, stores.HOUR))

    def slice_url(self, file, suffix):
        return "s3://%s/%s" % (file.container, file.key + suffix)

    def _get(self, file, suffix):
        return self._signed("GET", file.key + suffix)

    def put(self, file, suffix, data):
        status, _, body = self._signed("PUT", file.key + suffix, data)
        body.close()
        if status != 200:
            raise OSError("%s did not take %s: %d" % (self.remote.host, file.key + suffix, status))
