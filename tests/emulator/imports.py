"""From an uploaded file to rows of a table: the rules of the service for CSV, headers and columns."""
import csv
import gzip
import io
import json
import re
import zlib
from decimal import Decimal, InvalidOperation

import blobs
import names
from jobs import JobError
from project import ApiError, Table

csv.field_size_limit(1 << 30)
MAX_COLUMNS = 9999
GZIP_MAGIC = b"\x1f\x8b"


class LoadParams:
    """What a create or an import was asked for, already checked."""

    def __init__(self, delimiter=",", enclosure='"', escaped_by="", incremental=False, columns=None, without_headers=False,
                 ignored_lines=None):
        self.delimiter = delimiter
        self.enclosure = enclosure
        self.escaped_by = escaped_by
        self.incremental = incremental
        self.columns = columns or None
        self.without_headers = without_headers
        self.ignored_lines = ignored_lines

    @property
    def has_header(self):
        """The first line names the columns."""
        return self.columns is None and not self.without_headers and self.ignored_lines is None

    def dialect(self):
        options = {"delimiter": self.delimiter, "strict": True, "doublequote": True}
        if self.enclosure:
            options["quotechar"] = self.enclosure
        else:
            options["quoting"] = csv.QUOTE_NONE
        if self.escaped_by:
            options["escapechar"] = self.escaped_by
        return options


def load_error(project, text):
    return JobError(project.settings["load_error_code"], "Load error: An exception occurred while executing a query: " + text)


# ---- the uploaded bytes ---------------------------------------------------------------------------------------------
def _streams(project, file):
    """The binary streams of FILE in order; one, or one for each slice. Raises JobError."""
    if not file.is_sliced:
        opened = file.store.open(file, "")
        if opened is None:
            raise JobError("storage.fileNotUploaded", "File %d (%s) has not been uploaded." % (file.id, file.name))
        return [opened]
    manifest = file.store.open(file, "manifest")
    if manifest is None:
        raise JobError("storage.manifestFileMissing", "Manifest file of file %d (%s) is missing." % (file.id, file.name))
    with manifest[0] as stream:
        text = stream.read()
    try:
        urls = [entry["url"] for entry in json.loads(text)["entries"]]
    except (ValueError, KeyError, TypeError):
        raise JobError("storage.manifestFileMissing", "Manifest file of file %d (%s) is not valid." % (file.id, file.name)) from None
    opened = []
    for url in urls:
        suffix = file.store.suffix_of(file, url)
        if suffix is None:
            raise JobError("storage.unauthorizedAccess", "The manifest of file %d lists %s, which is not below its key." % (file.id, url))
        part = file.store.open(file, suffix)
        if part is None:
            raise JobError("storage.importFileMissing", "Load error: File %s was not found." % url)
        opened.append(part)
    return opened


class Content:
    """The decompressed text of a file, checked against its name, hashed on the way."""

    def __init__(self, project, file):
        self.project = project
        self.file = file
        self.raw = _streams(project, file)
        self.compressed_bytes = sum(size for _, size in self.raw)
        name = file.name.lower()
        if name.endswith((".zip", ".gzip", ".bz2", ".7z", ".zst")):
            raise JobError("invalidCsv", "File %s has an unsupported format." % file.name)
        self.is_gzip = name.endswith(".gz")
        self.hashing = []

    def streams(self):
        """One buffered binary stream for each slice."""
        for stream, size in self.raw:
            buffered = io.BufferedReader(stream, blobs.CHUNK) if isinstance(stream, io.RawIOBase) else stream
            magic = self._peek(buffered)
            if self.is_gzip != (magic == GZIP_MAGIC) and size > 0:
                what = "is not compressed, though its name ends in .gz" if self.is_gzip else "is compressed, but its name does not end in .gz"
                raise JobError("invalidCsv", "File %s %s." % (self.file.name, what))
            if self.is_gzip and size > 0:
                buffered = blobs.gunzip(buffered)
            hashing = blobs.HashingReader(buffered)
            self.hashing.append(hashing)
            yield io.BufferedReader(hashing, blobs.CHUNK)

    @staticmethod
    def _peek(stream):
        if hasattr(stream, "peek"):
            return stream.peek(2)[:2]
        magic = stream.read(2)
        stream.seek(0)
        return magic

    @property
    def size(self):
        return sum(one.size for one in self.hashing)

    @property
    def sha256(self):
        return self.hashing[0].sha256.hexdigest() if len(self.hashing) == 1 else None

    def close(self):
        for stream, _ in self.raw:
            stream.close()


