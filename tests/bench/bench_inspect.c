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

static struct counts full_pass(int fd)
{
    struct counts counts = {0, 0};
    struct arena arena;
    struct shape *shape;
    struct rows *rows;
    struct err err;
    const struct row_batch *batch;
    arena_init(&arena);
    if (inspect_head(fd, &options, &arena, &shape, &err) != ERR_NONE ||
        inspect_rows(fd, &options, shape, &rows, &err) != ERR_NONE) {
        fprintf(stderr, "bench_inspect: %s\n", err.text);
        exit(1);
    }
    while (rows_next(rows, &batch, &err) == ERR_NONE && batch->rows > 0) {
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

int main(int argc, char **argv)
{
    int fd = argc == 2 ? open(argv[1], O_RDONLY | O_CLOEXEC) : -1;
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) {
        fprintf(stderr, "bench_inspect: usage: bench_inspect FILE\n");
        return 2;
    }
    static const char *const names[] = {"bare libcsv", "bare libcsv, spaces kept", "inspect"};
    double best[3] = {1e9, 1e9, 1e9}, wall[3] = {1e9, 1e9, 1e9};
    for (int i = 0; i < 9; i++) { /* in turn, so that a busy moment of the machine meets all */
        double cpu = cpu_seconds(), start = wall_seconds();
        struct counts c = i % 3 == 2 ? full_pass(fd) : bare_pass(fd, i % 3 == 1 ? not_a_space : NULL);
        cpu = cpu_seconds() - cpu;
        start = wall_seconds() - start;
        best[i % 3] = cpu < best[i % 3] ? cpu : best[i % 3];
        wall[i % 3] = start < wall[i % 3] ? start : wall[i % 3];
        if (i < 3)
            printf("%-26s %llu rows, %llu cells\n", names[i], (unsigned long long)c.rows, (unsigned long long)c.cells);
    }
    for (int i = 0; i < 3; i++)
        printf("%-26s cpu %.3f s, wall %.3f s, %.0f MB/s, %.2f x bare\n", names[i], best[i], wall[i],
               (double)st.st_size / 1e6 / best[i], best[i] / best[0]);
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    printf("peak memory %ld KiB\n", u.ru_maxrss);
    return 0;
}
