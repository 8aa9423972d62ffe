/* commands.c -- the table of commands: parsing, help, manual and completions are made from it. */
#include "app_internal.h"

static const char *const state_words[] = {"seen",   "settling", "queued",      "loading", "retrying",
                                          "loaded", "skipped",  "quarantined", "gone",    NULL};
static const char *const shells[] = {"bash", "zsh", NULL};

const struct arg_option app_common_options[] = {
    {.name = "config",
     .letter = 'c',
     .value = "FILE",
     .complete = ARG_FILE,
     .help = "the configuration; default: ./chute.yaml, then /etc/chute/chute.yaml"},
    {.name = "state",
     .value = "DIR",
     .complete = ARG_FOLDER,
     .help = "the state folder; default: what the configuration says, ./.chute without one"},
    {.name = "help", .letter = 'h', .help = "explain the command"},
    {.name = "version", .help = "print the versions of chute and its libraries"},
    {.name = NULL},
};

static const struct arg_option run_options[] = {
    {.name = "profile",
     .value = "NAME",
     .choices = config_profiles,
     .help = "without a configuration file: the rules of a profile"},
    {.name = "watch",
     .value = "DIR",
     .complete = ARG_FOLDER,
     .help = "without a configuration file: the folder to watch"},
    {.name = "to", .value = "URL", .help = "without a configuration file: the destination, such as sqlite:PATH"},
    {.name = "once", .help = "finish all there is to do now, then exit"},
    {.name = "deadline",
     .value = "DURATION",
     .help = "with --once: end after this long, whatever is left; default 10m"},
    {.name = NULL},
};
static const struct arg_option load_options[] = {
    {.name = "to", .value = "URL", .help = "the destination, such as sqlite:PATH (needed)"},
    {.name = "table",
     .value = "NAME",
     .help = "one table for all the files, their rows are added to it; with a placeholder, as in {stem}, one a file "
             "(the default), which holds what the file holds"},
    {.name = NULL},
};
static const struct arg_option check_options[] = {
    {.name = "connect", .help = "also open every source and destination"},
    {.name = NULL},
};
static const struct arg_option status_options[] = {
    {.name = "json", .help = "as JSON"},
    {.name = "live", .help = "for health checks: exit 0 while the daemon answers and its ledger is writable, else 1"},
    {.name = "state",
     .value = "STATE",
     .choices = state_words,
     .complete = ARG_FOLDER,
     .help =
         "list the files in this state (may be repeated); a value that is none of the nine words is the state folder"},
    {.name = NULL},
};
static const struct arg_option receipts_options[] = {
    {.name = "flow", .value = "FLOW", .help = "only of this flow"},
    {.name = "since", .value = "TIME", .help = "only newer ones: 2026-11-20, 2026-11-20T11:00:00Z, or an age: 2h, 7d"},
    {.name = "json", .help = "as a JSON array with one object a line"},
    {.name = NULL},
};
static const struct arg_option retry_options[] = {
    {.name = "all", .help = "every quarantined file"},
    {.name = "deletes", .help = "let deletes happen that are held because there were suspiciously many"},
    {.name = NULL},
};
static const struct arg_option reset_options[] = {
    {.name = "yes", .help = "really do it; without it, only say what would be done"},
    {.name = NULL},
};
static const struct arg_option help_options[] = {
    {.name = "man", .help = "print the manual page in troff: chute help --man | man -l -"},
    {.name = "markdown", .help = "print the reference of the configuration in Markdown"},
    {.name = NULL},
};

#define EXAMPLES(...)                                                                                                  \
    (const char *const[])                                                                                              \
    {                                                                                                                  \
        __VA_ARGS__, NULL                                                                                              \
    }

