/*
 * config.h -- text to one read-only struct config.
 *
 * The option tables here and in the drivers are the only description of the configuration: parser, defaults, help,
 * manual and reference are made from them. Reference counted: running jobs keep the configuration they began with.
 */
#ifndef CHUTE_CONFIG_H
#define CHUTE_CONFIG_H

#include "arena.h"
#include "cron.h"
#include "dest.h"
#include "err.h"
#include "inspect.h"
#include "log.h"
#include "option.h"
#include "source.h"
#include "unpack.h"

/*
 * config may see unpack.h for the limits of an archive and for what is called like one, and inspect.h for the csv table
 * and for the rules of `records`: data, not behaviour, but for the two checks and the preparation of the rules, which
 * belong to the room that knows what a pointer and a value are.
 */

struct retry_options {
    uint64_t first; /* ms */
    double factor;
    uint64_t max;           /* ms */
    uint64_t give_up_after; /* ms */
};

struct config_source {
    const char *name;
    const struct source_ops *ops;
    void *options;
    /* common to directory sources, for settle: options of the source's own table, found by name */
    uint64_t debounce_ms, settle_ms;
    const char *ready_marker;
    const char *host, *port; /* for templates; "" of a directory */
    /* of sources that are asked for their files: when */
    uint64_t every_ms;     /* 0: not by this */
    const char *cron_text; /* "": not by this */
    struct cron cron;      /* what it says */
};

struct config_dest {
    const char *name;
    const struct dest_ops *ops;
    void *options;
    struct retry_options retry; /* global, overridden by the destination's own `retry` */
    struct option_strings init; /* scripts, absolute paths */
};

/* SQL scripts that run in a destination. */
struct config_pipeline {
    const char *name;
    const struct config_dest *dest;
    struct option_strings sql; /* absolute paths, at least one */
    uint64_t every_ms;         /* 0: not by this */
    const char *cron_text;     /* "": not by this */
    struct cron cron;          /* what it says */
    const struct script_setting *settings;
    size_t setting_count;
};

enum after { AFTER_KEEP, AFTER_DELETE, AFTER_MOVE };
enum on_delete { ON_DELETE_IGNORE, ON_DELETE_DROP, ON_DELETE_EMPTY };
enum archives { ARCHIVES_KEEP, ARCHIVES_EXTRACT, ARCHIVES_BOTH };
enum flow_format { FORMAT_CSV, FORMAT_JSON, FORMAT_RAW };

struct config_flow {
    const char *name;
    const struct config_source *source;
    const struct config_dest *dest;
    struct option_strings include, exclude;
    int format;
    struct csv_options csv;
    struct event_options events; /* FORMAT_JSON: rules, prepared for use */
    struct load_part *parts;     /* FORMAT_JSON: the tables of the rules; their SPACE is the job's to fill in */
    size_t part_count;
    const char *space;      /* template of the bucket or schema; NULL where the destination has none */
    bool space_is_given;    /* it is the destination's own, and stays as it is written there */
    const char *table;      /* template; FORMAT_JSON: of a name under which ledger and receipts know the flow's files */
    struct load_plan plan;  /* flow, mode, key, order_by, row_number, types, on_schema_change, names, on_duplicate;
                               FORMAT_JSON: mode is append if any rule appends */
    uint64_t skip_bad_rows; /* bad_rows: {skip: N} */
    int bad_rows;           /* 0 reject_file, 1 skip */
    int on_changed;         /* enum changed_policy, for append */
    int after_success;      /* enum after */
    const char *after_success_dir;
    int after_failure; /* AFTER_KEEP or AFTER_MOVE */
    const char *after_failure_dir;
    int on_delete;
    int archives;   /* enum archives */
    int64_t nested; /* archives in archives that are unpacked, one within the other */
    struct unpack_limits archive_limits;
    struct option_strings require; /* columns that a file must have */
    struct option_strings then;    /* names of pipelines, in order, each once */
    uint64_t incomplete_after;     /* ms */
    uint64_t definition; /* hash of all that changes what a load means: a change queues quarantined files once */
};

struct config {
    struct arena arena;
    int references;
    const char *file;        /* absolute path; "" for command-line configurations */
    const char *state;       /* absolute */
    const char *instance;    /* "" : random id in the state folder */
    uint64_t shutdown_grace; /* ms */
    struct log_output *logs;
    size_t log_count;
    const char *http_listen; /* "" off */
    struct {
        int64_t jobs;
        uint64_t buffer, max_file_size;
        uint64_t upload_rate, download_rate; /* bytes per second; 0: no limit */
    } limits;
    struct retry_options retry;
    uint64_t history_keep; /* ms */
    struct config_source *sources;
    size_t source_count;
    struct config_dest *dests;
    size_t dest_count;
    struct config_flow *flows;
    size_t flow_count;
    struct config_pipeline *pipelines;
    size_t pipeline_count;
    const char *timezone; /* "": the machine's */
};

