"""The project of the emulator: settings, tokens, buckets, tables, files. Everything here is guarded by Project.lock."""
import itertools
import secrets
import shutil
import tempfile
import threading
import time

from jobs import JobRunner

PROJECT_ID = 4321
BRANCH_ID = 1011
HOUR = 3600

DEFAULT_SETTINGS = {
    "provider": "aws",  # aws, azure or gcp: what the next file is prepared for
    "region": "eu-central-1",
    "backend": "snowflake",  # or bigquery
    "latency_ms": 0,  # before every answer, but those of the control API
    "job_seconds": 0.0,  # from the 202 to the end of a job, a third of it waiting
    "jobs_parallelism": 10,
    "features": [],  # e.g. disable-legacy-bucket-prefix
    "ids_as_strings": False,  # ids of files and jobs
    "importedColumns_as_object": False,
    "maintenance": None,  # {"until": ISO time, "reason": text, "retry_after": seconds}
    "gzip_answers": False,  # gzip the JSON for clients that accept it
    "credentials_seconds": None,  # life of upload credentials; None: 12 h, gcp 1 h
    "expired_token_status": 400,  # of S3's ExpiredToken, as AWS documents it
    "load_error_code": "invalidData",  # of "Load error: ..." jobs; the real one is not known
    "count_only": False,  # benchmarks: count lines of an import instead of parsing it, drop the upload afterwards
    "keep_rows": 100000,  # a table with more rows keeps their number and a hash only
    "log_requests": 200000,  # how many requests the log keeps; 0: none
}


class ApiError(Exception):
    """An answer with the error body of the service."""

    def __init__(self, status, code, message, **extra):
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.extra = extra


class Token:
    RIGHTS = ("description", "isMasterToken", "canManageBuckets", "canManageTokens", "canReadAllFileUploads", "canPurgeTrash",
              "expires", "isExpired", "isDisabled", "bucketPermissions", "revoked", "ownerDisabled")

    def __init__(self, text, token_id, **rights):
        self.text = text
        self.id = str(token_id)
        self.description = "emulator"
        self.isMasterToken = False
        self.canManageBuckets = True
        self.canManageTokens = False
        self.canReadAllFileUploads = False
        self.canPurgeTrash = False
        self.expires = None
        self.isExpired = False
        self.isDisabled = False
        self.bucketPermissions = {}
        self.revoked = False
        self.ownerDisabled = False
        self.set(rights)

    def set(self, rights):
        for name, value in rights.items():
            if name not in self.RIGHTS:
                raise ValueError("a token has no %r" % name)
            setattr(self, name, value)

    def permission(self, bucket_id):
        """read, write, manage or None."""
        if self.isMasterToken or self.canManageBuckets:
            return "manage"
        return self.bucketPermissions.get(bucket_id)


class Bucket:
    def __init__(self, stage, name, display_name, description, backend, color, created):
        self.stage = stage
        self.name = name
        self.id = "%s.%s" % (stage, name)
        self.display_name = display_name
        self.description = description
        self.backend = backend
        self.color = color
        self.created = created
        self.last_change = None
        self.updated = None
        self.tables = {}  # name -> Table


class Table:
    """Rows are tuples of text in the order of the columns; a dict by primary key where there is one."""

    def __init__(self, bucket, name, columns, primary_key, definition, created):
        self.bucket = bucket
        self.name = name
        self.id = "%s.%s" % (bucket.id, name)
        self.columns = columns
        self.primary_key = primary_key
        self.definition = definition  # list of {"name", "definition"}: typed; None: untyped
        self.created = created
        self.last_import = None
        self.last_change = created
        self.rows = {} if primary_key else []
        self.rows_kept = True  # False: only rows_count and sha256 are known
        self.rows_count = 0
        self.size_bytes = 0
        self.sha256 = None  # of the text that the last full load brought, decompressed
        self.metadata = []
        self.column_metadata = {}

    def row_list(self):
        return list(self.rows.values()) if isinstance(self.rows, dict) else self.rows

    def key_of(self, row):
        return tuple(row[i] for i in self.key_at)

    @property
    def key_at(self):
        return [self.columns.index(name) for name in self.primary_key]


class File:
    """A file resource. What was uploaded for it lies at the provider it was prepared for."""

    def __init__(self, file_id, name, token, created, options, store, region):
        self.id = file_id
        self.name = name
        self.token_id = token.id
        self.token_description = token.description
        self.created = created
        self.created_at = time.time()
        self.is_public = options["isPublic"]
        self.is_sliced = options["isSliced"]
        self.is_encrypted = options["isEncrypted"]
        self.is_permanent = options["isPermanent"]
        self.tags = options["tags"]
        self.run_id = options["runId"]
        self.size_bytes = options["sizeBytes"]
        self.store = store  # where its content goes: s3.S3Store and its like
        self.region = region
        self.container = None  # S3 and GCS bucket, Azure container
        self.key = None
        self.write_credentials = []  # what was handed out, newest last
        self.content_size = None


