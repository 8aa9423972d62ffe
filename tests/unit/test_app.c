/* test_app.c -- the table of commands: everything that is made from it mentions all of it. */
#include "app_internal.h"

#include "text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* What the command line prints to standard output; its exit code in RET_CODE. malloc'ed. */
static char *printed(int *ret_code, const char *one, const char *two, const char *three)
{
    char *argv[] = {(char *)"chute", (char *)one, (char *)two, (char *)three, NULL};
    int argc = 1 + (one != NULL) + (two != NULL) + (three != NULL), out = dup(STDOUT_FILENO), err = dup(STDERR_FILENO);
    FILE *file = tmpfile();
    assert_non_null(file);
    fflush(stdout);
    dup2(fileno(file), STDOUT_FILENO);
    dup2(fileno(file), STDERR_FILENO);
    int code = app_main(argc, argv);
    fflush(stdout);
    dup2(out, STDOUT_FILENO);
    dup2(err, STDERR_FILENO);
    close(out);
    close(err);
    if (ret_code != NULL)
        *ret_code = code;
    long size = lseek(fileno(file), 0, SEEK_END);
    char *text = calloc(1, (size_t)size + 1);
    assert_non_null(text);
    assert_int_equal(pread(fileno(file), text, (size_t)size, 0), size);
    fclose(file);
    return text;
}

static void must_say(const char *text, const char *word)
{
    if (strstr(text, word) == NULL)
        fail_msg("\"%s\" not in: %.400s", word, text);
}

static void every_command_is_in_help_man_and_completions(void **state)
{
    (void)state;
    char *const texts[] = {printed(NULL, "help", NULL, NULL), printed(NULL, "help", "--man", NULL),
                           printed(NULL, "completion", "bash", NULL), printed(NULL, "completion", "zsh", NULL)};
    for (size_t i = 0; i < 4; i++) {
        for (const struct arg_command *c = app_commands; c->name != NULL; c++)
            must_say(texts[i], c->name);
        free(texts[i]);
    }
}

static void every_option_is_in_its_help_the_man_page_and_completions(void **state)
{
    (void)state;
    char *man = printed(NULL, "help", "--man", NULL), *bash = printed(NULL, "completion", "bash", NULL),
         *zsh = printed(NULL, "completion", "zsh", NULL);
    for (const struct arg_command *c = app_commands; c->name != NULL; c++) {
        int code;
        char *help = printed(&code, c->name, "--help", NULL);
        assert_int_equal(code, 0);
        must_say(help, c->examples[0]);
        for (int common = 0; common < 2; common++) {
            for (const struct arg_option *o = common ? app_common_options : c->options; o != NULL && o->name != NULL;
                 o++) {
                char word[64], man_word[64];
                snprintf(word, sizeof word, "--%s", o->name);
                snprintf(man_word, sizeof man_word, "\\-\\-%s", o->name);
                must_say(help, word);
                must_say(man, man_word);
                must_say(bash, word);
                must_say(zsh, word);
            }
        }
        free(help);
    }
    free(man);
    free(bash);
    free(zsh);
}

static void every_command_can_be_run_has_a_summary_and_examples(void **state)
{
    (void)state;
    for (const struct arg_command *c = app_commands; c->name != NULL; c++) {
        assert_non_null(c->run);
        assert_non_null(c->summary);
        assert_non_null(c->text);
        assert_non_null(c->operands);
        assert_non_null(c->examples);
        assert_non_null(c->examples[0]);
        for (const struct arg_option *o = c->options; o != NULL && o->name != NULL; o++)
            assert_non_null(o->help);
    }
}

