"""Tables back to files: exports, previews, and the filters they share with the deletion of rows."""
import gzip
import json

from jobs import JobError
from project import ApiError

SLICE_ROWS = 50000


class Options:
    def __init__(self):
        self.limit = None
        self.columns = None
        self.where_column = None
        self.where_operator = "eq"
        self.where_values = []
        self.gzip = False

    def as_json(self):
        return {"columns": self.columns, "limit": self.limit, "whereColumn": self.where_column, "whereOperator": self.where_operator,
                "whereValues": self.where_values, "gzip": self.gzip}


def options_of(fields):
    """Options from query or body; raises ApiError."""
    options = Options()
    limit = fields.get("limit")
    if limit not in (None, ""):
        if not str(limit).isdigit():
            raise ApiError(400, "storage.validation.limit", 'Invalid request:\n - limit: "This value should be of type int."')
        options.limit = int(limit)
    columns = fields.get("columns")
    if columns:
        options.columns = columns.split(",") if isinstance(columns, str) else list(columns)
    options.gzip = str(fields.get("gzip", "")).lower() in ("1", "true")
    options.where_column = fields.get("whereColumn") or None
    options.where_operator = fields.get("whereOperator") or "eq"
    values = fields.get("whereValues")
    options.where_values = values if isinstance(values, list) else [] if values is None else [values]
    if options.where_operator not in ("eq", "ne", "neq"):
        raise ApiError(400, "storage.validation.whereOperator", 'Invalid request:\n - whereOperator: "Unknown operator."')
    return options


def chosen_columns(table, options):
    columns = options.columns or list(table.columns)
    unknown = [name for name in columns if name not in table.columns]
    if unknown or options.where_column is not None and options.where_column not in table.columns:
        raise ApiError(400, "storage.tables.columnNotFound", "Columns not found in the table: %s" % ", ".join(unknown or [options.where_column]))
    return columns


def matches(table, row, options):
    found = row[table.columns.index(options.where_column)] in options.where_values
    return found == (options.where_operator == "eq")


def rows_of(table, columns, options):
    at = [table.columns.index(name) for name in columns]
    left = options.limit
    for row in table.row_list():
        if left == 0:
            return
        if options.where_column is None or matches(table, row, options):
            left = None if left is None else left - 1
            yield [row[i] for i in at]


def csv_text(rows):
    return "".join('"%s"\n' % '","'.join(value.replace('"', '""') for value in row) for row in rows)


def export(project, api, table_id, options, token):
    """The work of a tableExport job: a sliced file, as the service makes it. Its slices have no header."""
    try:
        with project.lock:
            table = project.table(table_id)
            if not table.rows_kept:
                raise JobError("", "The emulator has not kept the rows of %s." % table_id)
            columns = chosen_columns(table, options)
            rows = list(rows_of(table, columns, options))
    except ApiError as error:
        raise JobError(error.code, error.message) from None
    end = ".csv.gz" if options.gzip else ".csv"
    file = api.new_file(table_id + end, token, {
        "isPublic": False, "isSliced": True, "isEncrypted": True, "isPermanent": False, "tags": ["table-export"], "sizeBytes": None, "runId": None})
    entries = []
    size = 0
    for number, first in enumerate(range(0, max(1, len(rows)), SLICE_ROWS)):
        data = csv_text(rows[first:first + SLICE_ROWS]).encode()
        suffix = "%d_0_0%s" % (number, end)
        data = gzip.compress(data) if options.gzip else data
        size += len(data)
        file.store.put(file, suffix, data)
        entries.append({"url": file.store.slice_url(file, suffix), "mandatory": True})
    file.store.put(file, "manifest", json.dumps({"entries": entries}).encode())
    file.size_bytes = size
    return {"file": {"id": str(file.id) if project.settings["ids_as_strings"] else file.id}}
