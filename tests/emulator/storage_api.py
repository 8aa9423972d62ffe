"""The endpoints below /v2/storage."""
import gzip
import json
import re
import time
from urllib.parse import parse_qsl

import exports
import imports
import names
from jobs import Job, JobError
from plumbing import Answer, json_answer
from project import BRANCH_ID, HOUR, PROJECT_ID, ApiError, Bucket, File, Table, iso_date

STAGES = ("in", "out", "sys")
TABLE_INCLUDES = {"columns", "metadata", "columnMetadata", "attributes", "buckets", "bucketsWithoutSourceTables", "sourceMetadata",
                  "sourceColumnMetadata"}
PREVIEW_COLUMNS = 100


def php_map(value):
    """An empty map leaves PHP as an empty list."""
    return value or []


def truth(value):
    """True for what the service takes as yes: true, 1, "1", "true", "True"."""
    return value is True or value == 1 or str(value).lower() in ("1", "true", "yes", "on")


def whole_number(value):
    """VALUE as an int, or None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and re.match(r"-?\d+\Z", value) else None


def validation(field, text, code=None, value=None):
    message = 'Invalid request:\n - %s: "%s"' % (field, text)
    return ApiError(400, code or "storage.validation." + field, message, errors=[{"key": field, "message": text}])


def parse_form(pairs):
    """Pairs of a form as PHP reads them: tags[]=a, tags[0]=a, metadata[0][key]=x."""
    result = {}
    for name, value in pairs:
        base, bracket, rest = name.partition("[")
        keys = re.findall(r"\[([^\]]*)\]", bracket + rest)
        place, key = result, base
        for inner in keys:
            if not isinstance(place.get(key), dict):
                place[key] = {}
            place = place[key]
            key = inner or str(sum(1 for known in place if known.isdigit()))
        place[key] = value
    return {name: _lists(value) for name, value in result.items()}


def _lists(value):
    """Maps with the keys 0, 1, 2 ... are lists."""
    if not isinstance(value, dict):
        return value
    inner = {key: _lists(one) for key, one in value.items()}
    if list(inner) == [str(i) for i in range(len(inner))]:
        return list(inner.values())
    return inner


class Call:
    """One request with what the endpoints need of it."""

    def __init__(self, request, token, body):
        self.request = request
        self.token = token
        self.body = body
        self.base = request.base_url
        self._query = None

    @property
    def query(self):
        if self._query is None:
            self._query = parse_form(self.request.query_pairs())
        return self._query

    def flag(self, name):
        return truth(self.query.get(name, False))

    def includes(self, known=None):
        text = self.query.get("include", "")
        if not isinstance(text, str):
            raise validation("include", "This value should be of type string.", "storage.validation")
        wanted = {word for word in text.split(",") if word}
        if known is not None and wanted - known:
            raise validation("include", "Unknown value: %s" % ", ".join(sorted(wanted - known)), "storage.validation")
        return wanted


class StorageApi:
    def __init__(self, project):
        self.project = project
        self.routes = {
            ("GET", "tokens/verify"): self.verify,
            ("GET", "dev-branches"): self.branches,
            ("GET", "dev-branches/*"): self.branch,
            ("GET", "metadata"): self.branch_metadata,
            ("POST", "tickets"): self.ticket,
            ("GET", "buckets"): self.list_buckets,
            ("POST", "buckets"): self.create_bucket,
            ("GET", "buckets/*"): self.get_bucket,
            ("PUT", "buckets/*"): self.change_bucket,
            ("DELETE", "buckets/*"): self.delete_bucket,
            ("GET", "buckets/*/tables"): self.list_bucket_tables,
            ("POST", "buckets/*/tables-async"): self.create_table,
            ("POST", "buckets/*/tables-definition"): self.define_table,
            ("GET", "tables"): self.list_tables,
            ("GET", "tables/*"): self.get_table,
            ("DELETE", "tables/*"): self.delete_table,
            ("POST", "tables/*/import-async"): self.import_table,
            ("POST", "tables/*/export-async"): self.export_table,
            ("GET", "tables/*/data-preview"): self.preview,
            ("DELETE", "tables/*/rows"): self.delete_rows,
            ("POST", "tables/*/columns"): self.add_column,
            ("POST", "tables/*/primary-key"): self.set_primary_key,
            ("DELETE", "tables/*/primary-key"): self.drop_primary_key,
            ("GET", "tables/*/metadata"): self.list_metadata,
            ("POST", "tables/*/metadata"): self.add_metadata,
            ("DELETE", "tables/*/metadata/*"): self.delete_metadata,
            ("POST", "files/prepare"): self.prepare_file,
            ("GET", "files"): self.list_files,
            ("GET", "files/*"): self.get_file,
            ("DELETE", "files/*"): self.delete_file,
            ("PUT", "files/*/refresh"): self.refresh_file,
            ("GET", "files/*/content"): self.file_content,
            ("POST", "files/*/tags"): self.add_tag,
            ("DELETE", "files/*/tags/*"): self.delete_tag,
            ("GET", "jobs"): self.list_jobs,
            ("GET", "jobs/*"): self.get_job,
            ("POST", "webalize/display-name"): self.webalize_display,
            ("POST", "webalize/column-names"): self.webalize_columns,
            ("POST", "validate/column-names"): self.validate_columns,
        }
        self.known_paths = {path for _, path in self.routes}

    # ---- dispatch ----
    def handle(self, request):
        try:
            answer = self._handle(request)
        except ApiError as error:
            body = {"error": error.message, "code": error.code, "exceptionId": self.project.exception_id(), "status": "error", **error.extra}
            if error.code is None:
                del body["code"]
            answer = json_answer(error.status, body)
        if self.project.settings["gzip_answers"] and "gzip" in request.headers.get("accept-encoding", "") and answer.length:
            answer.body = gzip.compress(answer.bytes(), 1)
            answer.length = len(answer.body)
            answer.headers.append(("Content-Encoding", "gzip"))
        return answer

    def _handle(self, request):
        maintenance = self.project.settings["maintenance"]
        if maintenance:
            request.drain()
            return json_answer(503, {"status": "maintenance", "estimatedEndTime": maintenance.get("until", iso_date()),
                                     "reason": maintenance.get("reason", "Maintenance")},
                               [("Retry-After", str(maintenance.get("retry_after", 60)))])
        body = self._body(request)
        segments = request.segments()[2:]  # behind v2/storage
        if segments and segments[-1] == "" and len(segments) > 1 or segments == [""]:
            segments.pop()
        if not segments:
            if request.method != "GET":
                raise ApiError(405, "methodNotAllowed", "Method not allowed")
            return self.index(Call(request, None, body))
        in_branch = False
        if segments[0] == "branch" and len(segments) > 2:
            if segments[1] not in ("default", str(BRANCH_ID)):
                self._authenticate(request)
                raise ApiError(404, "storage.devBranches.notFound", 'The development branch "%s" was not found' % segments[1])
            segments = segments[2:]
            in_branch = True
        handler, arguments = self._route(request.method, segments, in_branch)
        call = Call(request, self._authenticate(request, verify=handler == self.verify), body)
        return handler(call, *arguments)

    def _route(self, method, segments, in_branch):
        if segments[0] in ("jobs", "dev-branches", "tickets") and in_branch or segments == ["metadata"] and not in_branch:
            raise ApiError(404, "notFound", "Resource not found")
        if "" not in segments:
            exact = "/".join(segments)
            starred = "/".join("*" if i in (1, 3) else segment for i, segment in enumerate(segments))
            for path, arguments in ((exact, ()), (starred, [segments[i] for i in (1, 3) if i < len(segments)])):
                handler = self.routes.get((method, path))
                if handler is not None:
                    return handler, arguments
            if exact in self.known_paths or starred in self.known_paths:
                raise ApiError(405, "methodNotAllowed", "Method not allowed")
        raise ApiError(404, "notFound", "Resource not found")

    def _body(self, request):
        """The body as a dict: JSON or form; {} without one."""
        if request.at_end:
            return {}
        raw = request.read()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            try:
                body = json.loads(raw) if raw.strip() else {}
            except ValueError:
                raise ApiError(400, "validation.failed", "Request body is not valid JSON") from None
            if not isinstance(body, (dict, list)):
                raise ApiError(400, "validation.failed", "Request body has to be an object")
            request.body_json = body
            return body if isinstance(body, dict) else {}
        if kind in ("application/x-www-form-urlencoded", ""):
            body = parse_form(parse_qsl(raw.decode("utf-8", "replace"), keep_blank_values=True))
            request.body_json = body
            return body
        raise ApiError(415, "unsupportedMediaType", "Content type %s is not supported" % kind)

    def _authenticate(self, request, verify=False):
        text = request.headers.get("x-storageapi-token")
        if text is None:
            bearer = request.headers.get("authorization", "")
            text = bearer[7:] if bearer.startswith("Bearer ") else None
        if not text:
            raise ApiError(401, "", "Access token must be set")
        token = self.project.tokens.get(text)
        if token is None or token.revoked or (not verify and (token.isExpired or token.isDisabled)):
            raise ApiError(401, "storage.tokenInvalid", "Invalid access token")
        return token

    @staticmethod
    def _denied():
        return ApiError(403, "accessDenied", "You don't have access to the resource.")

    def _may_write(self, call, bucket_id):
        if call.token.permission(bucket_id) not in ("write", "manage"):
            raise self._denied()

    def _may_read(self, call, bucket_id):
        if call.token.permission(bucket_id) is None:
            raise self._denied()

    def _may_manage(self, call, bucket_id):
        if call.token.permission(bucket_id) != "manage":
            raise self._denied()

    # ---- index, tokens, branches ----
    def index(self, call):
        excluded = str(call.query.get("exclude", "")).split(",")
        services = ("import", "queue", "encryption", "scheduler", "sync-actions", "notification", "oauth", "billing", "vault", "stream")
        body = {"api": "storage", "version": "v2", "revision": "emulator", "stack": "emulator", "documentation": "http://docs.keboola.apiary.io/"}
        if "components" not in excluded:
            body["components"] = []
        body["services"] = [{"id": name, "url": "https://%s.keboola.invalid" % name} for name in services]
        body["features"] = [name for name in self.project.settings["features"]]
        body["urlTemplates"] = {"orchestrationJob": "/admin/projects/<%= projectId %>/orchestrations/<%= orchestrationId %>/jobs/<%= jobId %>"}
        return json_answer(200, body)

    def verify(self, call):
        token, settings = call.token, self.project.settings
        if token.revoked:
            raise ApiError(401, "storage.tokenInvalid", "Invalid access token")
        body = {
            "id": token.id, "token": token.text, "created": "2026-01-05T09:00:00+0100", "refreshed": "2026-01-05T09:00:00+0100",
            "description": token.description, "uri": "%s/v2/storage/tokens/%s" % (call.base, token.id),
            "isMasterToken": token.isMasterToken, "canManageBuckets": token.canManageBuckets, "canManageTokens": token.canManageTokens,
            "canReadAllFileUploads": token.canReadAllFileUploads, "canPurgeTrash": token.canPurgeTrash,
            "canManageProtectedDefaultBranch": False, "canCreateJobs": False,
            "expires": token.expires, "isExpired": token.isExpired, "isDisabled": token.isDisabled, "dailyCapacity": 0,
            "bucketPermissions": php_map(token.bucketPermissions), "componentAccess": [],
            "creatorToken": {"id": 44, "description": "ops@example.com"},
            "owner": {
                "id": PROJECT_ID, "name": "Emulator", "type": "production", "region": settings["region"],
                "created": "2026-01-01T09:00:00+0100", "expires": None, "features": ["queuev2", *settings["features"]],
                "defaultBackend": settings["backend"], "hasSnowflake": settings["backend"] == "snowflake",
                "hasBigquery": settings["backend"] == "bigquery", "hasRedshift": False, "hasSynapse": False, "isBYODB": False,
                "fileStorageProvider": settings["provider"],
                "limits": {"storage.jobsParallelism": {"name": "storage.jobsParallelism", "value": settings["jobs_parallelism"]}},
                "metrics": [], "isDisabled": token.ownerDisabled,
            },
            "organization": {"id": 12},
        }
        if token.isMasterToken:
            body["admin"] = {"id": 44, "name": "Ops", "features": [], "role": "admin"}
        return json_answer(200, body)

    @staticmethod
    def _branch_json():
        return {"id": BRANCH_ID, "name": "Main", "description": "", "created": "2026-01-01T09:00:00+0100", "isDefault": True,
                "creatorToken": {"id": 44, "name": "ops@example.com"}}

    def branches(self, call):
        return json_answer(200, [self._branch_json()])

    def branch(self, call, branch_id):
        if branch_id not in ("default", str(BRANCH_ID)):
            raise ApiError(404, "storage.devBranches.notFound", 'The development branch "%s" was not found' % branch_id)
        return json_answer(200, self._branch_json())

    def branch_metadata(self, call):
        return json_answer(200, [])

    def ticket(self, call):
        return json_answer(201, {"id": next(self.project.ids) + 123454000000})

    # ---- buckets ----
    def _bucket_json(self, bucket, base, tables=None):
        path = "KBC_USE4_%d" % PROJECT_ID
        return {
            "uri": "%s/v2/storage/buckets/%s" % (base, bucket.id), "id": bucket.id, "name": bucket.name,
            "displayName": bucket.display_name, "idBranch": BRANCH_ID, "stage": bucket.stage, "description": bucket.description,
            "tables": "%s/v2/storage/buckets/%s/tables" % (base, bucket.id) if tables is None else tables,
            "created": bucket.created, "lastChangeDate": bucket.last_change, "updated": bucket.updated, "isReadOnly": False,
            "dataSizeBytes": sum(table.size_bytes for table in bucket.tables.values()),
            "rowsCount": sum(table.rows_count for table in bucket.tables.values()),
            "isMaintenance": False, "backend": bucket.backend, "sharing": None, "hasExternalSchema": False, "databaseName": None,
            "path": "%s.%s" % (path, bucket.id), "isSnowflakeSharedDatabase": False, "isLinkedBucket": False, "color": bucket.color,
            "owner": None, "backendPath": [path, bucket.id], "attributes": [],
        }

    def list_buckets(self, call):
        with self.project.lock:
            return json_answer(200, [self._bucket_json(bucket, call.base) for bucket in self.project.buckets.values()
                                     if call.token.permission(bucket.id) is not None])

    def get_bucket(self, call, bucket_id):
        includes = call.includes()
        with self.project.lock:
            bucket = self.project.bucket(bucket_id)
            self._may_read(call, bucket_id)
            tables = [self._table_summary(table, call.base, includes) for table in bucket.tables.values()]
            body = self._bucket_json(bucket, call.base, tables)
        if "metadata" in includes:
            body["metadata"] = []
        return json_answer(200, body)

    @staticmethod
    def _check_name(field, value, what):
        if value.startswith("_") and field == "displayName":
            raise ApiError(400, "storage.buckets.validation", "Invalid data - %s: '%s'. Cannot start with underscore." % (field, value))
        if not names.NAME.match(value):
            raise ApiError(400, "storage.buckets.validation", "Invalid data - %s: '%s' contains not allowed characters. Only alphanumeric "
                           "characters dash and underscores are allowed." % (field, value))

    def create_bucket(self, call):
        project, body = self.project, call.body
        if not (call.token.canManageBuckets or call.token.isMasterToken):
            raise self._denied()
        name = body.get("name")
        if not isinstance(name, str) or name == "":
            raise validation("name", "This value should not be blank.", "storage.buckets.validation")
        stage = body.get("stage") or "in"
        if stage not in STAGES:
            raise validation("stage", "The value you selected is not a valid choice.", "storage.buckets.validation")
        self._check_name("name", name, "bucket")
        display_name = body.get("displayName") or name
        if not isinstance(display_name, str):
            raise validation("displayName", "This value should be of type string.", "storage.buckets.validation")
        self._check_name("displayName", display_name, "bucket")
        stored_name = name if "disable-legacy-bucket-prefix" in project.settings["features"] else "c-" + name
        with project.lock:
            if "%s.%s" % (stage, stored_name) in project.buckets:
                raise ApiError(400, "storage.buckets.alreadyExists", "The bucket %s already exists." % name)
            if (stage, display_name) in project.display_names:
                raise ApiError(400, "storage.buckets.alreadyExists", 'The display name "%s" already exists in project.' % display_name)
            bucket = Bucket(stage, stored_name, display_name, body.get("description") or "",
                            body.get("backend") or project.settings["backend"], body.get("color") or None, project.now())
            project.buckets[bucket.id] = bucket
            project.display_names[stage, display_name] = bucket.id
            return json_answer(201, self._bucket_json(bucket, call.base))

    def change_bucket(self, call, bucket_id):
        project = self.project
        with project.lock:
            bucket = project.bucket(bucket_id)
            self._may_manage(call, bucket_id)
            display_name = call.body.get("displayName")
            if display_name is not None:
                self._check_name("displayName", display_name, "bucket")
                if project.display_names.get((bucket.stage, display_name), bucket_id) != bucket_id:
                    raise ApiError(400, "storage.buckets.alreadyExists", 'The display name "%s" already exists in project.' % display_name)
                project.display_names.pop((bucket.stage, bucket.display_name), None)
                project.display_names[bucket.stage, display_name] = bucket_id
                bucket.display_name = display_name
            if "color" in call.body:
                bucket.color = call.body["color"] or None
            bucket.updated = project.now()
            changed = self._bucket_json(bucket, call.base)
        if call.flag("async"):
            return self._submit(call, "bucketUpdate", bucket_id, None, {"bucketId": bucket_id}, lambda job: changed)
        return json_answer(200, changed)

    def delete_bucket(self, call, bucket_id):
        project = self.project
        force = call.flag("force")

        def work(job=None):
            with project.lock:
                bucket = project.buckets.get(bucket_id)
                if bucket is None:
                    return None
                if bucket.tables and not force:
                    raise JobError("buckets.deleteNotEmpty", self._not_empty(bucket))
                del project.buckets[bucket_id]
                project.display_names.pop((bucket.stage, bucket.display_name), None)
            return None
        with project.lock:
            bucket = project.bucket(bucket_id)
            self._may_manage(call, bucket_id)
            if bucket.tables and not force:
                raise ApiError(400, "buckets.deleteNotEmpty", self._not_empty(bucket))
        if call.flag("async"):
            return self._submit(call, "bucketDelete", bucket_id, None, {"bucketId": bucket_id, "force": force}, work)
        work()
        return Answer(204)

    @staticmethod
    def _not_empty(bucket):
        return "Only empty buckets can be deleted. There are %d tables in the bucket." % len(bucket.tables)

    # ---- tables ----
    def _table_summary(self, table, base, includes=()):
        body = {
            "uri": "%s/v2/storage/tables/%s" % (base, table.id), "id": table.id, "name": table.name, "displayName": table.name,
            "transactional": False, "primaryKey": list(table.primary_key), "indexType": None, "indexKey": [], "distributionType": None,
            "distributionKey": [], "syntheticPrimaryKeyEnabled": False, "created": table.created, "lastImportDate": table.last_import,
            "lastChangeDate": table.last_change, "rowsCount": table.rows_count, "dataSizeBytes": table.size_bytes, "isAlias": False,
            "isAliasable": True, "isTyped": table.definition is not None, "timestampType": "MANAGED", "tableType": "table",
            "path": "KBC_USE4_%d.%s" % (PROJECT_ID, table.id),
        }
        if "columns" in includes:
            body["columns"] = list(table.columns)
        if "metadata" in includes:
            body["metadata"] = list(table.metadata)
        if "columnMetadata" in includes:
            body["columnMetadata"] = php_map(dict(table.column_metadata))
        if "attributes" in includes:
            body["attributes"] = []
        if "buckets" in includes:
            body["bucket"] = self._bucket_json(table.bucket, base)
        return body

    def _table_json(self, table, base):
        bucket = table.bucket
        body = self._table_summary(table, base, ("columns", "columnMetadata", "attributes", "metadata"))
        body["bucket"] = {"id": bucket.id, "name": bucket.name, "displayName": bucket.display_name, "stage": bucket.stage,
                          "backend": bucket.backend, "description": bucket.description,
                          "uri": "%s/v2/storage/buckets/%s" % (base, bucket.id)}
        if table.definition is not None:
            body["definition"] = {
                "primaryKeysNames": list(table.primary_key),
                "columns": [{"name": column["name"], "definition": {"nullable": True, **column["definition"]},
                             "basetype": imports.basetype(column["definition"]), "canBeFiltered": True} for column in table.definition]}
        else:
            body["definition"] = []
        return body

    def list_tables(self, call):
        includes = call.includes(TABLE_INCLUDES)
        with self.project.lock:
            return json_answer(200, [self._table_summary(table, call.base, includes | ({"buckets"} if not includes else set()))
                                     for bucket in self.project.buckets.values() if call.token.permission(bucket.id) is not None
                                     for table in bucket.tables.values()])

    def list_bucket_tables(self, call, bucket_id):
        includes = call.includes(TABLE_INCLUDES)
        with self.project.lock:
            bucket = self.project.bucket(bucket_id)
            self._may_read(call, bucket_id)
            return json_answer(200, [self._table_summary(table, call.base, includes) for table in bucket.tables.values()])

    def get_table(self, call, table_id):
        with self.project.lock:
            table = self._readable(call, table_id)
            return json_answer(200, self._table_json(table, call.base))

    def _readable(self, call, table_id):
        table = self.project.table(table_id)
        self._may_read(call, table.bucket.id)
        return table

    def _writable(self, call, table_id):
        table = self.project.table(table_id)
        self._may_write(call, table.bucket.id)
        return table

    def _load_params(self, body):
        delimiter = body.get("delimiter")
        delimiter = "," if delimiter in (None, "") else delimiter
        delimiter = "\t" if delimiter == "\\t" else delimiter
        if not isinstance(delimiter, str) or len(delimiter) != 1:
            raise ApiError(400, "invalidCsv", "CSV delimiter must be a single character. %r given." % delimiter)
        enclosure = body.get("enclosure", '"')
        escaped_by = body.get("escapedBy") or ""
        if enclosure is None:
            enclosure = '"'
        if not isinstance(enclosure, str) or len(enclosure) > 1 or not isinstance(escaped_by, str) or len(escaped_by) > 1:
            raise ApiError(400, "invalidCsv", "CSV enclosure and escapedBy must be a single character.")
        if enclosure and escaped_by:
            raise ApiError(400, "csvImport.invalidCsvParams", "Invalid CSV params: only one of enclosure and escapedBy can be specified.")
        if delimiter in (enclosure, "\n", "\r"):
            raise ApiError(400, "csvImport.invalidCsvParams", "Invalid CSV params: the delimiter cannot be %r." % delimiter)
        nulls = body.get("treatValuesAsNull")
        if nulls is not None and (not isinstance(nulls, list) or len(nulls) > 1):
            raise ApiError(400, "storage.tables.validation", "treatValuesAsNull can hold at most one value.")
        columns = body.get("columns")
        if columns is not None and (not isinstance(columns, list) or not all(isinstance(name, str) for name in columns)):
            raise validation("columns", "This value should be of type array.")
        ignored = body.get("ignoredLinesCount")
        if ignored not in (None, ""):
            ignored = whole_number(ignored)
            if ignored is None or ignored < 0:
                raise validation("ignoredLinesCount", "This value should be a positive number.")
        return imports.LoadParams(delimiter, enclosure, escaped_by, truth(body.get("incremental", False)), columns,
                                  truth(body.get("withoutHeaders", False)), ignored if ignored != "" else None)

    def _data_file(self, call):
        value = call.body.get("dataFileId")
        if value in (None, ""):
            raise validation("dataFileId", "This value should not be blank.")
        file_id = whole_number(value)
        if file_id is None:
            raise validation("dataFileId", "This value should be of type int.")
        return self.project.file(file_id)

    def create_table(self, call, bucket_id):
        project, body = self.project, call.body
        with project.lock:
            bucket = project.bucket(bucket_id)
            self._may_write(call, bucket_id)
            key = body.get("primaryKey")
            if isinstance(key, (list, dict)):
                raise validation("primaryKey", "This value should be of type string.")
            name = body.get("name")
            if not isinstance(name, str) or name == "":
                raise ApiError(400, "storage.tables.validation", 'Table create option "name" is required and cannot be empty.')
            if not names.NAME.match(name):
                raise ApiError(400, "storage.tables.validation", "Invalid data - name: '%s' contains not allowed characters. Only alphanumeric "
                               "characters dash and underscores are allowed." % name)
            params = self._load_params(body)
            params.columns, params.without_headers, params.ignored_lines = None, False, None  # a create has a header
            file = self._data_file(call)
            if name in bucket.tables:
                raise ApiError(400, "storage.buckets.tableAlreadyExists",
                               'The table "%s" in the bucket already has the same display name "%s".' % (name, name))
            table_id = "%s.%s" % (bucket_id, name)
            primary_key = [part.strip() for part in key.split(",")] if key else []
            base = call.base

            def work(job):
                table = imports.create_table(project, job, bucket_id, name, primary_key, file, params)
                with project.lock:
                    return self._table_json(table, base)
            return self._submit(call, "tableCreate", table_id, None, {
                "params": {"name": name, "primaryKey": primary_key, "delimiter": params.delimiter, "enclosure": params.enclosure,
                           "escapedBy": params.escaped_by, "columns": [], "distributionKey": None, "transactional": False},
                "source": {"fileId": file.id, "type": "file"}}, work)

    def import_table(self, call, table_id):
        project = self.project
        with project.lock:
            self._writable(call, table_id)
            params = self._load_params(call.body)
            file = self._data_file(call)
            return self._submit(call, "tableImport", table_id, table_id, {
                "params": {"incremental": params.incremental, "withoutHeaders": params.without_headers, "columns": params.columns or [],
                           "delimiter": params.delimiter, "enclosure": params.enclosure, "escapedBy": params.escaped_by},
                "source": {"fileId": file.id, "type": "file"}},
                lambda job: imports.import_table(project, job, table_id, file, params))

    def define_table(self, call, bucket_id):
        project, body = self.project, call.body
        with project.lock:
            bucket = project.bucket(bucket_id)
            self._may_write(call, bucket_id)
            name = body.get("name")
            if not isinstance(name, str) or not names.NAME.match(name):
                raise ApiError(400, "storage.tables.validation", 'Table create option "name" is required and cannot be empty.')
            columns, typed = [], False
            for column in body.get("columns") or []:
                problem = names.column_problem(column.get("name", ""))
                if problem:
                    raise ApiError(400, "storage.tables.validation.invalidColumnName", problem)
                definition = column.get("definition") or {}
                if definition.get("type"):
                    typed = True
                elif column.get("basetype"):
                    if column["basetype"] not in imports.BASETYPES:
                        raise validation("columns", "Unknown basetype %s" % column["basetype"], "storage.tables.validation")
                    definition = {**definition, "type": imports.BASETYPES[column["basetype"]]}
                    typed = True
                else:
                    definition = {**definition, "type": "VARCHAR"}
                columns.append({"name": column["name"], "definition": definition})
            if not columns:
                raise ApiError(400, "storage.tables.validation.noColumns", "There are no columns in the definition.")
            names_of = [column["name"] for column in columns]
            keys = body.get("primaryKeysNames") or []
            if not isinstance(keys, list) or [key for key in keys if key not in names_of]:
                raise ApiError(400, "storage.tables.validation.invalidPrimaryKeyColumns", "Primary key columns were not found in columns.")
            if name in bucket.tables:
                raise ApiError(400, "storage.buckets.tableAlreadyExists",
                               'The table "%s" in the bucket already has the same display name "%s".' % (name, name))
            base = call.base

            def work(job):
                with project.lock:
                    if bucket_id not in project.buckets:
                        raise JobError("storage.buckets.notFound", 'The bucket "%s" was not found in the project "%s"' % (bucket_id, PROJECT_ID))
                    if name in project.buckets[bucket_id].tables:
                        raise JobError("storage.buckets.tableAlreadyExists",
                                       'The table "%s" in the bucket already has the same display name "%s".' % (name, name))
                    table = Table(project.buckets[bucket_id], name, names_of, keys, columns if typed else None, project.now())
                    project.buckets[bucket_id].tables[name] = table
                    return self._table_json(table, base)
            params = {**body, "queue": "main"}
            return self._submit(call, "tableDefinitionCreate", "%s.%s" % (bucket_id, name), None, params, work)

    def delete_table(self, call, table_id):
        project = self.project
        with project.lock:
            table = project.table(table_id)
            self._may_manage(call, table.bucket.id)

        def work(job=None):
            with project.lock:
                if table.bucket.tables.get(table.name) is table:
                    del table.bucket.tables[table.name]
            return None
        if call.flag("async"):
            return self._submit(call, "tableDrop", table_id, table_id, {"force": call.flag("force")}, work)
        work()
        return Answer(204)

    def export_table(self, call, table_id):
        with self.project.lock:
            self._readable(call, table_id)
        options = exports.options_of({**call.query, **call.body})
        project, token = self.project, call.token

        def work(job):
            return exports.export(project, self, table_id, options, token)
        return self._submit(call, "tableExport", table_id, table_id, {"source": {"tableId": table_id}, "export": options.as_json()}, work)

    def preview(self, call, table_id):
        options = exports.options_of(call.query)
        limit = 100 if options.limit is None else options.limit
        if limit > 1000:
            raise validation("limit", "This value should be less than or equal to 1000.")
        with self.project.lock:
            table = self._readable(call, table_id)
            columns = exports.chosen_columns(table, options)
            if len(columns) > PREVIEW_COLUMNS:
                raise ApiError(400, "storage.maxNumberOfColumnsExceed", "Table has too many columns. Maximum is %d." % PREVIEW_COLUMNS)
            options.limit = limit
            text = exports.csv_text([columns]) + exports.csv_text(exports.rows_of(table, columns, options))
        return Answer(200, text.encode(), [("Content-Type", "text/csv; charset=utf-8")])

    def delete_rows(self, call, table_id):
        project = self.project
        query = {**call.query, **call.body}
        if "async" in call.query:
            raise validation("async", "This field was not expected.", "storage.validation")
        options = exports.options_of(query)
        with project.lock:
            self._writable(call, table_id)
        if options.where_column is None and not truth(query.get("allowTruncate", False)):
            raise ApiError(400, "storage.tables.validation.unintendedTruncation",
                           "All rows would be deleted. Send allowTruncate to confirm it.")

        def work(job):
            with project.lock:
                table = project.table(table_id)
                keep = [row for row in table.row_list() if options.where_column is not None and not exports.matches(table, row, options)]
                deleted = table.rows_count - len(keep)
                table.rows = {table.key_of(row): row for row in keep} if table.primary_key else keep
                table.rows_count, table.rows_kept, table.last_change = len(keep), True, project.now()
            return {"deletedRows": deleted}
        return self._submit(call, "tableRowsDelete", table_id, table_id, {"allowTruncate": True}, work)

    def add_column(self, call, table_id):
        project, name = self.project, call.body.get("name")
        with project.lock:
            table = self._writable(call, table_id)
            problem = names.column_problem(name) if isinstance(name, str) else "Column name cannot be empty."
            if problem:
                raise ApiError(400, "storage.tables.invalidColumnName", problem)
            if name.lower() in [column.lower() for column in table.columns]:
                raise ApiError(400, "storage.tables.columnAlreadyExists", 'The column "%s" already exists in the table "%s"' % (name, table_id))

        def work(job):
            with project.lock:
                if name in table.columns:
                    raise JobError("storage.tables.columnAlreadyExists", 'The column "%s" already exists in the table "%s"' % (name, table_id))
                table.columns.append(name)
                rows = [row + ("",) for row in table.row_list()]
                table.rows = {table.key_of(row): row for row in rows} if table.primary_key else rows
                if table.definition is not None:
                    table.definition.append({"name": name, "definition": call.body.get("definition") or {"type": "VARCHAR"}})
            return None
        return self._submit(call, "tableColumnAdd", table_id, table_id, {"name": name}, work)

    def set_primary_key(self, call, table_id):
        project, columns = self.project, call.body.get("columns")
        if not isinstance(columns, list) or not columns:
            raise validation("columns", "This value should be of type array.")
        with project.lock:
            table = self._writable(call, table_id)
            if [name for name in columns if name not in table.columns]:
                raise ApiError(400, "storage.tables.validation.invalidPrimaryKeyColumns", "Primary key columns were not found in columns.")
            if table.primary_key:
                raise ApiError(400, "storage.tables.primaryKeyAlreadyExists", 'The table "%s" already has a primary key.' % table_id)

        def work(job):
            with project.lock:
                rows = table.row_list()
                at = [table.columns.index(name) for name in columns]
                keyed = {tuple(row[i] for i in at): row for row in rows}
                if len(keyed) != len(rows):
                    raise JobError("storage.tables.primaryKeyDuplicateValues", "The primary key cannot be created: values are not unique.")
                table.primary_key, table.rows = list(columns), keyed
            return None
        return self._submit(call, "tablePrimaryKeyAdd", table_id, table_id, {"columns": columns}, work)

    def drop_primary_key(self, call, table_id):
        project = self.project
        with project.lock:
            table = self._writable(call, table_id)

        def work(job):
            with project.lock:
                table.rows, table.primary_key = table.row_list(), []
            return None
        return self._submit(call, "tablePrimaryKeyDelete", table_id, table_id, {}, work)

    # ---- metadata of tables ----
    def list_metadata(self, call, table_id):
        with self.project.lock:
            return json_answer(200, list(self._readable(call, table_id).metadata))

    def add_metadata(self, call, table_id):
        provider = call.body.get("provider")
        if not provider:
            raise ApiError(400, "storage.metadata.validation", "Parameter \"provider\" is required.")
        columns = call.body.get("columnsMetadata") or []
        per_column = columns.items() if isinstance(columns, dict) else enumerate(columns)
        with self.project.lock:
            table = self._writable(call, table_id)
            self._merge_metadata(table.metadata, call.body.get("metadata") or [], provider)
            for name, entries in per_column:
                for entry in entries:
                    column = entry.get("columnName", name)
                    if column not in table.columns:
                        raise ApiError(404, "storage.tables.columnNotFound", 'The column "%s" was not found' % column)
                    self._merge_metadata(table.column_metadata.setdefault(column, []), [entry], provider)
            return json_answer(201, {"metadata": list(table.metadata), "columnsMetadata": php_map(dict(table.column_metadata))})

    def _merge_metadata(self, kept, entries, provider):
        for entry in entries:
            known = next((one for one in kept if one["key"] == entry["key"] and one["provider"] == provider), None)
            if known is None:
                known = {"id": str(next(self.project.metadata_ids)), "key": entry["key"], "provider": provider}
                kept.append(known)
            known["value"] = entry.get("value")
            known["timestamp"] = self.project.now()

    def delete_metadata(self, call, table_id, metadata_id):
        with self.project.lock:
            table = self._writable(call, table_id)
            found = [one for one in table.metadata if one["id"] == metadata_id]
            if not found:
                raise ApiError(404, "storage.metadata.notFound", "Metadata not found")
            table.metadata.remove(found[0])
        return Answer(204)

    # ---- files ----
    def file_json(self, file, base, url=True):
        file_id = str(file.id) if self.project.settings["ids_as_strings"] else file.id
        size = file.size_bytes
        if size is None:
            opened = file.store.open(file, "") if not file.is_sliced else None
            size = opened[1] if opened else None
            if opened:
                opened[0].close()
        return {
            "id": file_id, "created": file.created, "isPublic": file.is_public, "isSliced": file.is_sliced,
            "isEncrypted": file.is_encrypted, "name": file.name, "fileType": "csv" if ".csv" in file.name else None,
            "url": file.store.read_url(file, base), "provider": file.store.provider, "region": file.region, "sizeBytes": size,
            "tags": list(file.tags), "maxAgeDays": None if file.is_permanent else 15, "runId": file.run_id,
            "runIds": [file.run_id] if file.run_id else [],
            "creatorToken": {"id": int(file.token_id), "description": file.token_description},
        }

    def new_file(self, name, token, options):
        """A file resource at the provider of now, with its place in the object store."""
        project = self.project
        store = project.stores[project.settings["provider"]]
        with project.lock:
            file = File(next(project.ids), name, token, project.now(), options, store, project.settings["region"])
        store.prepare(file)
        with project.lock:
            project.files[file.id] = file
        return file

    def prepare_file(self, call):
        body = call.body
        name = body.get("name")
        if not isinstance(name, str) or name == "":
            raise validation("name", "This value should not be blank.", "storage.files.validation")
        size = body.get("sizeBytes")
        if size not in (None, ""):
            size = whole_number(size)
            if size is None or size < 0:
                raise validation("sizeBytes", "This value should be of type int.", "storage.files.validation")
        else:
            size = None
        tags = body.get("tags") or []
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise validation("tags", "This value should be of type array.", "storage.files.validation")
        sliced, federation = truth(body.get("isSliced", False)), truth(body.get("federationToken", False))
        if sliced and not federation:
            raise validation("isSliced", "Sliced files need a federation token.", "storage.files.validation")
        if not federation:
            raise ApiError(400, "storage.files.validation", "Only uploads with federationToken are supported.")
        file = self.new_file(name, call.token, {
            "isPublic": False, "isSliced": sliced, "isEncrypted": truth(body.get("isEncrypted", False)),
            "isPermanent": truth(body.get("isPermanent", False)), "tags": list(dict.fromkeys(tags)), "sizeBytes": size,
            "runId": call.request.headers.get("x-kbc-runid")})
        return json_answer(201, {**self.file_json(file, call.base), **file.store.upload_params(file, call.base)})

    def _visible(self, call, file):
        return call.token.canReadAllFileUploads or call.token.isMasterToken or file.token_id == call.token.id

    def _own_file(self, call, file_id):
        file = self.project.file(file_id)
        if not self._visible(call, file):
            raise self._denied()
        return file

    def get_file(self, call, file_id):
        file = self._own_file(call, file_id)
        body = self.file_json(file, call.base)
        if call.flag("federationToken"):
            body.update(file.store.read_params(file, call.base))
        return json_answer(200, body)

    def list_files(self, call):
        query = call.query
        tags = query.get("tags")
        if tags is not None and not isinstance(tags, list):
            raise validation("tags", "This value should be of type array.", "storage.files.validation")
        limit, offset = whole_number(query.get("limit", 100)), whole_number(query.get("offset", 0))
        since, until = whole_number(query.get("sinceId", 0)), whole_number(query.get("maxId", 1 << 62))
        if None in (limit, offset, since, until) or limit < 0 or offset < 0:
            raise validation("limit", "This value should be of type int.", "storage.files.validation")
        text = query.get("q")
        with self.project.lock:
            files = [file for file in reversed(self.project.files.values())
                     if self._visible(call, file) and (not tags or set(tags) & set(file.tags)) and since < file.id < until
                     and (not query.get("runId") or file.run_id == query["runId"]) and (not text or self._found(file, text))]
        return json_answer(200, [self.file_json(file, call.base) for file in files[offset:offset + limit]])

    @staticmethod
    def _found(file, text):
        field, colon, value = text.partition(":")
        if colon and field == "tags":
            return value.strip('"') in file.tags
        if colon and field == "name":
            return value.strip('"*') in file.name
        return text.strip('"*') in file.name

    def delete_file(self, call, file_id):
        file = self._own_file(call, file_id)

        def work(job=None):
            with self.project.lock:
                self.project.files.pop(file.id, None)
            file.store.drop(file)
            return None
        if call.flag("async"):
            return self._submit(call, "fileDelete", "file-%d" % file.id, None, {"fileId": file.id}, work)
        work()
        return Answer(204)

    def refresh_file(self, call, file_id):
        file = self._own_file(call, file_id)
        if file.store.provider != "gcp":
            raise ApiError(400, "storage.files.validation", "Refresh of credentials is supported for GCP only.")
        if time.time() > file.created_at + 12 * HOUR:
            raise ApiError(422, "storage.files.refreshExpired", "Credentials of the file cannot be refreshed anymore.")
        return json_answer(200, {**self.file_json(file, call.base), **file.store.upload_params(file, call.base)})

    def file_content(self, call, file_id):
        file = self._own_file(call, file_id)
        opened = None if file.is_sliced else file.store.open(file, "")
        if opened is None or opened[1] > 10 * 1024 * 1024:
            raise ApiError(400, "storage.files.validation", "Only files of up to 10 MB that are not sliced can be read.")
        with opened[0] as stream:
            return Answer(200, stream.read(), [("Content-Type", "application/octet-stream")])

    def add_tag(self, call, file_id):
        file = self._own_file(call, file_id)
        tag = call.body.get("tag")
        if not isinstance(tag, str) or not tag:
            raise validation("tag", "This value should not be blank.", "storage.files.validation")
        with self.project.lock:
            if tag not in file.tags:
                file.tags.append(tag)
        return Answer(204)

    def delete_tag(self, call, file_id, tag):
        file = self._own_file(call, file_id)
        with self.project.lock:
            if tag in file.tags:
                file.tags.remove(tag)
        return Answer(204)

    # ---- jobs ----
    def _submit(self, call, operation, key, table_id, params, work):
        """A new job as the 202 answer shows it: waiting, whatever it is a moment later."""
        project = self.project
        fault = getattr(call.request, "job_fault", None) or {}
        with project.lock:
            job = Job(next(project.job_ids), operation, key, table_id, params, call.token, call.request.headers.get("x-kbc-runid"),
                      project.now())
            job.target = key
            job.work = work
            job.seconds = float(fault.get("seconds", project.settings["job_seconds"]))
            job.forced_error = fault.get("job_error")
            job.hang = bool(fault.get("job_hang"))
            project.jobs[job.id] = job
            if job.is_load:
                project.count_load(key, "accepted")
            answer = json_answer(202, self._job_json(job, call.base))
        project.runner.submit(job)
        return answer

    def _job_json(self, job, base):
        job_id = str(job.id) if self.project.settings["ids_as_strings"] else job.id
        body = {
            "id": job_id, "status": job.status, "url": "%s/v2/storage/jobs/%s" % (base, job.id), "tableId": job.table_id,
            "operationName": job.operation, "operationParams": job.params, "createdTime": job.created, "startTime": job.started,
            "endTime": job.ended, "runId": job.run_id, "results": job.results,
            "creatorToken": {"id": job.token.id, "description": job.token.description},
            "metrics": {"inCompressed": False, "inBytes": job.in_bytes, "inBytesUncompressed": job.in_bytes, "outCompressed": False,
                        "outBytes": 0, "outBytesUncompressed": 0},
        }
        if job.error is not None:
            body["error"] = job.error
        return body

    def get_job(self, call, job_id):
        with self.project.lock:
            number = whole_number(job_id)
            if number in self.project.history:
                return json_answer(200, self._past_job(number, call.base))
            job = self.project.jobs.get(number)
            if job is None:
                raise ApiError(404, "storage.jobs.notFound", 'Job "%s" was not found' % job_id)
            return json_answer(200, self._job_json(job, call.base))

    @staticmethod
    def _past_job(number, base):
        return {"id": number, "status": "success", "url": "%s/v2/storage/jobs/%d" % (base, number), "tableId": None,
                "operationName": "bucketDelete", "operationParams": {"bucketId": "in.c-old"}, "createdTime": "2026-01-05T09:00:00+0100",
                "startTime": "2026-01-05T09:00:01+0100", "endTime": "2026-01-05T09:00:02+0100", "runId": None, "results": [],
                "creatorToken": {"id": "44", "description": "ops@example.com"}, "metrics": []}

    def list_jobs(self, call):
        limit, offset = whole_number(call.query.get("limit", 100)), whole_number(call.query.get("offset", 0))
        if limit is None or offset is None or limit < 0 or offset < 0:
            raise validation("limit", "This value should be of type int.", "storage.validation")
        with self.project.lock:
            listed = [*reversed(self.project.jobs.values()), *reversed(self.project.history)][offset:offset + limit]
            return json_answer(200, [self._past_job(job, call.base) if isinstance(job, int) else self._job_json(job, call.base)
                                     for job in listed])

    # ---- names ----
    def webalize_display(self, call):
        text = call.body.get("displayName")
        if not isinstance(text, str):
            raise ApiError(400, "validation.failed", 'Invalid request:\n - displayName: "This value should be of type string."')
        name = names.webalize_display(text)
        if not name:
            raise ApiError(422, "storage.webalize.displayName.invalid", 'The display name "%s" cannot be webalized.' % text)
        return json_answer(200, {"displayName": name})

    def _column_names(self, call):
        columns = call.body.get("columnNames")
        if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
            wrong = next((i for i, name in enumerate(columns) if not isinstance(name, str)), 0) if isinstance(columns, list) else 0
            raise ApiError(400, "validation.failed", 'Invalid request:\n - columnNames[%d]: "This value should be of type string."' % wrong)
        return columns

    def webalize_columns(self, call):
        return json_answer(200, {"columnNames": [names.webalize_column(name) for name in self._column_names(call)]})

    def validate_columns(self, call):
        errors = [{"key": "columnNames[%d]" % i, "message": problem} for i, name in enumerate(self._column_names(call))
                  if (problem := names.column_problem(name))]
        if errors:
            raise ApiError(422, "storage.validation", "Invalid request:\n" + "\n".join(' - %(key)s: "%(message)s"' % one for one in errors),
                           errors=errors)
        return Answer(204)