static void a_slip_of_the_fingers_gets_a_suggestion_and_exit_code_2(void **state)
{
    (void)state;
    static const struct {
        const char *words[3], *suggestion;
    } slips[] = {
        {{"stauts", NULL, NULL}, "did you mean status"},      {{"status", "--jsn", NULL}, "did you mean --json"},
        {{"run", "--onec", NULL}, "did you mean --once"},     {{"--sttae", "x", "status"}, "did you mean --state"},
        {{"help", "recepts", NULL}, "did you mean receipts"}, {{"init", "file2sq", NULL}, "did you mean file2sql"},
    };
    for (size_t i = 0; i < sizeof slips / sizeof *slips; i++) {
        int code;
        char *text = printed(&code, slips[i].words[0], slips[i].words[1], slips[i].words[2]);
        assert_int_equal(code, 2);
        must_say(text, slips[i].suggestion);
        free(text);
    }
}

static void wrong_usage_is_exit_code_2(void **state)
{
    (void)state;
    static const char *const lines[][3] = {
        {NULL, NULL, NULL},       {"load", NULL, NULL},         {"load", "x.csv", NULL},
        {"explain", NULL, NULL},  {"explain", "a", "b"},        {"reset", NULL, NULL},
        {"retry", NULL, NULL},    {"retry", "--all", "x"},      {"run", "--deadline", "5s"},
        {"run", "--watch", "."},  {"run", "--to", "sqlite:x"},  {"status", "--json=1", NULL},
        {"run", "--watch", NULL}, {"completion", "fish", NULL}, {"receipts", "--since", "yesterday-ish"}};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        int code;
        char *text = printed(&code, lines[i][0], lines[i][1], lines[i][2]);
        if (code != 2)
            fail_msg("%s %s: exit %d: %s", lines[i][0], lines[i][1], code, text);
        assert_true(strlen(text) > 0);
        free(text);
    }
}

static void options_are_taken_in_every_spelling(void **state)
{
    (void)state;
    static const char *const spellings[][4] = {{"-c", "f.yaml", "check", NULL},
                                               {"check", "-cf.yaml", NULL, NULL},
                                               {"check", "--config=f.yaml", NULL, NULL},
                                               {"check", "--config", "f.yaml", NULL},
                                               {"--config=f.yaml", "check", NULL, NULL}};
    for (size_t i = 0; i < sizeof spellings / sizeof *spellings; i++) {
        char *argv[6] = {(char *)"chute"};
        int argc = 1;
        for (; spellings[i][argc - 1] != NULL; argc++)
            argv[argc] = (char *)spellings[i][argc - 1];
        struct args args;
        struct err err = {0};
        if (args_parse(app_commands, app_common_options, argc, argv, &args, &err) != ERR_NONE)
            fail_msg("%s", err.text);
        assert_string_equal(args.command->name, "check");
        assert_string_equal(args_value(&args, "config"), "f.yaml");
        assert_int_equal(args.operand_count, 0);
    }
    char *argv[] = {(char *)"chute", (char *)"explain", (char *)"--", (char *)"--odd", NULL};
    struct args args;
    struct err err = {0};
    assert_int_equal(args_parse(app_commands, app_common_options, 4, argv, &args, &err), ERR_NONE);
    assert_int_equal(args.operand_count, 1);
    assert_string_equal(args.operands[0], "--odd");
}

static void a_state_option_of_status_is_a_word_or_a_folder(void **state)
{
    (void)state;
    char *argv[] = {(char *)"chute",
                    (char *)"status",
                    (char *)"--state",
                    (char *)"/x/y",
                    (char *)"--state",
                    (char *)"loaded",
                    NULL};
    struct args args;
    struct err err = {0};
    char path[PATH_MAX];
    assert_int_equal(args_parse(app_commands, app_common_options, 6, argv, &args, &err), ERR_NONE);
    assert_string_equal(find_state(&args, path), "/x/y");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_command_can_be_run_has_a_summary_and_examples),
        cmocka_unit_test(every_command_is_in_help_man_and_completions),
        cmocka_unit_test(every_option_is_in_its_help_the_man_page_and_completions),
        cmocka_unit_test(a_slip_of_the_fingers_gets_a_suggestion_and_exit_code_2),
        cmocka_unit_test(wrong_usage_is_exit_code_2),
        cmocka_unit_test(options_are_taken_in_every_spelling),
        cmocka_unit_test(a_state_option_of_status_is_a_word_or_a_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
