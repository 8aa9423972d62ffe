/*
 * measure.c -- run a command and say what it used: measure OUT COMMAND [ARG…]
 *
 * Why not from the benchmark itself: a process inherits its parent's peak memory through vfork and exec, and Python's
 * is larger than what is measured. OUT gets one line: wall seconds, user seconds, system seconds, peak bytes, exit
 * code.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds(struct timeval t)
{
    return (double)t.tv_sec + (double)t.tv_usec / 1e6;
}

int main(int argc, char **argv)
{
    struct timespec begin, end;
    struct rusage used;
    int status;

    if (argc < 3) {
        fprintf(stderr, "usage: measure OUT COMMAND [ARG...]\n");
        return 2;
    }
    clock_gettime(CLOCK_MONOTONIC, &begin);
    pid_t child = fork();
    if (child == 0) {
        execvp(argv[2], argv + 2);
        perror(argv[2]);
        _exit(127);
    }
    if (child < 0 || wait4(child, &status, 0, &used) != child) {
        perror("measure");
        return 1;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    FILE *out = fopen(argv[1], "w");
    if (out == NULL) {
        perror(argv[1]);
        return 1;
    }
    fprintf(out, "%.6f %.6f %.6f %ld %d\n",
            (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) / 1e9, seconds(used.ru_utime),
            seconds(used.ru_stime), used.ru_maxrss * 1024, WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
    return fclose(out) == 0 ? 0 : 1;
}
