"""What the tests of remote sources share: a chute that fetches from a server, into SQLite or into a container."""
import hashlib
import shutil
import subprocess
from pathlib import Path

from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import BlobServiceClient
from chute import tool

DATA = Path(__file__).resolve().parents[1] / "data/ftp-root"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
RETRY = {"first": "50ms", "max": "300ms"}


def fill(root):
    """The sample tree of a server."""
    shutil.copytree(DATA, root, dirs_exist_ok=True)
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    (root / "empty.txt").touch()


def md5(data):
    return hashlib.md5(data).digest()


class Fetcher:
    """A chute whose flow begins on SERVER (something with source())."""

    def __init__(self, chute, server, azurite=None, container="ingest"):
        self.chute = chute
        self.server = server
        self.azurite = azurite
        self.container = container
        self.log_count = 0

    def configure(self, source=None, flow=None, top=None, **dest):
        sources = {"remote": {**self.server.source(), "settle": "100ms", "every": "1h", **(source or {})}}
        sources = {"remote": {k: v for k, v in sources["remote"].items() if v is not None}}
        base = {"from": "remote", "name": "main"}
        top = {"retry": RETRY, **(top or {})}
        if self.azurite is None:
            self.chute.configure(sources=sources, flows=[{**base, "include": ["**/*.csv"], **(flow or {})}], **top)
            return self
        string = "AccountName=devstoreaccount1;AccountKey=%s;BlobEndpoint=%s;" % (KEY, self.azurite.account_url)
        self.client = BlobServiceClient.from_connection_string(string).get_container_client(self.container)
        lake = {"type": "azure_blob", "container": self.container, "create_container": True, "connection_string": string, "stall_timeout": "3s", **dest}
        self.chute.configure(sources=sources, dests={"lake": lake}, flows=[{**base, "to": "lake", **(flow or {})}], **top)
        return self

    @property
    def spool(self):
        folder = self.chute.state / "spool"
        return sorted(p.name for p in folder.iterdir()) if folder.exists() else []

    def said(self):
        """What was logged since the last time."""
        text = self.chute.log_text()
        new, self.log_count = text[self.log_count:], len(text)
        return new

    def names(self):
        try:
            return sorted(b.name for b in self.client.list_blobs())
        except ResourceNotFoundError:  # the container is not made yet
            return []

    def read(self, name, snapshot=None):
        return self.client.get_blob_client(name, snapshot=snapshot).download_blob().readall()

    def properties(self, name):
        return self.client.get_blob_client(name).get_blob_properties()

    def snapshots(self, name):
        return [b.snapshot for b in self.client.list_blobs(include=["snapshots"]) if b.name == name and b.snapshot]

    def uncommitted(self):
        found = []
        for b in self.client.list_blobs(include=["uncommittedblobs"]):
            found += self.client.get_blob_client(b.name).get_block_list("uncommitted")[1]
        return found

    def kill_at(self, names, when):
        """run --once under strace, killed at the WHEN-th call of NAMES; false: it came to its end."""
        code = self.chute.once(prefix=[tool("strace"), "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + names,
                                       "-e", "inject=%s:signal=SIGKILL:when=%d" % (names, when)], expect=None)
        return code != 0


def agent(folder, key):
    """An ssh-agent with KEY: (process, its environment)."""
    socket_path = folder / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket_path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    env = {"SSH_AUTH_SOCK": str(socket_path)}
    return process, env
