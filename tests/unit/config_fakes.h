/*
 * config_fakes.h -- drivers that are nothing but option tables: for the tests of config and its fuzz target.
 */
#ifndef CHUTE_CONFIG_FAKES_H
#define CHUTE_CONFIG_FAKES_H

#include "config.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

struct fake_source {
    const char *path;
    uint64_t debounce, settle;
    const char *ready_marker;
};
static const struct option fake_source_options[] = {{.name = "path",
                                                     .type = OPT_PATH,
                                                     .offset = offsetof(struct fake_source, path),
                                                     .flags = OPT_REQUIRED,
                                                     .help = "The folder."},
                                                    {.name = "debounce",
                                                     .type = OPT_DURATION,
                                                     .offset = offsetof(struct fake_source, debounce),
                                                     .default_text = "200ms",
                                                     .help = "Quiet time after a close."},
                                                    {.name = "settle",
                                                     .type = OPT_DURATION,
                                                     .offset = offsetof(struct fake_source, settle),
                                                     .default_text = "1s",
                                                     .help = "Quiet time without one."},
                                                    {.name = "ready_marker",
                                                     .type = OPT_STRING,
                                                     .offset = offsetof(struct fake_source, ready_marker),
                                                     .default_text = "",
                                                     .help = "Marker."},
                                                    {.name = NULL}};
static const struct source_ops fake_directory = {.type = "directory",
                                                 .summary = "A folder.",
                                                 .options = fake_source_options,
                                                 .options_size = sizeof(struct fake_source)};

struct fake_dest {
    const char *path;
    const char *token;
    bool verify;
};
static const struct option fake_sqlite_options[] = {{.name = "path",
                                                     .type = OPT_PATH,
                                                     .offset = offsetof(struct fake_dest, path),
                                                     .flags = OPT_REQUIRED,
                                                     .help = "The file."},
                                                    {.name = NULL}};
static const struct option fake_vault_options[] = {{.name = "token",
                                                    .type = OPT_SECRET,
                                                    .offset = offsetof(struct fake_dest, token),
                                                    .flags = OPT_REQUIRED,
                                                    .help = "The key."},
                                                   {.name = "verify",
                                                    .type = OPT_BOOL,
                                                    .offset = offsetof(struct fake_dest, verify),
                                                    .default_text = "true",
                                                    .help = "Look twice."},
                                                   {.name = NULL}};

static enum err_code fake_from_url(const char *url, void *options, struct err *err)
{
    struct fake_dest *d = options;

    if (url[7] == '\0')
        return err_set(err, ERR_CONFIG, false, "no path");
    d->path = url + 7;
    return ERR_NONE;
}

static enum err_code fake_check(const void *options, struct err *err)
{
    const struct fake_dest *d = options;

    if (strstr(d->path, "forbidden") != NULL)
        return err_set(err, ERR_CONFIG, false, "path is forbidden");
    return ERR_NONE;
}

static enum err_code fake_table_name(const char *name, enum names_policy policy, char *ret, char *ret_key, size_t size,
                                     struct err *err)
{
    (void)policy;
    (void)err;
    snprintf(ret, size, "%s", name);
    snprintf(ret_key, size, "%s", name);
    for (char *c = ret_key; *c != '\0'; c++)
        *c = (char)tolower((unsigned char)*c);
    return ERR_NONE;
}

static const char *const fake_flow_defaults[] = {"table", "{path_stem}",      "names",    "keep", "types",
                                                 "infer", "on_schema_change", "recreate", NULL};
static const struct dest_ops fake_sqlite = {.type = "sqlite",
                                            .summary = "A file.",
                                            .options = fake_sqlite_options,
                                            .options_size = sizeof(struct fake_dest),
                                            .url_scheme = "sqlite:",
                                            .quick_name = "lite",
                                            .quick_flow = "file2sql",
                                            .from_url = fake_from_url,
                                            .check = fake_check,
                                            .flow_defaults = fake_flow_defaults,
                                            .takes_parts = true,
                                            .table_name = fake_table_name};
static const struct dest_ops fake_vault = {
    .type = "vault", .summary = "A vault.", .options = fake_vault_options, .options_size = sizeof(struct fake_dest)};

static const struct source_ops *const fake_sources[] = {&fake_directory, NULL};
static const struct dest_ops *const fake_dests[] = {&fake_sqlite, &fake_vault, NULL};
static const struct config_drivers fake_drivers = {fake_sources, fake_dests};

#endif
