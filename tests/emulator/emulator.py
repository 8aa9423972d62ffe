"""The parts put together: which request goes to whom, faults and the log of requests around it."""
import json
import time

import page
from azure import AzureStore
from control import Control, Faults, RequestLog, perform
from gcs import GcsStore
from plumbing import Answer, Server, json_answer
from project import Project
from s3 import S3Store
from storage_api import StorageApi


class Emulator:
    def __init__(self, host, port, token, settings, tls=None, folder=None, stores=None):
        self.project = Project(token, settings, folder)
        try:
            self._put_together(host, port, tls, stores or {})
        except BaseException:
            self.project.close()  # with its folder
            raise

    def _put_together(self, host, port, tls, stores):
        makers = {"aws": S3Store, "azure": AzureStore, "gcp": GcsStore, **stores}
        self.project.stores = {name: make(self.project) for name, make in makers.items()}
        self.project.change_settings({})
        self.api = StorageApi(self.project)
        self.faults = Faults()
        self.log = RequestLog(self.project.settings["log_requests"])
        self.control = Control(self.project, self.faults, self.log, self.state)
        self.server = Server(host, port, self.handle, self.ended, tls)

    @property
    def url(self):
        host, port = self.server.address
        return "%s://%s:%d" % (self.server.scheme, "[%s]" % host if ":" in host else host, port)

    def start(self):
        self.server.start()

    def stop(self):
        self.server.stop()
        self.project.close()

    # ---- requests ----
    def handle(self, request):
        if request.path.startswith("/_control/"):
            return self.control.handle(request)
        if request.path == "/":
            return self._front(request)
        self.log.begin(request)
        latency = self.project.settings["latency_ms"]
        if latency:
            time.sleep(latency / 1000)
        fault = self.faults.match(request)
        if fault is None:
            return self._effect(request)
        return perform(fault, request, self.server, lambda: self._effect(request), self._expire)

    def ended(self, request, answer, text):
        if hasattr(request, "record"):
            self.log.end(request, answer, text)

    def _effect(self, request):
        path = request.path
        if path.startswith("/v2/storage"):
            return self.api.handle(request)
        store, place = self._store_of(request)
        if store is not None:
            return store.handle(request, *place)
        return json_answer(404, {"error": "Resource not found", "code": "notFound", "status": "error",
                                 "exceptionId": self.project.exception_id()})

    def _store_of(self, request):
        for store in self.project.stores.values():
            place = store.route(request)
            if place is not None:
                return store, place
        return None, None

    def _expire(self, request, answer):
        """Scripted: before the effect the credentials that REQUEST carries, after it those that ANSWER hands out."""
        if answer is None:
            store, _ = self._store_of(request)
            if store is not None:
                store.expire_of(request)
        elif request.path.startswith("/v2/storage") and answer.status in (200, 201):
            file = self.project.files.get(int(json.loads(answer.bytes()).get("id", 0)))
            for credentials in file.write_credentials if file else ():
                credentials.expires = 0

    def _front(self, request):
        request.drain()
        if request.method not in ("GET", "HEAD"):
            return json_answer(405, {"error": "only GET"})
        if "text/html" in request.headers.get("accept", ""):
            return Answer(200, page.html(self).encode(), [("Content-Type", "text/html; charset=utf-8")])
        return json_answer(200, self.state())

    # ---- what there is ----
    def state(self, parts=None):
        """Everything, or only the PARTS of it that are named."""
        makers = {"url": lambda: self.url, "settings": lambda: dict(self.project.settings), "buckets": self._buckets, "tables": self._tables,
                  "loads": lambda: {table_id: dict(counters) for table_id, counters in self.project.loads.items()}, "jobs": self._jobs,
                  "files": self._files, "requests": lambda: self.log.count}
        with self.project.lock:
            return {name: make() for name, make in makers.items() if not parts or name in parts}

    def _buckets(self):
        return [{"id": bucket.id, "name": bucket.name, "stage": bucket.stage, "displayName": bucket.display_name, "created": bucket.created,
                 "tables": [table.id for table in bucket.tables.values()]} for bucket in self.project.buckets.values()]

    def _tables(self):
        return {table.id: {"columns": list(table.columns), "primaryKey": list(table.primary_key), "rowsCount": table.rows_count,
                           "dataSizeBytes": table.size_bytes, "sha256": table.sha256, "kept": table.rows_kept,
                           "isTyped": table.definition is not None, "created": table.created, "lastImportDate": table.last_import}
                for bucket in self.project.buckets.values() for table in bucket.tables.values()}

    def _jobs(self):
        return [{"id": job.id, "operation": job.operation, "target": job.target, "status": job.status, "results": job.results, "error": job.error,
                 "params": job.params} for job in self.project.jobs.values()]

    def _files(self):
        return [{"id": file.id, "name": file.name, "provider": file.store.provider, "container": file.container, "key": file.key,
                 "sizeBytes": file.size_bytes, "isSliced": file.is_sliced, "isEncrypted": file.is_encrypted, "tags": list(file.tags),
                 "uploaded": file.store.uploaded(file)} for file in self.project.files.values()]
