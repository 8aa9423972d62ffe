/*
 * options.c -- the tables of everything that is not a driver's: parser, defaults, help, manual and reference read them.
 */
#include "config_internal.h"

#define SECOND 1000
#define MINUTE (60 * SECOND)
#define HOUR (60 * MINUTE)
#define DAY ((int64_t)24 * HOUR)
#define KIB 1024
#define MIB (1024 * KIB)
#define GIB ((int64_t)1024 * MIB)

const char *const config_column_types[] = {"bigint",    "double",      "decimal", "boolean", "date",
                                           "timestamp", "timestamptz", "text",    NULL};

/* Words of the specification whose parts are not built yet: refused like any unknown word, but said so. */

static const char *const header_words[] = {"first_row", NULL};
static const char *const encoding_words[] = {"utf-8",      "utf-16", "windows-1250", "windows-1252", "iso-8859-1",
                                             "iso-8859-2", NULL};
static const char *const short_rows_words[] = {"reject", "pad", NULL};
static const char *const auto_word[] = {"auto", NULL};

const struct option csv_option_table[] = {
    {.name = "delimiter",
     .type = OPT_CHAR,
     .offset = offsetof(struct csv_options, delimiter),
     .default_text = "auto",
     .choices = auto_word,
     .help = "What separates fields. `auto` chooses among comma, semicolon, tab and pipe by how header and records "
             "split; `\"\\t\"` is a tab."},
    {.name = "quote",
     .type = OPT_CHAR,
     .offset = offsetof(struct csv_options, quote),
     .default_text = "\"",
     .help = "What encloses fields that hold delimiters, quotes or line breaks."},
    {.name = "header",
     .type = OPT_ENUM,
     .offset = offsetof(struct csv_options, header),
     .default_text = "first_row",
     .choices = header_words,
     .help = "Where the column names are."},
    {.name = "encoding",
     .type = OPT_ENUM,
     .offset = offsetof(struct csv_options, encoding),
     .default_text = "utf-8",
     .choices = encoding_words,
     .help = "How the text is encoded. Nothing is guessed: a byte that does not fit is an "
             "error with its offset."},
    {.name = "null_values",
     .type = OPT_STRINGS,
     .offset = offsetof(struct csv_options, null_values),
     .default_text = "[\"\"]",
     .help = "Unquoted texts that mean NULL."},
    {.name = "short_rows",
     .type = OPT_ENUM,
     .offset = offsetof(struct csv_options, short_rows),
     .default_text = "reject",
     .choices = short_rows_words,
     .help = "A row with too few fields: a bad row, or filled up with NULL."},
    {.name = "max_row",
     .type = OPT_SIZE,
     .offset = offsetof(struct csv_options, max_row),
     .default_text = "16MiB",
     .min = 16,
     .max = GIB,
     .help = "A longer row is an error with its place, not an allocation."},
    {.name = NULL}};

const struct option config_retry_table[] = {
    {.name = "first",
     .type = OPT_DURATION,
     .offset = offsetof(struct retry_options, first),
     .default_text = "1s",
     .min = 1,
     .max = DAY,
     .help = "Longest wait before the first repetition; each wait is random up to its limit."},
    {.name = "factor",
     .type = OPT_FLOAT,
     .offset = offsetof(struct retry_options, factor),
     .default_text = "2",
     .help = "Each limit is this many times the one before; 1 to 100."},
    {.name = "max",
     .type = OPT_DURATION,
     .offset = offsetof(struct retry_options, max),
     .default_text = "5m",
     .min = 1,
     .max = 30 * DAY,
     .help = "No wait is longer."},
    {.name = "give_up_after",
     .type = OPT_DURATION,
     .offset = offsetof(struct retry_options, give_up_after),
     .default_text = "7d",
     .min = 1,
     .max = 3650 * DAY,
     .help = "A file that has failed for so long while its destination answered is quarantined."},
    {.name = NULL}};

