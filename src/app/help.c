/* help.c -- help, manual, completions and versions, all made from the tables. */
#include "app_internal.h"

#include "unpack.h"

#if HAVE_CURL
#include "http.h"
#endif
#if HAVE_POSTGRES
#include "pg.h"
#endif
#include "text.h"

#include <csv.h>
#include <json-c/json.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>
#include <xxhash.h>
#include <yaml.h>
#include <zlib.h>
#if HAVE_ISAL
#include <isa-l.h>
#endif
#if HAVE_ZSTD
#include <zstd.h>
#endif
#if HAVE_HTTP
#include <microhttpd.h>
#endif

#define WIDTH 100

/* TEXT in lines of WIDTH, each behind INDENT spaces but the first, which goes on at COLUMN. */
static void print_wrapped(FILE *out, const char *text, int indent, int column)
{
    while (*text != '\0') {
        size_t n = strcspn(text, " \n");
        if (column + (int)n > WIDTH && column > indent) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
        }
        fprintf(out, "%.*s", (int)n, text);
        column += (int)n;
        text += n;
        for (; *text == ' ' || *text == '\n'; text++) {
            if (*text == '\n') {
                fprintf(out, "\n%*s", text[1] == '\n' ? 0 : indent, "");
                column = indent;
            } else if (column < WIDTH) {
                fputc(' ', out);
                column++;
            }
        }
    }
    fputc('\n', out);
}

static void option_label(const struct arg_option *o, char *ret, size_t size)
{
    char letter[8] = "";
    if (o->letter != 0)
        snprintf(letter, sizeof letter, "-%c, ", o->letter);
    snprintf(ret, size, "%s--%s%s%s", letter, o->name, o->value != NULL ? " " : "", o->value != NULL ? o->value : "");
}

/* Is NAME among OPTIONS? An own option hides the common one of its name. */
static bool has_option(const struct arg_option *options, const char *name)
{
    for (const struct arg_option *o = options; o != NULL && o->name != NULL; o++) {
        if (strcmp(o->name, name) == 0)
            return true;
    }
    return false;
}

static void print_options(const struct arg_option *options, const struct arg_option *hidden_by, FILE *out)
{
    for (const struct arg_option *o = options; o != NULL && o->name != NULL; o++) {
        char label[80];
        if (has_option(hidden_by, o->name))
            continue;
        option_label(o, label, sizeof label);
        fprintf(out, "  %-22s  ", label);
        print_wrapped(out, o->help, 26, 26);
    }
}

void help_command(const struct arg_command *c, FILE *out)
{
    fprintf(out, "chute %s%s%s%s: %s\n", c->name, c->options != NULL ? " [OPTION…]" : "",
            c->operands[0] != '\0' ? " " : "", c->operands, c->summary);
    if (c->text[0] != '\0') {
        fputc('\n', out);
        print_wrapped(out, c->text, 0, 0);
    }
    if (c->options != NULL) {
        fprintf(out, "\nOptions\n");
        print_options(c->options, NULL, out);
    }
    fprintf(out, "\nOptions of all commands\n");
    print_options(app_common_options, c->options, out);
    fprintf(out, "\nExamples\n");
    for (const char *const *e = c->examples; *e != NULL; e += 2)
        fprintf(out, "  %s\n      %s\n", e[0], e[1]);
}

void help_overview(FILE *out)
{
    fprintf(out,
            "chute %s: files that arrive in a folder end up in a table, complete, once, in order, with a receipt\n\n"
            "  chute run --watch inbox --to sqlite:warehouse.db\n\nCommands\n",
            CHUTE_VERSION);
    for (const struct arg_command *c = app_commands; c->name != NULL; c++)
        fprintf(out, "  %-10s  %s\n", c->name, c->summary);
    fprintf(out, "\nOptions of all commands\n");
    print_options(app_common_options, NULL, out);
    fprintf(out,
            "\nchute help COMMAND explains one, with examples; chute help KEY explains a key of the configuration.\n"
            "Exit codes: 0 fine; 1 a file or the command failed; 2 wrong usage; 78 the configuration is invalid.\n");
}

/* ---- the manual page ---- */