def _records(project, content, params):
    """All records of all slices, as lists of text."""
    line = 0
    try:
        for number, stream in enumerate(content.streams()):
            text = io.TextIOWrapper(stream, encoding="utf-8-sig" if number == 0 else "utf-8", newline="\n")
            reader = csv.reader(text, **params.dialect())
            for record in reader:
                yield record
            line += reader.line_num
    except UnicodeDecodeError as error:
        raise load_error(project, "Invalid UTF8 detected in string '%s'" % "".join("0x%02X" % byte for byte in error.object[error.start:error.end])) from None
    except csv.Error as error:
        raise load_error(project, "%s File '%s', line %d" % (error, content.file.name, line + reader.line_num)) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise load_error(project, "Error decompressing '%s': %s" % (content.file.name, error)) from None


# ---- headers --------------------------------------------------------------------------------------------------------
def _clean_header(header):
    """The cleaned names of a header record; raises JobError for what can be no header."""
    cleaned = [names.clean_column(name) for name in header]
    for name in cleaned:
        if name == "" or len(name) > names.MAX_COLUMN_NAME:
            raise JobError("storage.tables.validation.invalidColumnName", names.column_problem(name))
    return cleaned


def _no_duplicates(columns):
    seen = {}
    for name in columns:
        if name.lower() in seen:
            raise JobError("csvImport.columnsNotMatch", "There are duplicate columns in the file: %s, %s." % (seen[name.lower()], name))
        seen[name.lower()] = name


def _match_columns(project, table, columns, delimiter):
    """Check the file's COLUMNS against TABLE; the names to add to it."""
    missing = [name for name in table.columns if name not in columns]
    if missing:
        raise JobError(
            "csvImport.columnsNotMatch",
            "Some columns are missing in the csv file. Missing columns: %s. Expected columns: %s. Please check if the expected delimiter "
            '"%s" is used in the csv file.' % (",".join(missing), ",".join(table.columns), delimiter),
            {"missingColumns": missing, "expectedColumns": list(table.columns)})
    extra = [name for name in columns if name not in table.columns]
    if extra and table.definition is not None:
        raise JobError("csvImport.columnsNotMatch", "During the import of typed tables new columns can't be added. Extra columns found: %s."
                       % ", ".join('"%s"' % name for name in extra))
    if extra and project.settings["backend"] == "bigquery":
        raise JobError("csvImport.columnsNotMatch", "Columns can't be added on this backend. Extra columns found: %s."
                       % ", ".join('"%s"' % name for name in extra))
    _no_duplicates(columns)
    return extra


# ---- typed values ---------------------------------------------------------------------------------------------------
_NUMERIC = {"INT", "INTEGER", "BIGINT", "SMALLINT", "TINYINT", "BYTEINT", "NUMBER", "NUMERIC", "DECIMAL", "FLOAT", "FLOAT4", "FLOAT8",
            "DOUBLE", "DOUBLE PRECISION", "REAL", "INT64", "FLOAT64", "BIGNUMERIC"}
_BOOLEAN = {"BOOLEAN", "BOOL"}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}\Z")
_TIMESTAMP = re.compile(r"\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d+)?)?)?( ?([+-]\d{2}:?\d{2}|Z))?\Z")
BASETYPES = {"STRING": "VARCHAR", "INTEGER": "INTEGER", "NUMERIC": "NUMBER", "FLOAT": "FLOAT", "BOOLEAN": "BOOLEAN", "DATE": "DATE",
             "TIMESTAMP": "TIMESTAMP_LTZ"}


def basetype(definition):
    kind = definition["type"].upper()
    if kind in ("FLOAT", "FLOAT4", "FLOAT8", "DOUBLE", "DOUBLE PRECISION", "REAL", "FLOAT64"):
        return "FLOAT"
    if kind in ("INT", "INTEGER", "BIGINT", "SMALLINT", "TINYINT", "BYTEINT", "INT64"):
        return "INTEGER"
    if kind in _NUMERIC:
        return "NUMERIC"
    if kind in _BOOLEAN:
        return "BOOLEAN"
    if kind == "DATE":
        return "DATE"
    if kind.startswith(("TIMESTAMP", "DATETIME")):
        return "TIMESTAMP"
    return "STRING"