static const char *const level_words[] = {"debug", "info", "warn", "error", NULL};
static const char *const log_format_words[] = {"text", "json", NULL};
const struct option config_log_table[] = {
    {.name = "to",
     .type = OPT_STRING,
     .offset = offsetof(struct log_output, to),
     .flags = OPT_REQUIRED,
     .help = "`stderr`, `stdout`, or the path of a file."},
    {.name = "level",
     .type = OPT_ENUM,
     .offset = offsetof(struct log_output, level),
     .default_text = "info",
     .choices = level_words,
     .help = "What is less important is left out."},
    {.name = "format",
     .type = OPT_ENUM,
     .offset = offsetof(struct log_output, format),
     .default_text = "text",
     .choices = log_format_words,
     .help = "Lines for people, or one JSON object a line."},
    {.name = "rotate_size",
     .type = OPT_SIZE,
     .offset = offsetof(struct log_output, rotate_size),
     .default_text = "0",
     .help = "A file that has grown to this is renamed to `.1` and begun anew; 0: never."},
    {.name = "rotate_keep",
     .type = OPT_INT,
     .offset = offsetof(struct log_output, rotate_keep),
     .default_text = "5",
     .min = 0,
     .max = 1000,
     .help = "How many old files stay."},
    {.name = NULL}};

static const struct option http_table[] = {
    {.name = "listen",
     .type = OPT_STRING,
     .offset = offsetof(struct config, http_listen),
     .default_text = "",
     .help = "HOST:PORT of `/healthz`, `/readyz`, `/metrics` and `/api/v1/status`, such as `127.0.0.1:9180`; off if "
             "absent."},
    {.name = NULL}};

static const struct option limits_table[] = {
    {.name = "jobs",
     .type = OPT_INT,
     .offset = offsetof(struct config, limits.jobs),
     .default_text = "4",
     .min = 1,
     .max = 256,
     .help = "How many files each destination works on at once; small files that share a commit "
             "are not counted."},
    {.name = "buffer",
     .type = OPT_SIZE,
     .offset = offsetof(struct config, limits.buffer),
     .default_text = "12MiB",
     .min = 64 * KIB,
     .max = 16 * GIB,
     .help = "Memory for rows that are read ahead, of each load that a destination is taking."},
    {.name = "max_file_size",
     .type = OPT_SIZE,
     .offset = offsetof(struct config, limits.max_file_size),
     .default_text = "0",
     .help = "A larger file is quarantined; 0: no limit."},
    {.name = "upload_rate",
     .type = OPT_SIZE,
     .offset = offsetof(struct config, limits.upload_rate),
     .default_text = "0",
     .help = "Bytes per second that all uploads together may send, such as 2MiB; 0: no limit."},
    {.name = "download_rate",
     .type = OPT_SIZE,
     .offset = offsetof(struct config, limits.download_rate),
     .default_text = "0",
     .help = "Bytes per second that all sources together may fetch, such as 2MiB; 0: no limit."},
    {.name = NULL}};

static const struct option history_table[] = {
    {.name = "keep",
     .type = OPT_DURATION,
     .offset = offsetof(struct config, history_keep),
     .default_text = "90d",
     .min = HOUR,
     .max = 36500 * DAY,
     .help = "How long receipts are listed. What a file that still exists was loaded as is never forgotten."},
    {.name = NULL}};

