"""Object stores from npm as the tests use them: loopback, free port, a folder of their own, ended with the test."""
import os
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
NPM = TOP / ".cache/npm/node_modules"
PATIENCE = 60


class NodeServer:
    """A program of npm that prints its address when it is ready."""

    program = None  # below node_modules/.bin
    ready = None  # pattern of the line with the address

    def __init__(self):
        self.process = None
        self.folder = None
        self.url = None

    def arguments(self):
        raise NotImplementedError

    def start(self):
        program = NPM / ".bin" / self.program
        node = shutil.which("node")
        assert node and program.exists(), "%s is not installed; tests/run installs it below .cache/npm" % self.program
        self.folder = tempfile.mkdtemp(prefix=self.program + "-")
        self.process = subprocess.Popen([node, str(program.resolve()), *self.arguments()], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True, cwd=self.folder, start_new_session=True,
                                        env={**os.environ, "NODE_NO_WARNINGS": "1"})
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        said = []
        for line in self.process.stdout:
            said.append(line)
            found = re.search(self.ready, line)
            if found:
                self.url = "http://" + found.group(1)
                break
        timer.cancel()
        assert self.url, "%s did not start: %s" % (self.program, "".join(said))
        # what it says later must not fill the pipe
        threading.Thread(target=self._drain, args=(self.process.stdout,), daemon=True).start()
        return self

    @staticmethod
    def _drain(stream):
        for _ in stream:
            pass

    def stop(self):
        if self.process is not None:
            self.process.kill()  # nothing of it is kept
            self.process.wait()
            self.process.stdout.close()
            self.process = None
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None

    __enter__ = start

    def __exit__(self, *_):
        self.stop()


class Azurite(NodeServer):
    """Azure Blob Storage. Azurite().start().account_url is http://127.0.0.1:PORT/devstoreaccount1."""

    program = "azurite-blob"
    ready = r"listens on http://(\S+)"

    def arguments(self):
        return ["--blobPort", "0", "--location", self.folder, "--skipApiVersionCheck", "--disableTelemetry", "--silent"]

    @property
    def account_url(self):
        return self.url + "/devstoreaccount1"


class S3rver(NodeServer):
    """S3. Takes the key S3RVER with the secret S3RVER, and does not compare signatures of version 4."""

    program = "s3rver"
    ready = r"listening on (\S+)"

    def arguments(self):
        return ["--directory", self.folder, "--address", "127.0.0.1", "--port", "0", "--no-vhost-buckets", "--silent"]