/* TEXT as troff: nothing in it may be taken for a request or an escape. */
static void print_troff(const char *text)
{
    bool is_line_start = true;
    for (; *text != '\0'; text++) {
        if (is_line_start && (*text == '.' || *text == '\''))
            fputs("\\&", stdout);
        is_line_start = *text == '\n';
        if (*text == '\\')
            fputs("\\e", stdout);
        else if (*text == '-')
            fputs("\\-", stdout);
        else if (*text == '\n' && text[1] == '\n')
            fputs("\n.PP", stdout);
        else
            putchar(*text);
    }
}

static void man_options(const struct arg_option *options, const struct arg_option *hidden_by)
{
    for (const struct arg_option *o = options; o != NULL && o->name != NULL; o++) {
        char label[80];
        if (has_option(hidden_by, o->name))
            continue;
        option_label(o, label, sizeof label);
        printf(".TP\n.B ");
        print_troff(label);
        putchar('\n');
        print_troff(o->help);
        putchar('\n');
    }
}

static int print_man(void)
{
    char *reference = config_reference_man(&app_drivers);
    if (reference == NULL) {
        tell("out of memory");
        return EXIT_FAILED;
    }
    printf(".TH CHUTE 1 \"\" \"chute %s\" \"User Commands\"\n.SH NAME\nchute \\- files that arrive in a folder end up "
           "in a table\n"
           ".SH SYNOPSIS\n",
           CHUTE_VERSION);
    for (const struct arg_command *c = app_commands; c->name != NULL; c++) {
        printf(".B chute %s\n%s", c->name, c->options != NULL ? "[OPTION...] " : "");
        print_troff(c->operands);
        printf("\n.br\n");
    }
    printf(".SH DESCRIPTION\nFiles that arrive in a folder end up in a table: complete, once, in order, with a receipt "
           "that adds up.\n"
           ".SH COMMANDS\n");
    for (const struct arg_command *c = app_commands; c->name != NULL; c++) {
        printf(".SS chute %s\n", c->name);
        print_troff(c->summary);
        printf(".\n.PP\n");
        print_troff(c->text);
        putchar('\n');
        man_options(c->options, NULL);
        for (const char *const *e = c->examples; *e != NULL; e += 2) {
            printf(".TP\n.I ");
            print_troff(e[0]);
            putchar('\n');
            print_troff(e[1]);
            putchar('\n');
        }
    }
    printf(".SH OPTIONS OF ALL COMMANDS\n");
    man_options(app_common_options, NULL);
    printf(".SH CONFIGURATION\n%s\n", reference);
    printf(".SH EXIT STATUS\n0 fine; 1 a file or the command failed; 2 wrong usage; 78 the configuration is invalid.\n"
           ".SH SIGNALS\nTERM and INT stop, a second one ends at once; HUP reads the configuration again and opens log "
           "files again; "
           "USR1 logs the state.\n"
           ".SH ENVIRONMENT\nNO_COLOR: no colours.\n");
    free(reference);
    return EXIT_FINE;
}

/* `chute help sqlite`: a kind of source or destination, with its keys. */
static bool help_driver(const char *word)
{
    const char *summary = NULL, *what = "source";
    const struct option *options = NULL;
    for (size_t i = 0; app_drivers.sources[i] != NULL; i++) {
        if (strcmp(app_drivers.sources[i]->type, word) == 0) {
            summary = app_drivers.sources[i]->summary;
            options = app_drivers.sources[i]->options;
        }
    }
    for (size_t i = 0; app_drivers.dests[i] != NULL; i++) {
        if (strcmp(app_drivers.dests[i]->type, word) == 0) {
            what = "destination";
            summary = app_drivers.dests[i]->summary;
            options = app_drivers.dests[i]->options;
        }
    }
    if (summary == NULL)
        return false;
    printf("type: %s, a kind of %s: %s\n\nKeys\n", word, what, summary);
    for (const struct option *o = options; o != NULL && o->name != NULL; o++) {
        printf("  %-18s  ", o->name);
        print_wrapped(stdout, o->help, 22, 22);
    }
    return true;
}

