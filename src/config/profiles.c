/*
 * profiles.c -- the jobs that chute has a name for: what `chute init` writes, and what --profile means.
 *
 * The names in a profile's text are those of the command line, so that who moves from one to the other finds the
 * ledger and the receipts as they were.
 */
#include "config_internal.h"

#include <string.h>

const char *const config_profiles[] = {"file2sql", "keboola", "titles", "events", "ftp-blob", NULL};

/* What the profile says beyond the defaults of its destination: option, value. */
static const char *const file2sql_options[] = {"row_number",       "index",    "on_delete", "drop",
                                               "on_schema_change", "recreate", "types",     "infer",
                                               "csv.short_rows",   "pad",      NULL};

static const char file2sql_text[] =
    "# chute, profile file2sql: a folder of CSV files mirrored into one SQLite file.\n"
    "#\n"
    "#   mkdir -p inbox && chute run -c chute.yaml\n"
    "#   cp sales.csv inbox/  &&  sqlite3 warehouse.db 'SELECT * FROM sales'\n"
    "#\n"
    "# Each file is one table, named after its path (a/b.csv: a_b). Change the file and the table follows, remove it\n"
    "# and the table goes. Relative paths are relative to the folder of this file. All options: docs/configuration.md\n"
    "# or `chute help NAME`. Check it with `chute check -c chute.yaml`.\n"
    "\n"
    "state: .chute                      # ledger, quarantine and control socket\n"
    "\n"
    "log:\n"
    "  - {to: stderr, level: info, format: text}\n"
    "  # - {to: chute.log, level: info, format: json, rotate_size: 100MiB, rotate_keep: 5}\n"
    "\n"
    "# http: {listen: \"127.0.0.1:9180\"}  # /healthz /readyz /metrics /api/v1/status\n"
    "\n"
    "sources:\n"
    "  inbox:\n"
    "    type: directory\n"
    "    path: inbox                    # watched with all its folders\n"
    "\n"
    "destinations:\n"
    "  lite:\n"
    "    type: sqlite\n"
    "    path: warehouse.db             # made if it does not exist\n"
    "\n"
    "flows:\n"
    "  - name: file2sql\n"
    "    from: inbox\n"
    "    to: lite\n"
    "    table: \"{path_stem}\"           # a table for each file\n"
    "    load: replace                  # it holds what the file holds now\n"
    "    row_number: index              # a first column 0, 1, 2 ...\n"
    "    types: infer                   # decided by all rows of the file\n"
    "    csv: {short_rows: pad}         # missing fields at the end of a row are NULL\n"
    "    on_schema_change: recreate     # other columns or types: the table is made anew\n"
    "    on_delete: drop                # the file is removed: so is its table\n"
    "    after_success: keep            # keep, delete, or {move: done}\n"
    "    after_failure: keep            # `chute explain FILE` says why; or {move: failed}\n";

static const char *const keboola_options[] = {NULL};

static const char keboola_text[] =
    "# chute, profile keboola: folders of CSV files as buckets and tables of Keboola Storage.\n"
    "#\n"
    "#   export KBC_TOKEN=...             # a Storage token that may manage buckets\n"
    "#   chute check -c chute.yaml --connect && chute run -c chute.yaml\n"
    "#   mkdir inbox/sales && cp orders.csv inbox/sales/     # bucket in.c-sales, table orders\n"
    "#\n"
    "# Each folder below the inbox is a bucket, each CSV in it one table: a new version of the file replaces all "
    "rows.\n"
    "# The header is checked before anything is sent. Relative paths are relative to the folder of this file. All\n"
    "# options: docs/configuration.md, docs/keboola.md or `chute help NAME`.\n"
    "\n"
    "state: .chute                      # ledger, quarantine and control socket\n"
    "\n"
    "log:\n"
    "  - {to: stderr, level: info, format: text}\n"
    "  # - {to: chute.log, level: info, format: json, rotate_size: 100MiB, rotate_keep: 5}\n"
    "\n"
    "# http: {listen: \"127.0.0.1:9180\"}  # /healthz /readyz /metrics /api/v1/status\n"
    "# limits: {jobs: 4, upload_rate: 0}   # uploads at once; bytes per second, 0: no limit\n"
    "\n"
    "sources:\n"
    "  inbox:\n"
    "    type: directory\n"
    "    path: inbox                    # watched with its folders\n"
    "\n"
    "destinations:\n"
    "  kbc:\n"
    "    type: keboola\n"
    "    url: \"${KBC_URL:-https://connection.keboola.com}\"   # the stack your project is on\n"
    "    token: \"${KBC_TOKEN}\"          # or token_file: /run/secrets/kbc\n"
    "    stage: in                      # in or out\n"
    "    gzip_above: 50MiB              # larger files are compressed on the way\n"
    "\n"
    "flows:\n"
    "  - name: keboola\n"
    "    from: inbox\n"
    "    to: kbc\n"
    "    include: [\"*/*.csv{,.gz,.zst}\"]   # exactly one folder deep: FOLDER/FILE.csv\n"
    "    bucket: \"{folder}\"             # made as soon as the folder appears\n"
    "    table: \"{stem}\"\n"
    "    load: replace                  # replace, append, or upsert with `key: [COLUMN]`\n"
    "    types: text                    # infer makes typed tables\n"
    "    on_schema_change: reject       # another header: nothing is sent, `chute explain FILE` says why\n"
    "    after_success: keep            # keep, delete, or {move: done}\n"
    "    after_failure: keep            # or {move: failed}\n";

