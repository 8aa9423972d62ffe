"""The page for people: what has arrived so far."""
from html import escape

FIRST_ROWS = 10
STYLE = """body{font:15px/1.4 sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0 1.5em}td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left;max-width:24em;
overflow:hidden;text-overflow:ellipsis;white-space:nowrap}th{background:#f4f4f4}small{color:#777}code{background:#f4f4f4;padding:0 .2em}
.error{color:#a00}"""


def _table(head, rows):
    return "<table><tr>%s</tr>%s</table>" % (
        "".join("<th>%s</th>" % escape(str(cell)) for cell in head),
        "".join("<tr>%s</tr>" % "".join("<td>%s</td>" % escape("" if cell is None else str(cell)) for cell in row) for row in rows))


def html(emulator):
    project = emulator.project
    parts = ["<!doctype html><meta charset=utf-8><title>Keboola emulator</title><style>%s</style><h1>Keboola Storage emulator</h1>" % STYLE,
             "<p>Address <code>%s</code>, token <code>%s</code>, uploads go to <code>%s</code>. <small>Reload to see what has changed; the same "
             "as JSON: <a href='/_control/state'>state</a>, <a href='/_control/requests'>requests</a>.</small></p>"
             % (escape(emulator.url), escape(project.token_text), escape(project.settings["provider"]))]
    with project.lock:
        if not project.buckets:
            parts.append("<p>No bucket yet.</p>")
        for bucket in project.buckets.values():
            parts.append("<h2>%s <small>%d tables</small></h2>" % (escape(bucket.id), len(bucket.tables)))
            for table in bucket.tables.values():
                parts.append("<h3>%s <small>%d rows, %d bytes, loaded %s%s</small></h3>" % (
                    escape(table.name), table.rows_count, table.size_bytes, escape(table.last_import or "never"),
                    ", key %s" % escape(", ".join(table.primary_key)) if table.primary_key else ""))
                parts.append(_table(table.columns, table.row_list()[:FIRST_ROWS]))
                if not table.rows_kept:
                    parts.append("<p><small>The rows were too many to be kept.</small></p>")
        parts.append("<h2>Jobs <small>%d, newest first</small></h2>" % len(project.jobs))
        newest = list(reversed(project.jobs.values()))[:50]
        parts.append(_table(("id", "operation", "about", "status", "created", "ended", "message"), [
            (job.id, job.operation, job.target, job.status, job.created, job.ended, job.error["message"] if job.error else "") for job in newest]))
    return "".join(parts)