static const char *const log_type[] = {"list", NULL};
static const char *const map_type[] = {"mapping", NULL};
/* A group without SUB is read by config.c; CHOICES then says what it is. */
const struct option config_top_table[] = {
    {.name = "state",
     .type = OPT_PATH,
     .offset = offsetof(struct config, state),
     .default_text = ".chute",
     .help = "Folder of the ledger, the quarantine and the control socket. One daemon has it at a time."},
    {.name = "instance",
     .type = OPT_STRING,
     .offset = offsetof(struct config, instance),
     .default_text = "",
     .help = "Who this is among several chutes that feed one database; a random id kept in the state folder if "
             "empty."},
    {.name = "shutdown_grace",
     .type = OPT_DURATION,
     .offset = offsetof(struct config, shutdown_grace),
     .default_text = "20s",
     .max = DAY,
     .help = "How long TERM waits for running loads before they are broken off."},
    {.name = "log",
     .type = OPT_GROUP,
     .choices = log_type,
     .help = "Where chute writes what it does, any number; one to stderr if absent."},
    {.name = "http", .type = OPT_GROUP, .sub = http_table, .help = "Health, metrics and status over http."},
    {.name = "limits", .type = OPT_GROUP, .sub = limits_table, .help = "What chute may use."},
    {.name = "timezone",
     .type = OPT_STRING,
     .offset = offsetof(struct config, timezone),
     .default_text = "",
     .help = "Whose clock `cron` means, such as `Europe/Prague` or `UTC`; the machine's if empty. Needs a restart to "
             "change."},
    {.name = "retry",
     .type = OPT_GROUP,
     .offset = offsetof(struct config, retry),
     .sub = config_retry_table,
     .help = "When and how long what failed for a while is tried again; a destination can have its own."},
    {.name = "history", .type = OPT_GROUP, .sub = history_table, .help = "What is remembered for people."},
    {.name = "sources", .type = OPT_GROUP, .choices = map_type, .help = "Where files come from, by name."},
    {.name = "destinations", .type = OPT_GROUP, .choices = map_type, .help = "Where rows go, by name."},
    {.name = "flows",
     .type = OPT_GROUP,
     .choices = log_type,
     .help = "Which files of a source go to which destination, as what, and what becomes of the file."},
    {.name = "pipelines",
     .type = OPT_GROUP,
     .choices = map_type,
     .help = "SQL scripts that run in a destination after loads, on a schedule, or by `chute pipeline NAME`; by name."},
    {.name = NULL}};

static const char *const driver_type[] = {"type name", NULL};
const struct option config_source_table[] = {
    {.name = "type", .type = OPT_GROUP, .choices = driver_type, .flags = OPT_REQUIRED, .help = "What kind of source."},
    {.name = NULL}};

const struct option config_dest_table[] = {
    {.name = "type",
     .type = OPT_GROUP,
     .choices = driver_type,
     .flags = OPT_REQUIRED,
     .help = "What kind of destination."},
    {.name = "retry",
     .type = OPT_GROUP,
     .offset = offsetof(struct config_dest, retry),
     .sub = config_retry_table,
     .help = "As the global `retry`; what is not given here is taken from there."},
    {.name = "init",
     .type = OPT_PATHS,
     .offset = offsetof(struct config_dest, init),
     .default_text = "[]",
     .help = "SQL files that run in one transaction when chute has connected, before it loads anything (types that run "
             "scripts: see `pipelines`). They run at every start: write them so that a second run changes nothing."},
    {.name = NULL}};

#define PIPELINE(member) offsetof(struct pipeline_draft, member)
const struct option config_pipeline_table[] = {
    {.name = "in",
     .type = OPT_STRING,
     .offset = PIPELINE(in),
     .flags = OPT_REQUIRED,
     .help = "Name of the destination that the scripts run in."},
    {.name = "sql",
     .type = OPT_PATHS,
     .offset = PIPELINE(pipeline.sql),
     .flags = OPT_REQUIRED,
     .help = "SQL files, run in this order in one transaction: all of them, or nothing. They are read when they run."},
    {.name = "every",
     .type = OPT_STRING,
     .offset = PIPELINE(every),
     .default_text = "",
     .help = "Run when the last run, whatever its reason, began this long ago, such as `1h`; what was missed while "
             "chute was down is run once."},
    {.name = "cron",
     .type = OPT_STRING,
     .offset = PIPELINE(pipeline.cron_text),
     .default_text = "",
     .help = "Run at these times: minute, hour, day of the month, month, day of the week, such as `30 3 * * 1-5`, by "
             "the clock of `timezone`; what was missed while chute was down is run once. What falls into the hour that "
             "is left out when clocks are put forward comes at its end; what falls into the one that comes twice comes "
             "the first time, or both times if the hour is `*`."},
    {.name = "settings",
     .type = OPT_PAIRS,
     .offset = PIPELINE(settings),
     .default_text = "{}",
     .help = "What the scripts can ask for: in PostgreSQL `current_setting('chute.NAME', true)`, in SQLite "
             "`chute_setting('NAME')`, NULL if it is not set."},
    {.name = NULL}};