def _value_problem(value, definition, name):
    if value == "":
        return "NULL result in a non-nullable column '%s'" % name if definition.get("nullable") is False else None
    base = basetype(definition)
    if base in ("INTEGER", "NUMERIC", "FLOAT"):
        try:
            Decimal(value)
        except InvalidOperation:
            return "Numeric value '%s' is not recognized" % value
    elif base == "BOOLEAN" and value.lower() not in ("true", "false", "t", "f", "yes", "no", "y", "n", "on", "off", "1", "0"):
        return "Boolean value '%s' is not recognized" % value
    elif base == "DATE" and not _DATE.match(value):
        return "Date '%s' is not recognized" % value
    elif base == "TIMESTAMP" and not _TIMESTAMP.match(value):
        return "Timestamp '%s' is not recognized" % value
    return None


def _check_types(table, rows):
    if table.definition is None:
        return
    typed = [(table.columns.index(column["name"]), column["name"], column["definition"]) for column in table.definition]
    for row in rows:
        for at, name, definition in typed:
            problem = _value_problem(row[at], definition, name)
            if problem:
                raise JobError("", "Table import error: Load error: An exception occurred while executing a query: " + problem)


# ---- loading --------------------------------------------------------------------------------------------------------
class Loaded:
    """What one file brought, in the order of the table's columns."""

    def __init__(self, columns, extra):
        self.columns = columns  # of the file
        self.extra = extra  # columns that the table does not have yet
        self.rows = []
        self.count = 0
        self.kept = True
        self.size = 0
        self.sha256 = None


def _fill(project, loaded, records, content, order):
    """Read RECORDS into LOADED; ORDER: at which place of the file's record each column of the table is."""
    wide = len(loaded.columns)
    straight = order == list(range(wide))
    keep = project.settings["keep_rows"]
    rows = loaded.rows
    count = 0
    for record in records:
        if len(record) != wide:
            if not record and wide == 1:
                record = [""]
            else:
                raise load_error(project, "Number of columns in file (%d) does not match that of the corresponding table (%d), use file "
                                 "format option error_on_column_count_mismatch=false to ignore this error File '%s', row %d"
                                 % (max(1, len(record)), wide, content.file.name, count + 1))
        count += 1
        if count <= keep:
            rows.append(tuple(record) if straight else tuple([record[i] for i in order]))
    loaded.count = count
    loaded.kept = count <= keep
    if not loaded.kept:
        loaded.rows = []


def _count(loaded, content, has_header):
    """Benchmarks: count line ends outside of quotes instead of reading records."""
    ends, last, inside = 0, b"\n", False
    for stream in content.streams():
        while data := stream.read(blobs.CHUNK):
            parts = data.split(b'"')
            ends += sum(part.count(b"\n") for part in parts[inside::2])
            inside ^= len(parts) % 2 == 0
            last = data[-1:]
    loaded.count = ends + (last != b"\n") - (1 if has_header else 0)
    loaded.kept = False


def _first_record(project, content, params):
    """The header, when lines are only counted."""
    for record in _records(project, content, params):
        return record
    return None


def _read(project, file, params, table):
    """Read FILE; TABLE is None for a create, whose columns come from the header."""
    count_only = project.settings["count_only"]
    content = Content(project, file)
    try:
        if count_only:
            records = None
            header = _first_record(project, content, params) if params.has_header else None
            content.close()
            content = Content(project, file)
        else:
            records = _records(project, content, params)
            header = next(records, None) if params.has_header else None
        if params.has_header:
            if not header or header == [""]:
                if table is None:
                    raise JobError("storage.tables.validation.noColumns", "There are no columns in the file: the file is empty.")
                _match_columns(project, table, [], params.delimiter)
            if file.is_sliced and table is not None:
                raise JobError("csvImport.columnsNotMatch", "Columns have to be given when a sliced file is imported.")
            columns = _clean_header(header)
        else:
            for _ in range(params.ignored_lines or 0):
                if records is not None:
                    next(records, None)
            columns = list(params.columns or table.columns)
        if len(columns) > MAX_COLUMNS:
            raise JobError("tooManyColumns", "Too many columns. Maximum is %d columns." % MAX_COLUMNS)
        if table is None:
            _no_duplicates(columns)
            extra = []
            target = list(columns)
        else:
            extra = _match_columns(project, table, columns, params.delimiter)
            target = table.columns + extra
        loaded = Loaded(columns, extra)
        if count_only:
            _count(loaded, content, params.has_header)
        else:
            _fill(project, loaded, records, content, [columns.index(name) for name in target])
        loaded.size = content.size
        loaded.sha256 = content.sha256
        loaded.compressed_bytes = content.compressed_bytes
        return loaded
    finally:
        content.close()


