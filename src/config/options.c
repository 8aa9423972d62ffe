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
const char *const config_later[] = {
    "pipelines", "timezone", "then",    "archives",      "archive_limits", "nested", "records",  "max_event",
    "schema",    "blob",     "ftp",     "download_rate", "ftps",           "sftp",   "postgres", "azure_blob",
    "json",      "raw",      "version", "overwrite",     "titles",         "events", "ftp-blob", NULL};

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
    {.name = NULL}};

static const char *const format_words[] = {"csv", NULL};
static const char *const load_words[] = {"replace", "append", "upsert", "keep_first", "newest", NULL};
static const char *const schema_words[] = {"reject", "add_columns", "recreate", NULL};
static const char *const names_words[] = {"keep", "snake", "keboola", NULL};
static const char *const duplicate_words[] = {"skip", "reload", NULL};
static const char *const changed_words[] = {"reject", "tail", "again", NULL};
static const char *const reject_word[] = {"reject_file", NULL};
static const char *const success_words[] = {"keep", "delete", NULL};
static const char *const failure_words[] = {"keep", NULL};
static const char *const delete_words[] = {"ignore", "drop", "empty", NULL};

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
     .help = "Globs on the path below the root. `*` does not cross `/`, `**` does. Dotfiles and temporary names "
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
     .help = "What the files are. Compression (gzip, zstd) is told by content."},
    {.name = "csv", .type = OPT_GROUP, .offset = FLOW(csv), .sub = csv_option_table, .help = "How CSV is read."},
    {.name = "bucket",
     .type = OPT_STRING,
     .offset = FLOW(space),
     .help =
         "Template of the bucket that the table lies in (destinations of type keboola); the placeholders are those of "
         "`table`."},
    {.name = "table",
     .type = OPT_STRING,
     .offset = FLOW(table),
     .default_text = "{path_stem}",
     .help =
         "Template of the table's name. Of `x/y/t.a.csv.gz`: `{folder}` x_y, `{name}` t.a.csv.gz, `{stem}` t.a, "
         "`{first}` t, `{ext}` csv, `{path}` all of it, `{path_stem}` x_y_t.a; and `{flow}`, `{host}`, `{port}` (of "
         "a server). Without one of them all files go to one table."},
    {.name = "names",
     .type = OPT_ENUM,
     .offset = FLOW(plan.names),
     .default_text = "keep",
     .choices = names_words,
     .help = "How names of tables and columns are made legal: `keep` changes nothing, `snake` gives lower-case words "
             "joined by "
             "`_`, `keboola` leaves ASCII letters, digits and `_`, accents removed."},
    {.name = "load",
     .type = OPT_ENUM,
     .offset = FLOW(plan.mode),
     .default_text = "replace",
     .choices = load_words,
     .help = "What a file does to its table: `replace` all rows, `append`, `upsert` by key, keep the row that came "
             "first, or keep the newest."},
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
             "of it again (`load: append` only)."},
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
    {.name = "incomplete_after",
     .type = OPT_DURATION,
     .offset = FLOW(incomplete_after),
     .default_text = "5s",
     .max = 30 * DAY,
     .help = "A file that ends early is quarantined when it has not changed for so long."},
    {.name = NULL}};