static const char *const format_words[] = {"csv", "json", "raw", NULL};
static const char *const load_words[] = {"replace", "append", "upsert", "keep_first", "newest", NULL};
static const char *const schema_words[] = {"reject", "add_columns", "recreate", NULL};
static const char *const names_words[] = {"keep", "snake", "keboola", "blob", NULL};
static const char *const duplicate_words[] = {"skip", "reload", NULL};
static const char *const changed_words[] = {"reject", "tail", "again", "version", "overwrite", NULL};
static const char *const reject_word[] = {"reject_file", NULL};
static const char *const success_words[] = {"keep", "delete", NULL};
static const char *const failure_words[] = {"keep", NULL};
static const char *const delete_words[] = {"ignore", "drop", "empty", NULL};

static const char *const archives_words[] = {"keep", "extract", "both", NULL};

static const struct option archive_limits_table[] = {
    {.name = "size",
     .type = OPT_SIZE,
     .offset = offsetof(struct unpack_limits, size),
     .default_text = "10GiB",
     .min = 1,
     .max = INT64_MAX,
     .help = "Bytes of all its members together."},
    {.name = "count",
     .type = OPT_INT,
     .offset = offsetof(struct unpack_limits, count),
     .default_text = "100000",
     .min = 1,
     .max = INT64_C(100000000),
     .help = "Members."},
    {.name = "ratio",
     .type = OPT_INT,
     .offset = offsetof(struct unpack_limits, ratio),
     .default_text = "200",
     .min = 1,
     .max = INT64_C(1000000),
     .help = "Bytes that come out for each byte of the archive (the first MiB is free)."},
    {.name = NULL}};

static const struct option skip_table[] = {{.name = "skip",
                                            .type = OPT_INT,
                                            .offset = offsetof(struct config_flow, skip_bad_rows),
                                            .flags = OPT_REQUIRED,
                                            .min = 1,
                                            .max = INT64_C(1000000000000),
                                            .help = "How many rows of a file may be left out."},
                                           {.name = NULL}};
static const struct option success_move_table[] = {{.name = "move",
                                                    .type = OPT_PATH,
                                                    .offset = offsetof(struct config_flow, after_success_dir),
                                                    .flags = OPT_REQUIRED,
                                                    .help = "Folder the file is moved to."},
                                                   {.name = NULL}};
static const struct option failure_move_table[] = {{.name = "move",
                                                    .type = OPT_PATH,
                                                    .offset = offsetof(struct config_flow, after_failure_dir),
                                                    .flags = OPT_REQUIRED,
                                                    .help = "Folder the file is moved to, its reason beside it."},
                                                   {.name = NULL}};

#define FLOW(member) offsetof(struct config_flow, member)
const struct option config_flow_table[] = {
    {.name = "name",
     .type = OPT_STRING,
     .offset = FLOW(name),
     .flags = OPT_REQUIRED,
     .help = "Name of the flow in commands, logs, metrics and the quarantine."},
    {.name = "from",
     .type = OPT_STRING,
     .offset = offsetof(struct flow_draft, from),
     .flags = OPT_REQUIRED,
     .help = "Name of the source."},
    {.name = "to",
     .type = OPT_STRING,
     .offset = offsetof(struct flow_draft, to),
     .flags = OPT_REQUIRED,
     .help = "Name of the destination."},
    {.name = "include",
     .type = OPT_STRINGS,
     .offset = FLOW(include),
     .default_text = "[\"**/*.csv{,.gz,.zst}\"]",
     .help = "Globs on the path below the root; for `format: json` `**/*.{json,jsonl,ndjson}{,.gz,.zst}` by default. "
             "`*` does not cross `/`, `**` does. Dotfiles and temporary names "
             "(`*.part`, `*.tmp`, `*~` and the like) are never taken."},
    {.name = "exclude",
     .type = OPT_STRINGS,
     .offset = FLOW(exclude),
     .default_text = "[]",
     .help = "Globs of what is left out again."},
    {.name = "format",
     .type = OPT_ENUM,
     .offset = FLOW(format),
     .default_text = "csv",
     .choices = format_words,
     .help =
         "What the files are: `csv`, `json` (one event, an array of events, or one event a line; see `records`), or "
         "`raw`: any file, for destinations that take files as they are. Compression of csv and json (gzip, zstd) is "
         "told by content."},
    {.name = "csv", .type = OPT_GROUP, .offset = FLOW(csv), .sub = csv_option_table, .help = "How CSV is read."},
    {.name = "records",
     .type = OPT_GROUP,
     .choices = log_type,
     .help =
         "Rules for `format: json`: what becomes of an event. The first rule whose `when` matches takes it; an event "
         "that no rule takes is bad."},
    {.name = "max_event",
     .type = OPT_SIZE,
     .offset = FLOW(events.max_event),
     .default_text = "1MiB",
     .min = 64,
     .max = MAX_EVENT_MAX,
     .help = "`format: json`: a longer event is an error with its place, not an allocation."},
    {.name = "bucket",
     .type = OPT_STRING,
     .offset = FLOW(space),
     .help =
         "Template of the bucket that the table lies in (destinations of type keboola); the placeholders are those of "
         "`table`."},
    {.name = "schema",
     .type = OPT_STRING,
     .offset = FLOW(space),
     .help =
         "Template of the schema that the table lies in (destinations of type postgres); the placeholders are those "
         "of `table`. Without it: the `schema` of the destination."},
    {.name = "table",
     .type = OPT_STRING,
     .offset = FLOW(table),
     .default_text = "{path_stem}",
     .help =
         "Template of the table's name. Of `x/y/t.a.csv.gz`: `{folder}` x_y, `{name}` t.a.csv.gz, `{stem}` t.a, "
         "`{first}` t, `{ext}` csv, `{path}` all of it, `{path_stem}` x_y_t.a; and `{flow}`, `{host}`, `{port}` (of "
         "a server). Without one of them all files go to one table. With `format: json` it is only a name for the "
         "flow in receipts, `{flow}` by default: the rules of `records` name the tables."},
    {.name = "blob",
     .type = OPT_STRING,
     .offset = FLOW(table),
     .help =
         "Template of the blob's name, for `format: raw` instead of `table`; `{path}` by default. A part between two "
         "slashes that is left empty becomes `none`."},
    {.name = "names",
     .type = OPT_ENUM,
     .offset = FLOW(plan.names),
     .default_text = "keep",
     .choices = names_words,
     .help =
         "How names of tables and columns are made legal: `keep` changes nothing, `snake` gives lower-case words "
         "joined by "
         "`_`, `keboola` leaves ASCII letters, digits and `_`, accents removed; `blob` makes `-` of every character "
         "that is no ASCII letter, digit, `.`, `-`, `_` or space."},
    {.name = "load",
     .type = OPT_ENUM,
     .offset = FLOW(plan.mode),
     .default_text = "replace",
     .choices = load_words,
     .help = "What a file does to its table: `replace` all rows, `append`, `upsert` by key, keep the row that came "
             "first, or keep the newest. With `format: json` the default of its rules, and `append` itself."},
    {.name = "require",
     .type = OPT_STRINGS,
     .offset = FLOW(require),
     .default_text = "[]",
     .help = "Columns, as files name them, without which a file is quarantined; those of `key`, `order_by` and `types` "
             "are required in any case."},
    {.name = "key",
     .type = OPT_STRINGS,
     .offset = FLOW(plan.key),
     .default_text = "[]",
     .help = "Columns that identify a row; needed by `upsert`, `keep_first` and `newest`."},
    {.name = "order_by",
     .type = OPT_STRINGS,
     .offset = FLOW(plan.order_by),
     .default_text = "[]",
     .help = "Columns that decide which row is newest; `keep_first` without it keeps what came first."},
    {.name = "types",
     .type = OPT_TYPES,
     .offset = FLOW(plan.types),
     .default_text = "infer",
     .help = "`text`, `infer` (right for the whole file, not for a sample), or column types: bigint double decimal "
             "boolean date timestamp timestamptz text; columns that are not named are inferred."},
    {.name = "row_number",
     .type = OPT_STRING,
     .offset = FLOW(plan.row_number),
     .default_text = "",
     .help = "Name of a first column that gets 0, 1, 2 ...; none if empty."},
    {.name = "on_schema_change",
     .type = OPT_ENUM,
     .offset = FLOW(plan.on_schema_change),
     .default_text = "reject",
     .choices = schema_words,
     .help = "A header or a value that does not fit the table: quarantine the file, add columns, or make the table "
             "anew (`load: replace` only)."},
    {.name = "bad_rows",
     .type = OPT_ENUM_OR,
     .offset = FLOW(bad_rows),
     .default_text = "reject_file",
     .choices = reject_word,
     .sub = skip_table,
     .or_value = 1,
     .help = "A bad row rejects its file, or up to so many are left out and kept in the quarantine with line and "
             "reason."},
    {.name = "on_duplicate",
     .type = OPT_ENUM,
     .offset = FLOW(plan.on_duplicate),
     .default_text = "skip",
     .choices = duplicate_words,
     .help = "The same content again."},
    {.name = "on_changed",
     .type = OPT_ENUM,
     .offset = FLOW(on_changed),
     .default_text = "reject",
     .choices = changed_words,
     .help = "A changed file whose rows were appended: quarantine it, append what is new at its end, or append all "
             "of it again (`load: append` only). A changed file that is a blob: keep its old bytes as a snapshot "
             "(`version`), or not (`overwrite`)."},
    {.name = "archives",
     .type = OPT_ENUM,
     .offset = FLOW(archives),
     .default_text = "keep",
     .choices = archives_words,
     .help = "What becomes of zip, tar (also .gz, .xz, .zst) and 7z files, by name and content: `keep` loads them as "
             "they are, `extract` loads what is in them, `both` does both (`format: raw`). A member is a file of the "
             "flow, with the path `ARCHIVE//PATH IN IT`; its `{name}` is the path inside the archive."},
    {.name = "nested",
     .type = OPT_INT,
     .offset = FLOW(nested),
     .default_text = "3",
     .max = 16,
     .help = "How deep archives in archives are unpacked; 0: those in archives stay as they are."},
    {.name = "archive_limits",
     .type = OPT_GROUP,
     .offset = FLOW(archive_limits),
     .sub = archive_limits_table,
     .help = "An archive with more is refused as a whole, and quarantined."},
    {.name = "after_success",
     .type = OPT_ENUM_OR,
     .offset = FLOW(after_success),
     .default_text = "keep",
     .choices = success_words,
     .sub = success_move_table,
     .or_value = AFTER_MOVE,
     .help = "What becomes of a file when all its flows have loaded it."},
    {.name = "after_failure",
     .type = OPT_ENUM_OR,
     .offset = FLOW(after_failure),
     .default_text = "keep",
     .choices = failure_words,
     .sub = failure_move_table,
     .or_value = AFTER_MOVE,
     .help = "What becomes of a file that is quarantined; its reason is written in any case."},
    {.name = "on_delete",
     .type = OPT_ENUM,
     .offset = FLOW(on_delete),
     .default_text = "ignore",
     .choices = delete_words,
     .help = "The user removed the file: its table stays, is dropped, or is emptied. What chute itself moved or "
             "deleted never counts."},
    {.name = "then",
     .type = OPT_STRINGS,
     .offset = FLOW(then),
     .default_text = "[]",
     .help =
         "Pipelines that run after a load, in this order. Many loads at once are followed by one run; a load during "
         "a run by one more."},
    {.name = "incomplete_after",
     .type = OPT_DURATION,
     .offset = FLOW(incomplete_after),
     .default_text = "5s",
     .max = 30 * DAY,
     .help = "Pipelines that run after a load, in the order in which `pipelines` has them. Many loads at once are "
             "followed by one run; a load during a run by one more."},
    {.name = NULL}};