/* The drivers a configuration may name; the tables of the application, NULL-terminated. */
struct config_drivers {
    const struct source_ops *const *sources;
    const struct dest_ops *const *dests;
};

/*
 * Read and check FILE. Secrets it holds are registered with log_secret() and never part of an error; other values that
 * come from variables are told by the variable's name. ERR_CONFIG, or ERR_SYSTEM (no memory; RET_ERRORS stays NULL).
 * Errors: "FILE:LINE:COLUMN: what; did you mean ...?". All errors found (up to 20) are joined by
 * '\n' into RET_ERRORS (malloc'ed, may be NULL argument); ERR has the first. *RET has one reference.
 */
enum err_code config_load(const char *file, const struct config_drivers *drivers, struct config **ret,
                          char **ret_errors, struct err *err);

/* What a command line says: run and load without a file. */
struct config_quick {
    const char *profile; /* NULL, "file2sql" */
    const char *watch;   /* folder; for load: NULL (then the root is "/", the table "{stem}", and nothing is watched) */
    const char *to;      /* URL */
    const char *table;   /* template; NULL: default */
    const char *state;   /* NULL: ./.chute */
    bool is_load; /* chute load: flow "load"; a table without placeholder is appended to; no deletes, on_schema_change
                     default of the destination but never drops */
};
enum err_code config_quick(const struct config_quick *quick, const struct config_drivers *drivers, struct config **ret,
                           struct err *err);
/* `chute init`: the commented text of a profile; NULL: no such profile. PROFILES lists them. */
const char *config_profile_text(const char *profile);
extern const char *const config_profiles[];

/* Files that `chute init` writes beside chute.yaml for PROFILE, as pairs: path below its folder, text; NULL-terminated,
 * NULL if there are none. */
const char *const *config_profile_files(const char *profile);

/* NULL: there is none of that name. */
const struct config_pipeline *config_pipeline_named(const struct config *config, const char *name);
/* `timezone` becomes the zone of this process. Before there is a second thread: it writes the environment. */
void config_use_timezone(const struct config *config);

struct config *config_ref(struct config *c);
void config_unref(struct config *c);

/*
 * Does FLOW take PATH (include, exclude, temporary names)? The flow of `chute load` has no include and takes every
 * path: its files were named one by one. A configuration file can't have such a flow.
 */
bool config_flow_takes(const struct config_flow *flow, const char *path);
/* Is the file PATH unpacked by FLOW, if it is an archive as its name says? */
bool flow_unpacks(const struct config_flow *flow, const char *path);
/* Does FLOW take the member NAME of the archive at PATH: by its path with the archive's as a folder, or as if the
 * archive had been unpacked where it lies? */
bool flow_takes_member(const struct config_flow *flow, const char *path, const char *name);
/* All files of FLOW go to one table. */
bool flow_is_constant(const struct config_flow *flow);
/*
 * The table of PATH, made legal, into RET, and what it is compared by into RET_KEY (SIZE bytes each, TABLE_NAME_MAX):
 * "table", or "space.table" where the destination has spaces. ERR_INPUT: can't be made legal.
 */
enum err_code flow_table_name(const struct config_flow *flow, const char *path, char *ret, char *ret_key, size_t size,
                              struct err *err);
/* The same of the space alone; only for flows that have one. */
enum err_code flow_space_name(const struct config_flow *flow, const char *path, char *ret, char *ret_key, size_t size,
                              struct err *err);
/* Could FOLDER (below the root) hold files that this flow takes into a space of its own? Then its space is made when
 * the folder appears. */
bool flow_wants_folder(const struct config_flow *flow, const char *folder);

/* All option tables with where they stand, for help, manual, reference and the tests. */
struct config_section {
    const char *title; /* "flows.NAME", "sources.NAME (type: directory)", "limits" */
    const char *help;
    const struct option *options;
};
/* SECTIONS (room for MAX) gets them; returns how many. */
size_t config_sections(const struct config_drivers *drivers, struct config_section *sections, size_t max);
/* The reference in Markdown (docs/configuration.md is this), and the part of the man page in troff. malloc'ed. */
char *config_reference_markdown(const struct config_drivers *drivers);
char *config_reference_man(const struct config_drivers *drivers);
/* Help for one option or section by name, as text; NULL: none such. malloc'ed. */
char *config_help(const struct config_drivers *drivers, const char *name);

#endif
