"""Bytes that clients have uploaded: small ones in memory, large ones in files of the temporary folder.

Why: a file of 500 MB must not be held in memory, and ten thousand small ones must not cost a file each.
"""
import ctypes
import gzip
import hashlib
import io
import itertools
import os

CHUNK = 256 * 1024
IN_MEMORY = 64 * 1024  # up to here a blob stays in memory

_serial = itertools.count(1)


class Blob:
    """Immutable content: pieces that follow each other, each bytes or the path of a file this blob shares with nobody else."""

    __slots__ = ("pieces", "size", "md5", "sha256")

    def __init__(self, pieces, size, md5, sha256):
        self.pieces = pieces
        self.size = size
        self.md5 = md5  # digest, bytes
        self.sha256 = sha256  # hex text; None for a blob joined from others

    @classmethod
    def of(cls, data):
        return cls([data], len(data), hashlib.md5(data).digest(), hashlib.sha256(data).hexdigest())

    @classmethod
    def joined(cls, blobs):
        """The content of BLOBS one after the other; they give their files away to the new one."""
        return cls([piece for blob in blobs for piece in blob.pieces], sum(blob.size for blob in blobs), None, None)

    def chunks(self, size=CHUNK):
        for piece in self.pieces:
            if isinstance(piece, bytes):
                if piece:
                    yield piece
                continue
            with open(piece, "rb") as f:
                while data := f.read(size):
                    yield data

    def bytes(self):
        return b"".join(self.chunks())

    def slice(self, first, last):
        """Chunks of the bytes FIRST to LAST, both included."""
        at = 0
        for data in self.chunks():
            if at + len(data) > first and at <= last:
                yield data[max(0, first - at):last - at + 1]
            at += len(data)
            if at > last:
                return

    def open(self):
        """A buffered binary stream of the content."""
        if len(self.pieces) == 1 and isinstance(self.pieces[0], bytes):
            return io.BytesIO(self.pieces[0])
        if len(self.pieces) == 1:
            return open(self.pieces[0], "rb")
        return io.BufferedReader(ChunkReader(self.chunks()), CHUNK)

    def md5_digest(self):
        if self.md5 is None:
            whole = hashlib.md5()
            for data in self.chunks():
                whole.update(data)
            self.md5 = whole.digest()
        return self.md5

    def crc32c(self):
        value = 0
        for data in self.chunks():
            value = crc32c(data, value)
        return value

    def drop(self):
        """Give the disk space back; nobody may read the blob afterwards."""
        for piece in self.pieces:
            if not isinstance(piece, bytes):
                try:
                    os.unlink(piece)
                except FileNotFoundError:
                    pass
        self.pieces = []


class BlobWriter:
    """Collects an upload; finish() makes the Blob, discard() forgets it."""

    def __init__(self, folder):
        self.folder = folder
        self.memory = []
        self.path = None
        self.file = None
        self.size = 0
        self.md5 = hashlib.md5()
        self.sha256 = hashlib.sha256()

    def write(self, data):
        self.size += len(data)
        self.md5.update(data)
        self.sha256.update(data)
        if self.file is None:
            self.memory.append(bytes(data))
            if self.size > IN_MEMORY:
                self.path = os.path.join(self.folder, "blob-%d" % next(_serial))
                self.file = open(self.path, "wb", buffering=0)
                for piece in self.memory:
                    self.file.write(piece)
                self.memory = []
        else:
            self.file.write(data)

    def finish(self):
        if self.file is not None:
            self.file.close()
        pieces = [self.path] if self.path else [b"".join(self.memory)]
        return Blob(pieces, self.size, self.md5.digest(), self.sha256.hexdigest())

    def discard(self):
        self.finish().drop()


class ChunkReader(io.RawIOBase):
    """An iterator of bytes as a raw stream."""

    def __init__(self, chunks):
        self.chunks = iter(chunks)
        self.rest = b""

    def readable(self):
        return True

    def readinto(self, buffer):
        while not self.rest:
            try:
                self.rest = self.chunks.__next__()
            except StopIteration:
                return 0
        taken = min(len(buffer), len(self.rest))
        buffer[:taken] = self.rest[:taken]
        self.rest = self.rest[taken:]
        return taken


class HashingReader(io.RawIOBase):
    """Passes a stream on, and hashes and counts what was read of it."""

    def __init__(self, stream):
        self.stream = stream
        self.sha256 = hashlib.sha256()
        self.size = 0

    def readable(self):
        return True

    def readinto(self, buffer):
        data = self.stream.read(len(buffer))
        if not data:
            return 0
        buffer[:len(data)] = data
        self.sha256.update(data)
        self.size += len(data)
        return len(data)


def gunzip(stream):
    return gzip.GzipFile(fileobj=stream, mode="rb")


# ---- checksums that the standard library does not have --------------------------------------------------------------
def _table(polynomial, width):
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (polynomial if value & 1 else 0)
        table.append(value)
    return table


_CRC32C = _table(0x82F63B78, 32)
_CRC64 = _table(0x9A6C9329AC4BC9B5, 64)


def _isal():
    """libisal, which chute itself is built with; None where it is missing: then a table does it, at a few MB a second."""
    try:
        library = ctypes.CDLL("libisal.so.2")
        library.crc32_iscsi.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint]
        library.crc32_iscsi.restype = ctypes.c_uint
    except (OSError, AttributeError):
        return None
    return library


_library = _isal()


def crc32c_by_table(data, value=0):
    value ^= 0xFFFFFFFF
    for byte in data:
        value = _CRC32C[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def crc32c(data, value=0):
    if _library is None:
        return crc32c_by_table(data, value)
    return _library.crc32_iscsi(bytes(data), len(data), value ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def crc64(data, value=0):
    """The CRC-64 of Azure Storage; slow, so only for content whose client sent one."""
    value ^= 0xFFFFFFFFFFFFFFFF
    for byte in data:
        value = _CRC64[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFFFFFFFFFF
