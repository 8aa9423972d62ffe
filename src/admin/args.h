/*
 * args.h -- the command line as data.
 *
 * One table of commands drives parsing, `chute help`, the manual, the completions of the shells, and the test that
 * compares them. Nothing here knows what a command does.
 */
#ifndef CHUTE_ARGS_H
#define CHUTE_ARGS_H

#include "err.h"

#include <stdbool.h>
#include <stddef.h>

/* What a shell can offer for a value. */
enum arg_complete { ARG_ANY, ARG_FILE, ARG_FOLDER, ARG_COMMAND };

struct arg_option {
    const char *name;           /* without dashes; NULL ends a table */
    char letter;                /* -c; 0: none */
    const char *value;          /* what it takes, for help: "FILE"; NULL: it is a switch */
    const char *const *choices; /* values a shell offers, NULL-terminated; NULL: none known */
    bool is_closed;             /* nothing but CHOICES is right */
    enum arg_complete complete;
    const char *help;
};

struct args;
struct arg_command {
    const char *name;                   /* NULL ends a table */
    const char *operands;               /* for help: "FILE…"; "" none */
    int min_operands, max_operands;     /* max -1: any number */
    enum arg_complete operand_complete; /* what a shell offers for them */
    const char *const *operand_choices;
    const struct arg_option *options;    /* its own; the common ones come on top */
    const char *summary;                 /* one line */
    const char *text;                    /* paragraphs */
    const char *const *examples;         /* pairs: command line, what it does; NULL-terminated */
    int (*run)(const struct args *args); /* returns the exit code */
};

#define ARGS_MAX 64 /* options on one command line */
struct args {
    const struct arg_command *command; /* NULL: none was given */
    struct {
        const struct arg_option *option;
        const char *value; /* "" for a switch */
    } given[ARGS_MAX];
    size_t given_count;
    char **operands;
    int operand_count;
};

/*
 * Take ARGV apart (ARGV[0] is skipped, its operands are moved to the front: RET->operands points into it). COMMON
 * options are right with every command, also before its name. ERR_CONFIG: wrong usage, with what was probably meant.
 */
enum err_code args_parse(const struct arg_command *commands, const struct arg_option *common, int argc, char **argv,
                         struct args *ret, struct err *err);
/* The last value given for NAME; NULL: not given. */
const char *args_value(const struct args *args, const char *name);
bool args_has(const struct args *args, const char *name);

#endif
