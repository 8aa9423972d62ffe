/*
 * bench_inspect.c -- what does everything that inspect checks cost on top of a bare libcsv pass?
 *
 * bench_inspect FILE: CPU seconds and rate of each kind of pass, and the ratio to the bare one.
 */
#include "inspect.h"

#include <csv.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char *const nulls[] = {""};
static const struct csv_options csv_options = {.quote = '"', .null_values = {nulls, 1}, .max_row = (uint64_t)16 << 20};
static const struct inspect_options options = {.csv = &csv_options};
static const struct inspect_options no_kinds = {.csv = &csv_options, .no_kinds = true};

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static double wall_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

struct counts {
    uint64_t rows, cells;
};

static void on_field(void *s, size_t n, void *arg)
{
    (void)s;
    (void)n;
    ((struct counts *)arg)->cells++;
}

static void on_row(int c, void *arg)
{
    (void)c;
    ((struct counts *)arg)->rows++;
}

static int not_a_space(unsigned char c)
{
    (void)c;
    return 0;
}

static struct counts bare_pass(int fd, int (*is_space)(unsigned char))
{
    struct counts counts = {0, 0};
    struct csv_parser csv;
    csv_init(&csv, CSV_EMPTY_IS_NULL);
    csv_set_space_func(&csv, is_space);
    csv_set_blk_size(&csv, 65536);
    char *block = malloc(262144);
    off_t offset = 0;
    for (ssize_t n; block != NULL && (n = pread(fd, block, 262144, offset)) > 0; offset += n)
        csv_parse(&csv, block, (size_t)n, on_field, on_row, &counts);
    csv_fini(&csv, on_field, on_row, &counts);
    csv_free(&csv);
    free(block);
    return counts;
}

static struct counts full_pass(int fd, const struct inspect_options *o)
{
    struct counts counts = {0, 0};
    struct arena arena;
    struct shape *shape;
    struct rows *rows;
    struct err err;
    const struct row_batch *batch;
    arena_init(&arena);
    if (inspect_head(fd, o, &arena, &shape, &err) != ERR_NONE || inspect_rows(fd, o, shape, &rows, &err) != ERR_NONE) {
        fprintf(stderr, "bench_inspect: %s\n", err.text);
        exit(1);
    }
    if (o->no_kinds && rows_skim(rows, &(struct rows_skim){0}, &err) == ERR_NONE)
        counts.rows = rows->result.records;
    while (!o->no_kinds && rows_next(rows, &batch, &err) == ERR_NONE && batch->rows > 0) {
        counts.rows += batch->rows;
        counts.cells += batch->rows * batch->columns;
    }
    if (err.code != ERR_NONE) {
        fprintf(stderr, "bench_inspect: %s\n", err.text);
        exit(1);
    }
    rows_free(rows);
    arena_done(&arena);
    return counts;
}

static struct counts pass(int fd, int which)
{
    return which < 2 ? bare_pass(fd, which == 1 ? not_a_space : NULL)
                     : full_pass(fd, which == 2 ? &options : &no_kinds);
}

int main(int argc, char **argv)
{
    int fd = argc == 2 ? open(argv[1], O_RDONLY | O_CLOEXEC) : -1;
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) {
        fprintf(stderr, "bench_inspect: usage: bench_inspect FILE\n");
        return 2;
    }
    enum { PASSES = 4 };
    static const char *const names[PASSES] = {"bare libcsv", "bare libcsv, spaces kept", "inspect, rows",
                                              "inspect, no rows"};
    double best[PASSES] = {1e9, 1e9, 1e9, 1e9}, wall[PASSES] = {1e9, 1e9, 1e9, 1e9};
    for (int i = 0; i < 3 * PASSES; i++) { /* in turn, so that a busy moment of the machine meets all */
        double cpu = cpu_seconds(), start = wall_seconds();
        struct counts c = pass(fd, i % PASSES);
        cpu = cpu_seconds() - cpu;
        start = wall_seconds() - start;
        best[i % PASSES] = cpu < best[i % PASSES] ? cpu : best[i % PASSES];
        wall[i % PASSES] = start < wall[i % PASSES] ? start : wall[i % PASSES];
        if (i < PASSES)
            printf("%-26s %llu rows, %llu cells\n", names[i], (unsigned long long)c.rows, (unsigned long long)c.cells);
    }
    for (int i = 0; i < PASSES; i++)
        printf("%-26s cpu %.3f s, wall %.3f s, %.0f MB/s, %.2f x bare\n", names[i], best[i], wall[i],
               (double)st.st_size / 1e6 / best[i], best[i] / best[0]);
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    printf("peak memory %ld KiB\n", u.ru_maxrss);
    return 0;
}
