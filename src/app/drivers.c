/* drivers.c -- the sources and destinations of this build: a new one is one line here. */
#include "app.h"

#include "load.h"
#include "source_directory.h"
#include "source_remote.h"

static const struct source_ops *const sources[] = {&source_directory,
#if HAVE_CURL
                                                   &source_ftp, &source_ftps, &source_sftp,
#endif
                                                   NULL};
static const struct dest_ops *const dests[] = {&dest_sqlite,
#if HAVE_CURL
                                               &dest_keboola, &dest_azure,
#endif
#if HAVE_POSTGRES
                                               &dest_postgres,
#endif
                                               NULL};

const struct config_drivers app_drivers = {sources, dests};