/* The rules are those of the text: quick_flow() reads them there. */
static const char *const events_options[] = {
    "format", "json", "after_success", "{move: completed}", "after_failure", "{move: invalid}", NULL};

static const char events_text[] =
    "# chute, profile events: an inbox of JSON events as tables, each event once, whatever the order they arrive in.\n"
    "#\n"
    "#   export EVENTS_DB=postgres://etl@localhost/events PGPASSWORD=...\n"
    "#   mkdir -p inbox && chute check -c chute.yaml --connect && chute run -c chute.yaml\n"
    "#   cp event.json inbox/  &&  psql \"$EVENTS_DB\" -c 'TABLE cards'\n"
    "#\n"
    "# A file is one event, an array of events, or one event a line. `records` says which table an event is a row of, "
    "and\n"
    "# where its values are (JSON Pointer). Loaded files go to completed/, those that can't be loaded to invalid/ with "
    "their\n"
    "# reason beside them; a file that is still being written is waited for. Relative paths are relative to the folder "
    "of\n"
    "# this file. All options: docs/configuration.md, docs/events.md or `chute help NAME`.\n"
    "\n"
    "state: .chute                      # ledger, quarantine and control socket\n"
    "\n"
    "log:\n"
    "  - {to: stderr, level: info, format: text}\n"
    "  # - {to: chute.log, level: info, format: json, rotate_size: 100MiB, rotate_keep: 5}\n"
    "\n"
    "# http: {listen: \"127.0.0.1:9180\"}  # /healthz /readyz /metrics /api/v1/status\n"
    "\n"
    "sources:\n"
    "  inbox:\n"
    "    type: directory\n"
    "    path: inbox                    # watched with all its folders\n"
    "\n"
    "destinations:\n"
    "  dwh:\n"
    "    type: postgres\n"
    "    url: \"${EVENTS_DB:-postgres://localhost/events}\"   # password: PGPASSWORD, ~/.pgpass, or password_file: "
    "here\n"
    "    schema: public                 # of the tables, and of chute's own\n"
    "  # dwh: {type: sqlite, path: warehouse.db}            # instead: one file, no server\n"
    "\n"
    "flows:\n"
    "  - name: events\n"
    "    from: inbox\n"
    "    to: dwh\n"
    "    include: [\"**/*.{json,jsonl,ndjson}{,.gz,.zst}\"]\n"
    "    format: json\n"
    "    max_event: 1MiB                # a longer event is an error\n"
    "    after_success: {move: completed}\n"
    "    after_failure: {move: invalid} # with the reason beside it\n"
    "    bad_rows: reject_file          # one bad event rejects its file; or {skip: N}: the others are loaded\n"
    "    records:                       # the first rule whose `when` matches takes the event; none is an error\n"
    "      - when: {/metadata/type: user}\n"
    "        table: users\n"
    "        columns:\n"
    "          external_id: {from: /payload/id, type: bigint, required: true}\n"
    "          name:        {from: /payload/name}\n"
    "          address:     {from: /payload/address}\n"
    "          job:         {from: /payload/job}\n"
    "          score:       {from: /payload/score, type: double}\n"
    "          event_at:    {from: /metadata/event_at, type: timestamp, required: true}\n"
    "          event_id:    {from: /metadata/event_id}\n"
    "          raw:         {from: \"\", type: json}       # the whole event, as it came\n"
    "        key: [external_id]\n"
    "        load: keep_first           # the earliest event of a user stays; newest: the latest wins\n"
    "        order_by: [event_at]\n"
    "      - when: {/metadata/type: card}\n"
    "        table: cards\n"
    "        columns:\n"
    "          external_id: {from: /payload/id, type: bigint, required: true}\n"
    "          user_id:     {from: /payload/user_id, type: bigint, required: true}\n"
    "          created_by_name: {from: /payload/created_by_name}\n"
    "          active:      {from: /payload/active, type: boolean, default: false}\n"
    "          created_at:  {from: /payload/created_at, type: timestamp}\n"
    "          updated_at:  {from: /payload/updated_at, type: timestamp}\n"
    "          event_at:    {from: /metadata/event_at, type: timestamp, required: true}\n"
    "          event_id:    {from: /metadata/event_id}\n"
    "          raw:         {from: \"\", type: json}\n"
    "        key: [external_id]\n"
    "        load: newest               # insert, or update if the event is newer than the stored one\n"
    "        order_by: [event_at, updated_at]\n";

static const struct profile profiles[] = {
    {"file2sql", "sqlite", file2sql_options, file2sql_text, NULL},
    {"keboola", "keboola", keboola_options, keboola_text, NULL},
    {"titles", "postgres", titles_options, titles_text, titles_files},
    {"events", NULL, events_options, events_text, NULL},
    {"ftp-blob", "azure_blob", ftp_blob_options, ftp_blob_text, NULL},
};

const struct profile *profile_find(const char *name)
{
    for (size_t i = 0; i < sizeof profiles / sizeof profiles[0]; i++)
        if (strcmp(profiles[i].name, name) == 0)
            return &profiles[i];
    return NULL;
}

const char *config_profile_text(const char *profile)
{
    const struct profile *p = profile != NULL ? profile_find(profile) : NULL;
    return p != NULL ? p->text : NULL;
}

const char *const *config_profile_files(const char *profile)
{
    const struct profile *p = profile != NULL ? profile_find(profile) : NULL;
    return p != NULL ? p->files : NULL;
}
