/* args.c -- see args.h. */
#include "args.h"

#include "text.h"

#include <stdio.h>
#include <string.h>

#define NAMES_MAX 64

static const struct arg_option *find_option(const struct arg_option *options, const char *name, size_t length,
                                            char letter)
{
    if (options == NULL)
        return NULL;
    for (const struct arg_option *o = options; o->name != NULL; o++) {
        if (name != NULL ? strlen(o->name) == length && strncmp(o->name, name, length) == 0 : o->letter == letter)
            return o;
    }
    return NULL;
}

static void collect(const struct arg_option *options, const char **names, size_t *count)
{
    if (options == NULL)
        return;
    for (const struct arg_option *o = options; o->name != NULL && *count < NAMES_MAX - 1; o++)
        names[(*count)++] = o->name;
}

static enum err_code unknown_option(const struct args *args, const struct arg_option *common, const char *word,
                                    struct err *err)
{
    const char *names[NAMES_MAX];
    size_t count = 0;
    if (args->command != NULL)
        collect(args->command->options, names, &count);
    collect(common, names, &count);
    names[count] = NULL;
    char plain[64];
    snprintf(plain, sizeof plain, "%s", word + strspn(word, "-"));
    plain[strcspn(plain, "=")] = '\0';
    const char *near = text_nearest(plain, names);
    const char *command = args->command == NULL ? "" : args->command->name;
    /* no option has a dot or a slash in its name: a file has */
    if (args->command != NULL && args->command->operand_complete != ARG_ANY && strpbrk(plain, "./") != NULL)
        return err_set(err, ERR_CONFIG, false,
                       "unknown option %s. If it is the name of a file, write ./%s. See: chute help %s", word, word,
                       command);
    if (near != NULL)
        return err_set(err, ERR_CONFIG, false, "unknown option %s; did you mean --%s? See: chute help %s", word, near,
                       command);
    return err_set(err, ERR_CONFIG, false, "unknown option %s. See: chute help %s", word, command);
}

static enum err_code unknown_command(const struct arg_command *commands, const char *word, struct err *err)
{
    const char *names[NAMES_MAX];
    size_t count = 0;
    for (const struct arg_command *c = commands; c->name != NULL && count < NAMES_MAX - 1; c++)
        names[count++] = c->name;
    names[count] = NULL;
    const char *near = text_nearest(word, names);
    if (near != NULL)
        return err_set(err, ERR_CONFIG, false, "unknown command %s; did you mean %s? See: chute help", word, near);
    return err_set(err, ERR_CONFIG, false, "unknown command %s. See: chute help", word);
}

static enum err_code check_choice(const struct arg_option *o, const char *value, struct err *err)
{
    if (!o->is_closed || o->choices == NULL)
        return ERR_NONE;
    for (const char *const *c = o->choices; *c != NULL; c++) {
        if (strcmp(*c, value) == 0)
            return ERR_NONE;
    }
    const char *near = text_nearest(value, o->choices);
    if (near != NULL)
        return err_set(err, ERR_CONFIG, false, "--%s %s: no such value; did you mean %s?", o->name, value, near);
    return err_set(err, ERR_CONFIG, false, "--%s %s: no such value", o->name, value);
}

static enum err_code give(struct args *args, const struct arg_option *o, const char *value, struct err *err)
{
    if (args->given_count == ARGS_MAX)
        return err_set(err, ERR_CONFIG, false, "more than %d options", ARGS_MAX);
    args->given[args->given_count].option = o;
    args->given[args->given_count].value = value == NULL ? "" : value;
    args->given_count++;
    return value == NULL ? ERR_NONE : check_choice(o, value, err);
}

/* One word that begins with '-'. *AT is its place and moves on over a value. */
static enum err_code take_option(struct args *args, const struct arg_option *common, int argc, char **argv, int *at,
                                 struct err *err)
{
    const char *word = argv[*at], *value = NULL;
    const struct arg_option *own = args->command == NULL ? NULL : args->command->options;
    const struct arg_option *o;
    if (word[1] == '-') {
        size_t length = strcspn(word + 2, "=");
        o = find_option(own, word + 2, length, 0);
        if (o == NULL)
            o = find_option(common, word + 2, length, 0);
        if (word[2 + length] == '=')
            value = word + 2 + length + 1;
    } else {
        o = find_option(own, NULL, 0, word[1]);
        if (o == NULL)
            o = find_option(common, NULL, 0, word[1]);
        if (word[2] != '\0') {
            if (o != NULL && o->value == NULL)
                return err_set(err, ERR_CONFIG, false, "%s: write switches one by one", word);
            value = word + 2 + (word[2] == '=');
        }
    }
    if (o == NULL)
        return unknown_option(args, common, word, err);
    if (o->value == NULL) {
        if (value != NULL)
            return err_set(err, ERR_CONFIG, false, "--%s takes no value", o->name);
        return give(args, o, NULL, err);
    }
    if (value == NULL) {
        if (*at + 1 >= argc)
            return err_set(err, ERR_CONFIG, false, "--%s needs a value: --%s %s", o->name, o->name, o->value);
        value = argv[++*at];
    }
    return give(args, o, value, err);
}

static enum err_code check_operands(const struct args *args, struct err *err)
{
    const struct arg_command *c = args->command;
    if (c == NULL || args_has(args, "help"))
        return ERR_NONE;
    if (args->operand_count < c->min_operands)
        return err_set(err, ERR_CONFIG, false, "%s needs %s. See: chute help %s", c->name, c->operands, c->name);
    if (c->max_operands >= 0 && args->operand_count > c->max_operands)
        return err_set(err, ERR_CONFIG, false, "%s: one word too many: %s. See: chute help %s", c->name,
                       args->operands[c->max_operands], c->name);
    return ERR_NONE;
}

enum err_code args_parse(const struct arg_command *commands, const struct arg_option *common, int argc, char **argv,
                         struct args *ret, struct err *err)
{
    *ret = (struct args){.operands = argv};
    bool only_operands = false;
    for (int at = 1; at < argc; at++) {
        char *word = argv[at];
        if (!only_operands && strcmp(word, "--") == 0) {
            only_operands = true;
            continue;
        }
        if (!only_operands && word[0] == '-' && word[1] != '\0') {
            if (take_option(ret, common, argc, argv, &at, err) != ERR_NONE)
                return err->code;
            continue;
        }
        if (ret->command == NULL) {
            for (const struct arg_command *c = commands; c->name != NULL && ret->command == NULL; c++) {
                if (strcmp(c->name, word) == 0)
                    ret->command = c;
            }
            if (ret->command == NULL)
                return unknown_command(commands, word, err);
            continue;
        }
        argv[ret->operand_count++] = word; /* never ahead of AT: argv[0] and the command's name are free */
    }
    return check_operands(ret, err);
}

const char *args_value(const struct args *args, const char *name)
{
    for (size_t i = args->given_count; i > 0; i--) {
        if (strcmp(args->given[i - 1].option->name, name) == 0)
            return args->given[i - 1].value;
    }
    return NULL;
}

bool args_has(const struct args *args, const char *name)
{
    return args_value(args, name) != NULL;
}
