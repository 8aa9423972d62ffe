"""What the three object stores have in common."""
import threading
import time
from xml.sax.saxutils import escape

import blobs
import names
from plumbing import Answer

HOUR = 3600


class Credentials:
    """What a client got for one file. KIND: write or read."""

    def __init__(self, file, kind, lifetime):
        self.file = file
        self.kind = kind
        self.expires = time.time() + lifetime
        self.key = file.key
        self.is_prefix = file.is_sliced

    @property
    def is_expired(self):
        return time.time() >= self.expires

    def covers(self, key):
        return key.startswith(self.key) if self.is_prefix else key == self.key


class Stored:
    """An object and when it came."""

    __slots__ = ("blob", "etag", "headers", "modified")

    def __init__(self, blob, etag, headers=()):
        self.blob = blob
        self.etag = etag
        self.headers = dict(headers)
        self.modified = time.time()


class Store:
    """Objects by (container, key), kept by the emulator itself."""

    provider = None  # as the API names it
    lifetime = 12 * HOUR
    read_lifetime = HOUR

    def __init__(self, project):
        self.project = project
        self.lock = threading.RLock()
        self.objects = {}
        self.serial = 0

    def reset(self):
        with self.lock:
            for stored in self.objects.values():
                stored.blob.drop()
            self.objects = {}

    def writer(self):
        return blobs.BlobWriter(self.project.folder)

    def keep(self, container, key, stored):
        """Store an object; the one it replaces is gone with its disk space once nobody reads it."""
        with self.lock:
            self.objects[container, key] = stored

    def find(self, container, key):
        return self.objects.get((container, key))

    def object_key(self, file):
        """exp-15/4321/files/2026/03/01/987654320.cities.csv: the number in it is not the id of the file."""
        return "exp-15/4321/files/%s/%d.%s" % (time.strftime("%Y/%m/%d", time.gmtime()), file.id - 1, names.object_name(file.name))

    def credentials_lifetime(self):
        seconds = self.project.settings["credentials_seconds"]
        return self.lifetime if seconds is None else seconds

    # ---- what imports and exports need ----
    def open(self, file, suffix):
        """(binary stream, size) of what was uploaded for FILE under its key + SUFFIX, or None."""
        stored = self.find(file.container, file.key + suffix)
        return None if stored is None else (stored.blob.open(), stored.blob.size)

    def put(self, file, suffix, data):
        blob = blobs.Blob.of(data)
        self.keep(file.container, file.key + suffix, Stored(blob, blob.md5.hex()))

    def drop(self, file):
        """Forget the content of FILE."""
        with self.lock:
            for name in [name for name in self.objects if name[0] == file.container and name[1].startswith(file.key)] \
                    if file.is_sliced else [(file.container, file.key)]:
                stored = self.objects.pop(name, None)
                if stored is not None:
                    stored.blob.drop()

    def uploaded(self, file):
        """Size of what was uploaded, of all slices without the manifest; None for nothing."""
        if not file.is_sliced:
            stored = self.find(file.container, file.key)
            return None if stored is None else stored.blob.size
        with self.lock:
            sizes = [stored.blob.size for name, stored in self.objects.items()
                     if name[0] == file.container and name[1].startswith(file.key) and name[1] != file.key + "manifest"]
        return sum(sizes) if sizes else None

    def suffix_of(self, file, url):
        """The suffix of the slice that a manifest of FILE names as URL, or None when it is not below the file's key."""
        start = self.slice_url(file, "")
        return url[len(start):] if url.startswith(start) else None


def xml_answer(status, text, headers=()):
    return Answer(status, ('<?xml version="1.0" encoding="UTF-8"?>\n' + text).encode(), [("Content-Type", "application/xml"), *headers])


def xml_error(status, code, message, headers=(), extra=""):
    return xml_answer(status, "<Error><Code>%s</Code><Message>%s</Message>%s</Error>" % (code, escape(message), extra), headers)


def http_date(seconds):
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(seconds))


def range_of(text, size):
    """(first, last) of a Range header; None for none or a form that is not served; ValueError when it lies outside."""
    if not text or not text.startswith("bytes=") or "," in text:
        return None
    first, _, last = text[6:].partition("-")
    if first == "":
        start, end = max(0, size - int(last)), size - 1
    else:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
    if start >= size or start > end:
        raise ValueError("outside")
    return start, end


def content_answer(request, stored, headers, range_text, unsatisfiable):
    """The object, or the range of it that was asked for."""
    blob = stored.blob
    headers = [("ETag", '"%s"' % stored.etag), ("Last-Modified", http_date(stored.modified)), ("Accept-Ranges", "bytes"),
               ("Content-Type", stored.headers.get("content-type", "application/octet-stream")), *headers]
    try:
        wanted = range_of(range_text, blob.size)
    except ValueError:
        return unsatisfiable
    if wanted is None:
        return Answer(200, blob.chunks(), headers, blob.size)
    first, last = wanted
    return Answer(206, blob.slice(first, last), [*headers, ("Content-Range", "bytes %d-%d/%d" % (first, last, blob.size))], last - first + 1)