const struct arg_command app_commands[] = {
    {.name = "run",
     .operands = "",
     .options = run_options,
     .run = run_run,
     .summary = "run the daemon",
     .text = "Watches the sources of the configuration and loads what arrives. With --watch and --to no configuration "
             "file is "
             "needed; chute then never drops anything, unless --profile says so.\n\n"
             "TERM and INT stop it: what is under way is finished or put down within shutdown_grace; a second signal "
             "ends it at once. "
             "HUP reads the configuration again (an invalid one is refused and the old one goes on) and opens the log "
             "files again. "
             "USR1 logs the state.",
     .examples = EXAMPLES("chute run --watch inbox --to sqlite:warehouse.db", "a folder becomes a database",
                          "chute run --profile file2sql --watch inbox --to sqlite:warehouse.db",
                          "the same as a mirror: what is removed from the folder goes from the database",
                          "chute run -c /etc/chute/chute.yaml", "the daemon, as a service runs it",
                          "chute run --once --deadline 5m", "for cron: load what is there, then exit")},
    {.name = "load",
     .operands = "FILE…",
     .min_operands = 1,
     .max_operands = -1,
     .operand_complete = ARG_FILE,
     .options = load_options,
     .run = run_load,
     .summary = "load these files now",
     .text = "Loads the files, with a progress bar on a terminal, and prints one line for each. The files stay where "
             "they are. "
             "Exits with 1 if one of them could not be loaded.",
     .examples = EXAMPLES("chute load sales.csv --to sqlite:warehouse.db", "into the table sales",
                          "chute load 2024-*.csv.gz --to sqlite:warehouse.db --table sales", "all into one table")},
    {.name = "check",
     .operands = "",
     .options = check_options,
     .run = run_check,
     .summary = "validate the configuration",
     .text = "Reads the configuration and prints every error with its file, line and column. With --connect it also "
             "opens each "
             "source and destination and says how that went. Exits with 78 if the configuration is invalid, with 1 if "
             "something "
             "could not be opened.",
     .examples =
         EXAMPLES("chute check -c chute.yaml", "is it right?", "chute check --connect", "and does everything answer?")},
    {.name = "init",
     .operands = "PROFILE [DIR]",
     .min_operands = 1,
     .max_operands = 2,
     .operand_complete = ARG_FOLDER,
     .operand_choices = config_profiles,
     .run = run_init,
     .summary = "write a commented configuration to start from",
     .text = "Writes chute.yaml into DIR (default: the current folder). A file that exists is never overwritten.",
     .examples = EXAMPLES("chute init file2sql", "a folder mirrored into SQLite", "chute init events",
                          "an inbox of JSON events as tables")},
    {.name = "status",
     .operands = "",
     .options = status_options,
     .run = run_status,
     .summary = "files by state, sources, destinations",
     .text = "Asks the daemon; without one, says what the ledger knows. A file is in one of nine states: seen, "
             "settling, queued, "
             "loading, retrying, loaded, skipped, quarantined, gone.",
     .examples = EXAMPLES("chute status", "how are things?", "chute status --state quarantined",
                          "which files, and why?", "chute status --live", "for HEALTHCHECK")},
    {.name = "receipts",
     .operands = "",
     .options = receipts_options,
     .run = run_receipts,
     .summary = "what was loaded, with all its numbers",
     .text = "parsed = inserted + updated + unchanged + rejected, always.",
     .examples = EXAMPLES("chute receipts --since 1d", "since yesterday", "chute receipts --flow sales --json",
                          "for programs")},
    {.name = "explain",
     .operands = "FILE",
     .min_operands = 1,
     .max_operands = 1,
     .operand_complete = ARG_FILE,
     .run = run_explain,
     .summary = "why a file is not loaded yet, or what became of it",
     .text = "FILE is a path, or one relative to the root of a source.",
     .examples = EXAMPLES("chute explain inbox/sales.csv", "one paragraph about it")},
    {.name = "retry",
     .operands = "FILE… | --all | --deletes",
     .max_operands = -1,
     .operand_complete = ARG_FILE,
     .options = retry_options,
     .run = run_retry,
     .summary = "queue quarantined files again",
     .text = "At once in a running daemon, at the next start without one. Also asks blocked destinations again and "
             "goes on with "
             "flows that reset has paused.",
     .examples = EXAMPLES("chute retry inbox/sales.csv", "this one", "chute retry --all", "everything in quarantine",
                          "chute retry --deletes", "yes, those files were meant to be deleted")},
    {.name = "reset",
     .operands = "FLOW",
     .min_operands = 1,
     .max_operands = 1,
     .options = reset_options,
     .run = run_reset,
     .summary = "drop what a flow created and forget its files",
     .text =
         "Drops only tables that chute made, says which, and pauses the flow until the next start or `chute retry`. "
         "The files themselves stay. Without --yes nothing is done; the exit code is then 2.",
     .examples = EXAMPLES("chute reset sales", "what would go?", "chute reset sales --yes", "begin again")},
    {.name = "pipeline",
     .operands = "NAME",
     .min_operands = 1,
     .max_operands = 1,
     .run = run_pipeline,
     .summary = "run a SQL pipeline now",
     .text = "In the running daemon, or by itself where none runs. Waits for the end, and for a run that is on before "
             "it. Says how many statements ran and how long they took; what failed comes with file, line and "
             "statement, and nothing of it was kept.",
     .examples = EXAMPLES("chute pipeline etl", "now, whatever its schedule says")},
    {.name = "reload",
     .operands = "",
     .run = run_reload,
     .summary = "make the daemon read its configuration again",
     .text = "What the signal HUP does, and it says whether it worked: an invalid configuration is refused and the old "
             "one goes on.",
     .examples = EXAMPLES("chute check && chute reload", "take what I have just edited")},
    {.name = "completion",
     .operands = "bash | zsh",
     .min_operands = 1,
     .max_operands = 1,
     .operand_choices = shells,
     .run = run_completion,
     .summary = "print completions for a shell",
     .text = "",
     .examples = EXAMPLES("source <(chute completion bash)", "in ~/.bashrc", "chute completion zsh > ~/.zfunc/_chute",
                          "a folder in $fpath")},
    {.name = "version",
     .operands = "",
     .run = run_version,
     .summary = "print the versions of chute and its libraries",
     .text = "",
     .examples = EXAMPLES("chute version", "what is in this build?")},
    {.name = "help",
     .operands = "[COMMAND | OPTION]",
     .max_operands = 1,
     .operand_complete = ARG_COMMAND,
     .options = help_options,
     .run = run_help,
     .summary = "explain a command, or a key of the configuration",
     .text = "",
     .examples = EXAMPLES("chute help run", "the command", "chute help debounce", "the key of the configuration",
                          "chute help --man | man -l -", "the manual page")},
    {.name = NULL},
};