_date_cache = (0, "")


def iso_date(seconds=None):
    """2026-03-01T10:15:30+0100, as the service writes times."""
    global _date_cache
    whole = int(time.time() if seconds is None else seconds)
    if _date_cache[0] != whole:
        _date_cache = (whole, time.strftime("%Y-%m-%dT%H:%M:%S+0100", time.gmtime(whole + HOUR)))
    return _date_cache[1]


class Project:
    def __init__(self, token_text, settings, folder=None):
        self.lock = threading.RLock()
        self.folder = tempfile.mkdtemp(prefix="keboola-emulator-", dir=folder)  # ours alone: it is removed at the end
        self.first_settings = {**DEFAULT_SETTINGS, **settings}
        self.token_text = token_text
        self.main_token_id = 98765
        self.runner = JobRunner(self)
        self.stores = {}  # provider name -> store; filled by whoever builds the emulator
        self.ids = itertools.count(987654321)  # go on after a reset, so that an old id is never a new thing
        self.job_ids = itertools.count(22070846)
        self.metadata_ids = itertools.count(1)
        self._start_over()

    def _start_over(self):
        self.settings = dict(self.first_settings)
        self.tokens = {self.token_text: Token(self.token_text, self.main_token_id)}
        self.buckets = {}
        self.display_names = {}  # (stage, display name) -> bucket id
        self.files = {}
        self.jobs = {}
        self.loads = {}  # table id -> counters of its create and import jobs
        self.history = [22070801, 22070817, 22070833]  # jobs that the project had before: no project begins at none

    def reset(self):
        """Everything as it was at the start, but the log of requests."""
        self.runner.cancel()
        with self.lock:
            self._start_over()
            for store in set(self.stores.values()):
                store.reset()

    def close(self):
        self.runner.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def main_token(self):
        return self.tokens[self.token_text]

    def set_token(self, text, rights):
        with self.lock:
            if text not in self.tokens:
                self.tokens[text] = Token(text, 98766 + len(self.tokens))
            self.tokens[text].set(rights)

    def change_settings(self, changes):
        with self.lock:
            unknown = set(changes) - set(DEFAULT_SETTINGS) - {"token", "tokens"}
            if unknown:
                raise ValueError("no such setting: %s" % ", ".join(sorted(unknown)))
            if "provider" in changes and changes["provider"] not in self.stores:
                raise ValueError("no such provider: %r" % changes["provider"])
            for text, rights in {**({self.token_text: changes["token"]} if "token" in changes else {}), **changes.get("tokens", {})}.items():
                self.set_token(text, rights)
            self.settings.update({name: value for name, value in changes.items() if name not in ("token", "tokens")})
            self.runner.set_parallelism(self.settings["jobs_parallelism"])

    # ---- lookups ----
    def bucket(self, bucket_id):
        try:
            return self.buckets[bucket_id]
        except KeyError:
            raise ApiError(404, "storage.buckets.notFound",
                           'The bucket "%s" was not found in the project "%s"' % (bucket_id, PROJECT_ID)) from None

    def table(self, table_id):
        bucket_id, dot, name = table_id.rpartition(".")
        if not dot or "." not in bucket_id:
            raise ApiError(404, "storage.tables.notFound", 'The table "%s" was not found in the project "%s"' % (table_id, PROJECT_ID))
        bucket = self.bucket(bucket_id)
        try:
            return bucket.tables[name]
        except KeyError:
            raise ApiError(404, "storage.tables.notFound", 'The table "%s" was not found in the bucket "%s" in the project "%s"'
                           % (name, bucket_id, PROJECT_ID)) from None

    def find_table(self, table_id):
        try:
            return self.table(table_id)
        except ApiError:
            return None

    def file(self, file_id):
        try:
            return self.files[int(file_id)]
        except (KeyError, ValueError, TypeError):
            raise ApiError(404, "storage.files.notFound", "File not found") from None

    def count_load(self, table_id, what):
        counters = self.loads.setdefault(table_id, {"accepted": 0, "finished": 0, "succeeded": 0, "failed": 0})
        counters[what] += 1

    @staticmethod
    def now():
        return iso_date()

    @staticmethod
    def exception_id():
        return "keboola-connection-" + secrets.token_hex(7)[:13]