int run_help(const struct args *args)
{
    if (args_has(args, "man"))
        return print_man();
    if (args_has(args, "markdown")) {
        char *text = config_reference_markdown(&app_drivers);
        if (text == NULL) {
            tell("out of memory");
            return EXIT_FAILED;
        }
        fputs(text, stdout);
        free(text);
        return EXIT_FINE;
    }
    if (args->operand_count == 0) {
        help_overview(stdout);
        return EXIT_FINE;
    }
    const char *word = args->operands[0], *names[64];
    size_t count = 0;
    for (const struct arg_command *c = app_commands; c->name != NULL; c++) {
        if (strcmp(c->name, word) == 0) {
            help_command(c, stdout);
            return EXIT_FINE;
        }
        if (count < 63)
            names[count++] = c->name;
    }
    names[count] = NULL;
    char *text = config_help(&app_drivers, word);
    if (text == NULL && help_driver(word))
        return EXIT_FINE;
    if (text == NULL) {
        const char *near = text_nearest(word, names);
        tell("help: neither a command nor a key of the configuration: %s%s%s%s", word,
             near != NULL ? "; did you mean " : "", near != NULL ? near : "", near != NULL ? "?" : "");
        return EXIT_USAGE;
    }
    fputs(text, stdout);
    free(text);
    return EXIT_FINE;
}

/* ---- completions ---- */

static void print_words(const char *const *words, const char *separator)
{
    for (; words != NULL && *words != NULL; words++)
        printf("%s%s", *words, words[1] != NULL ? separator : "");
}

static void print_commands(void)
{
    for (const struct arg_command *c = app_commands; c->name != NULL; c++)
        printf("%s%s", c->name, c[1].name != NULL ? " " : "");
}

static void bash_values(const struct arg_option *o, const char *command)
{
    if (o->value == NULL)
        return;
    printf("    %s,--%s%s) ", command, o->name, "");
    if (o->choices != NULL) {
        printf("COMPREPLY=($(compgen -W '");
        print_words(o->choices, " ");
        printf("' -- \"$word\"))");
    } else if (o->complete != ARG_ANY) {
        printf("COMPREPLY=($(compgen -%c -- \"$word\"))", o->complete == ARG_FOLDER ? 'd' : 'f');
    } else {
        printf("COMPREPLY=()");
    }
    printf("; return ;;\n");
}

/* Options may come before the command, and readline takes --config=FILE for three words. */
static void print_bash_head(void)
{
    printf("# bash completion of chute %s: source <(chute completion bash)\n_chute()\n{\n"
           "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command= i\n"
           "  [ \"$word\" = = ] && word=\n"
           "  [ \"$before\" = = ] && before=${COMP_WORDS[COMP_CWORD-2]}\n"
           "  [ \"$before\" = -c ] && before=--config\n"
           "  for ((i = 1; i < COMP_CWORD; i++)); do\n    case ${COMP_WORDS[i]} in\n      -c",
           CHUTE_VERSION);
    for (const struct arg_option *o = app_common_options; o->name != NULL; o++) {
        if (o->value != NULL)
            printf("|--%s", o->name);
    }
    printf(") [ \"${COMP_WORDS[i+1]}\" = = ] && ((i++)); ((i++)) ;;\n      -*) ;;\n"
           "      *) command=${COMP_WORDS[i]}; break ;;\n    esac\n  done\n");
}

static void print_bash(void)
{
    print_bash_head();
    printf("  case $command,$before in\n");
    for (const struct arg_command *c = app_commands; c->name != NULL; c++) {
        for (const struct arg_option *o = c->options; o != NULL && o->name != NULL; o++)
            bash_values(o, c->name);
    }
    for (const struct arg_option *o = app_common_options; o->name != NULL; o++)
        bash_values(o, "*");
    printf("  esac\n  local options= words= files=\n  case $command in\n    '') words='");
    print_commands();
    printf("' ;;\n");
    for (const struct arg_command *c = app_commands; c->name != NULL; c++) {
        printf("    %s) options='", c->name);
        for (const struct arg_option *o = c->options; o != NULL && o->name != NULL; o++)
            printf("--%s ", o->name);
        printf("'; words='");
        print_words(c->operand_choices, " ");
        if (c->operand_complete == ARG_COMMAND)
            print_commands();
        printf("'; files=%s ;;\n", c->operand_complete == ARG_FILE     ? "-f"
                                   : c->operand_complete == ARG_FOLDER ? "-d"
                                                                       : "");
    }
    printf("  esac\n  case $word in\n    -*) COMPREPLY=($(compgen -W \"$options");
    for (const struct arg_option *o = app_common_options; o->name != NULL; o++)
        printf(" --%s", o->name);
    printf("\" -- \"$word\")) ;;\n    *) COMPREPLY=($(compgen $files -W \"$words\" -- \"$word\")) ;;\n  esac\n}\n"
           "complete -o filenames -F _chute chute\n");
}