def _publish(project, table, loaded, incremental):
    """Make LOADED the table's content, or add it; called with the lock held."""
    for name in loaded.extra:
        table.columns.append(name)
    if loaded.extra:
        padding = ("",) * len(loaded.extra)
        if isinstance(table.rows, dict):
            table.rows = {key: row + padding for key, row in table.rows.items()}
        else:
            table.rows = [row + padding for row in table.rows]
    _check_types(table, loaded.rows)
    kept = loaded.kept and (table.rows_kept or not incremental)
    if table.primary_key and kept:
        at = table.key_at
        rows = dict(table.rows) if incremental else {}
        for row in loaded.rows:
            rows[tuple(row[i] for i in at)] = row
        table.rows, table.rows_count = rows, len(rows)
    elif kept:
        table.rows = table.rows + loaded.rows if incremental else loaded.rows
        table.rows_count = len(table.rows)
        kept = table.rows_count <= max(project.settings["keep_rows"], len(loaded.rows))
    else:
        table.rows_count = loaded.count + (table.rows_count if incremental else 0)
    if not kept:
        table.rows = {} if table.primary_key else []
    table.rows_kept = kept
    table.size_bytes = loaded.size + (table.size_bytes if incremental else 0)
    table.sha256 = loaded.sha256 if not incremental else None
    table.last_import = table.last_change = project.now()
    table.bucket.last_change = table.last_import


def _finish_file(project, job, file, loaded):
    job.in_bytes = loaded.compressed_bytes
    if project.settings["count_only"]:
        file.store.drop(file)


def create_table(project, job, bucket_id, name, primary_key, file, params):
    """The work of a tableCreate job; the table it made. Raises JobError."""
    with project.lock:
        _fail_if_exists(project, bucket_id, name)
    loaded = _read(project, file, params, None)
    for column in primary_key:
        if column not in loaded.columns:
            raise JobError("storage.tables.validation.invalidPrimaryKeyColumns",
                           "Primary key columns %s were not found in columns: %s." % (", ".join(c for c in primary_key if c not in loaded.columns),
                                                                                     ", ".join(loaded.columns)))
    with project.lock:
        try:
            bucket = project.bucket(bucket_id)
        except ApiError as gone:
            raise JobError(gone.code, gone.message) from None
        _fail_if_exists(project, bucket_id, name)
        table = Table(bucket, name, loaded.columns, primary_key, None, project.now())
        _publish(project, table, loaded, False)
        bucket.tables[name] = table
    _finish_file(project, job, file, loaded)
    return table


def _fail_if_exists(project, bucket_id, name):
    bucket = project.buckets.get(bucket_id)
    if bucket is not None and name in bucket.tables:
        raise JobError("storage.buckets.tableAlreadyExists",
                       'The table "%s" in the bucket already has the same display name "%s".' % (name, name))


def import_table(project, job, table_id, file, params):
    """The work of a tableImport job; its results. Raises JobError."""
    try:
        with project.lock:
            table = project.table(table_id)
        loaded = _read(project, file, params, table)
        with project.lock:
            if project.find_table(table_id) is not table:
                project.table(table_id)
                raise JobError("storage.tables.notFound", 'The table "%s" was replaced meanwhile.' % table_id)
            _publish(project, table, loaded, params.incremental)
            count, size = table.rows_count, table.size_bytes
    except ApiError as gone:
        raise JobError(gone.code, gone.message) from None
    _finish_file(project, job, file, loaded)
    columns = list(loaded.columns)
    if project.settings["importedColumns_as_object"]:
        columns = {str(i): name for i, name in enumerate(columns)}
    return {"transaction": None, "totalRowsCount": count, "importedRowsCount": loaded.count, "totalDataSizeBytes": size,
            "importedColumns": columns, "warnings": []}