/* Text inside single quotes and an _arguments description. */
static void print_quoted(const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == '\'')
            fputs("'\\''", stdout);
        else if (*text == '[' || *text == ']' || *text == ':' || *text == '\\')
            printf("\\%c", *text);
        else
            putchar(*text);
    }
}

static void zsh_option(const struct arg_option *o)
{
    printf(" \\\n        '--%s", o->name);
    putchar('[');
    print_quoted(o->help);
    putchar(']');
    if (o->value != NULL) {
        printf(":%s:", o->value);
        if (o->choices != NULL) {
            putchar('(');
            print_words(o->choices, " ");
            putchar(')');
        } else if (o->complete != ARG_ANY) {
            fputs(o->complete == ARG_FOLDER ? "_files -/" : "_files", stdout);
        }
    }
    putchar('\'');
}

static void print_zsh(void)
{
    printf("#compdef chute\n# zsh completion of chute %s\n_chute() {\n  local -a commands=(\n", CHUTE_VERSION);
    for (const struct arg_command *c = app_commands; c->name != NULL; c++) {
        printf("    '%s:", c->name);
        print_quoted(c->summary);
        printf("'\n");
    }
    printf("  )\n  if (( CURRENT == 2 )); then\n    _describe command commands\n    return\n  fi\n  local "
           "command=$words[2]\n"
           "  shift words; (( CURRENT-- ))\n  case $command in\n");
    for (const struct arg_command *c = app_commands; c->name != NULL; c++) {
        printf("    %s)\n      _arguments", c->name);
        for (const struct arg_option *o = c->options; o != NULL && o->name != NULL; o++)
            zsh_option(o);
        for (const struct arg_option *o = app_common_options; o->name != NULL; o++) {
            if (!has_option(c->options, o->name))
                zsh_option(o);
        }
        if (c->operand_choices != NULL) {
            printf(" \\\n        '1:word:(");
            print_words(c->operand_choices, " ");
            printf(")'");
        } else if (c->operand_complete == ARG_COMMAND) {
            printf(" \\\n        '1:command:(");
            print_commands();
            printf(")'");
        } else if (c->operand_complete != ARG_ANY) {
            printf(" \\\n        '*:file:%s'", c->operand_complete == ARG_FOLDER ? "_files -/" : "_files");
        }
        printf(" ;;\n");
    }
    printf("  esac\n}\ncompdef _chute chute\n");
}

int run_completion(const struct args *args)
{
    const char *shell = args->operands[0];
    if (strcmp(shell, "bash") == 0) {
        print_bash();
    } else if (strcmp(shell, "zsh") == 0) {
        print_zsh();
    } else {
        tell("completion: expected bash or zsh, found %s", shell);
        return EXIT_USAGE;
    }
    return EXIT_FINE;
}

/* ---- versions ---- */

int run_version(const struct args *args)
{
    (void)args;
    printf("chute %s\n", CHUTE_VERSION);
    printf("libuv %s\n", uv_version_string());
    printf("SQLite %s\n", sqlite3_libversion());
    printf("libcsv %d.%d.%d\n", CSV_MAJOR, CSV_MINOR, CSV_RELEASE);
    printf("libyaml %s\n", yaml_get_version_string());
    printf("json-c %s\n", json_c_version());
    printf("xxHash %u.%u.%u\n", XXH_versionNumber() / 10000, XXH_versionNumber() / 100 % 100,
           XXH_versionNumber() % 100);
    printf("zlib %s\n", zlibVersion());
#if HAVE_ISAL
    printf("ISA-L %d.%d.%d\n", ISAL_MAJOR_VERSION, ISAL_MINOR_VERSION, ISAL_PATCH_VERSION);
#endif
#if HAVE_ZSTD
    printf("zstd %s\n", ZSTD_versionString());
#endif
    if (unpack_library()[0] != '\0')
        printf("%s\n", unpack_library());
#if HAVE_HTTP
    printf("libmicrohttpd %s\n", MHD_get_version());
#endif
#if HAVE_CURL
    char network[300];
    http_libraries(network, sizeof network);
    printf("%s\n", network);
#endif
#if HAVE_POSTGRES
    char postgres[300];
    pg_libraries(postgres, sizeof postgres);
    printf("%s\n", postgres);
#endif
    return EXIT_FINE;
}
