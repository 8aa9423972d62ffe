#include "http_test.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>

/* ---- programs that we start ------------------------------------------------------------------------------------ */

struct program {
    pid_t pid;
    int in, out; /* ours: its standard input stays open, its output tells the port */
};

static char folder[] = "/tmp/chute-tls-XXXXXX";

static void program_start(struct program *p, const char *const *argv)
{
    int in[2], out[2];
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    p->pid = fork();
    assert_true(p->pid >= 0);
    if (p->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* also when a test crashes */
        if (chdir(folder) == 0 && dup2(in[0], 0) == 0 && dup2(out[1], 1) == 1 && dup2(out[1], 2) == 2)
            execvp(argv[0], (char *const *)argv);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    p->in = in[1];
    p->out = out[0];
}

static int program_wait(struct program *p)
{
    int status = -1;
    close(p->in);
    close(p->out);
    assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void program_stop(struct program *p)
{
    kill(p->pid, SIGKILL);
    program_wait(p);
}

/* Its output up to and with END. */
static void program_read_until(struct program *p, const char *end, char *ret, size_t size)
{
    size_t have = 0;
    ret[0] = '\0';
    while (strstr(ret, end) == NULL) {
        struct pollfd poll_fd = {.fd = p->out, .events = POLLIN};
        assert_true(poll(&poll_fd, 1, (int)PATIENCE_MS) > 0);
        ssize_t n = read(p->out, ret + have, size - have - 1);
        if (n <= 0)
            fail_msg("the program ended: %s", ret);
        have += (size_t)n;
        ret[have] = '\0';
    }
}

#define RUN(...)                                                                                                       \
    do {                                                                                                               \
        struct program openssl;                                                                                        \
        char said[4096] = "";                                                                                          \
        program_start(&openssl, (const char *const[]){"openssl", __VA_ARGS__, NULL});                                  \
        while (read(openssl.out, said, sizeof said - 1) > 0)                                                           \
            ;                                                                                                          \
        if (program_wait(&openssl) != 0)                                                                               \
            fail_msg("openssl: %s", said);                                                                             \
    } while (0)

/* ---- certificates ---------------------------------------------------------------------------------------------- */

static const char *in_folder(const char *name)
{
    static char path[4][200];
    static int next;
    char *at = path[next++ % 4];
    snprintf(at, sizeof path[0], "%s/%s", folder, name);
    return at;
}

static void write_file(const char *name, const char *text)
{
    FILE *file = fopen(in_folder(name), "we");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void make_authority(const char *key, const char *certificate, const char *subject)
{
    RUN("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out",
        certificate, "-days", "2", "-subj", subject);
}

static void make_certificate(const char *name, const char *subject, const char *names, const char *days)
{
    char key[50], request[50], certificate[50], extensions[50];
    snprintf(key, sizeof key, "%s.key", name);
    snprintf(request, sizeof request, "%s.csr", name);
    snprintf(certificate, sizeof certificate, "%s.pem", name);
    snprintf(extensions, sizeof extensions, "%s.ext", name);
    write_file(extensions, names);
    RUN("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out",
        request, "-subj", subject);
    RUN("x509", "-req", "-in", request, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", certificate,
        "-days", days, "-extfile", extensions);
}

static int make_all(void **state)
{
    (void)state;
    assert_non_null(mkdtemp(folder));
    make_authority("ca.key", "ca.pem", "/CN=Tester");
    make_authority("other.key", "other.pem", "/CN=Somebody Else");
    make_certificate("good", "/CN=127.0.0.1", "subjectAltName=IP:127.0.0.1\n", "2");
    make_certificate("wronghost", "/CN=127.0.0.1", "subjectAltName=DNS:elsewhere.test\n", "2");
    make_certificate("expired", "/CN=127.0.0.1", "subjectAltName=IP:127.0.0.1\n", "-1");
    write_file("nonsense.pem", "-----BEGIN CERTIFICATE-----\nnonsense\n");
    return 0;
}

static int remove_all(void **state)
{
    char command[300];
    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command) == 0 ? 0 : -1;
}

/* ---- whom we believe ------------------------------------------------------------------------------------------- */

/* `openssl s_server` with the certificate NAME; answers every GET with a page. */
static int tls_start(struct program *p, const char *name, const char *option, const char *value)
{
    char key[50], certificate[50], said[4096];
    int port = 0;
    snprintf(key, sizeof key, "%s.key", name);
    snprintf(certificate, sizeof certificate, "%s.pem", name);
    program_start(p, (const char *const[]){"openssl", "s_server", "-accept", "127.0.0.1:0", "-www", "-key", key,
                                           "-cert", certificate, option, value, NULL});
    program_read_until(p, "ACCEPT 127.0.0.1:", said, sizeof said);
    if (strchr(strstr(said, "ACCEPT 127.0.0.1:"), '\n') == NULL)
        program_read_until(p, "\n", said + strlen(said), sizeof said - strlen(said));
    assert_int_equal(sscanf(strstr(said, "ACCEPT 127.0.0.1:"), "ACCEPT 127.0.0.1:%d", &port), 1);
    return port;
}

static void ask_tls(int port, const struct http_options *options, struct call *ret)
{
    struct fixture f;
    fixture_open(&f, NULL, options);
    call_init(ret, &f, "GET", "/");
    snprintf(ret->url, sizeof ret->url, "https://127.0.0.1:%d/s3cr3t?s3cr3t", port);
    call_run(ret);
    call_free(ret);
    fixture_close(&f);
}

static void a_certificate_is_believed_or_refused(void **state)
{
    static const struct {
        const char *certificate, *ca_file;
        bool insecure, is_believed;
        const char *words;
    } cases[] = {
        {"good", "ca.pem", false, true, NULL},
        {"good", "other.pem", false, false, "certificate"},
        {"good", NULL, false, false, "certificate"}, /* the system's do not know it */
        {"wronghost", "ca.pem", false, false, "127.0.0.1"},
        {"expired", "ca.pem", false, false, "expired"},
        {"good", "other.pem", true, true, NULL},
        {"wronghost", "ca.pem", true, true, NULL},
        {"expired", NULL, true, true, NULL},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct http_options options = {.ca_file = cases[i].ca_file != NULL ? in_folder(cases[i].ca_file) : NULL,
                                             .tls_insecure = cases[i].insecure};
        struct program server;
        struct call call;
        int port = tls_start(&server, cases[i].certificate, NULL, NULL);
        ask_tls(port, &options, &call);
        program_stop(&server);
        if (cases[i].is_believed) {
            assert_answer(&call, 200);
            continue;
        }
        assert_failed(&call, ERR_REMOTE, false, false);
        assert_non_null(strstr(call.answer.err.text, cases[i].words));
        assert_non_null(strstr(call.answer.err.text, "127.0.0.1"));
        assert_null(strstr(call.answer.err.text, "s3cr3t"));
    }
}

static void an_old_tls_is_refused(void **state)
{
    const struct http_options options = {.ca_file = in_folder("ca.pem")};
    struct program server;
    struct call call;
    (void)state;
    int port = tls_start(&server, "good", "-tls1_1", NULL);
    ask_tls(port, &options, &call);
    program_stop(&server);
    assert_int_equal(call.answer.err.code, ERR_REMOTE);
    assert_false(call.answer.maybe_received);
    port = tls_start(&server, "good", "-tls1_2", NULL);
    ask_tls(port, &options, &call);
    program_stop(&server);
    assert_answer(&call, 200);
}

static void a_ca_file_that_is_none_is_the_operators_to_solve(void **state)
{
    const struct http_options options = {.ca_file = in_folder("nonsense.pem")};
    struct program server;
    struct call call;
    (void)state;
    int port = tls_start(&server, "good", NULL, NULL);
    ask_tls(port, &options, &call);
    program_stop(&server);
    assert_failed(&call, ERR_CONFIG, false, false);
    assert_non_null(strstr(call.answer.err.text, "nonsense.pem"));
}

static void script_wants_no_tls(struct connection *c)
{
    if (server_fill(c))
        server_say(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
}

static void a_server_without_tls_is_no_partner(void **state)
{
    const struct http_options options = {.ca_file = in_folder("ca.pem")};
    struct server *server = server_start(script_wants_no_tls);
    struct call call;
    (void)state;
    ask_tls(server->port, &options, &call);
    server_stop(server);
    assert_int_equal(call.answer.err.code, ERR_REMOTE);
    assert_false(call.answer.maybe_received);
}

/* ---- HTTP/2 ---------------------------------------------------------------------------------------------------- */

static bool can_connect(int port)
{
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool can = fd >= 0 && connect(fd, (struct sockaddr *)&at, sizeof at) == 0;
    close(fd);
    return can;
}

/* nghttpd, which sends back what it gets. It can't choose a port itself: try ports that were free a moment ago. */
static int h2_start(struct program *p)
{
    for (int tries = 0; tries < 20; tries++) {
        char port_text[10];
        int port, status;
        close(loopback_listen(&port, 1));
        snprintf(port_text, sizeof port_text, "%d", port);
        program_start(p, (const char *const[]){"nghttpd", "--echo-upload", "-a", "127.0.0.1", "-d", folder, port_text,
                                               "good.key", "good.pem", NULL});
        for (unsigned waited = 0; waited < PATIENCE_MS; waited++) {
            if (can_connect(port))
                return port;
            if (waitpid(p->pid, &status, WNOHANG) == p->pid) {
                if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
                    fail_msg("nghttpd is not installed");
                break;
            }
            usleep(1000);
        }
        close(p->in);
        close(p->out);
    }
    fail_msg("nghttpd does not start");
    return 0;
}

static void call_h2(struct call *call, struct fixture *f, int port, const char *method, const char *path)
{
    call_init(call, f, method, path);
    snprintf(call->url, sizeof call->url, "https://127.0.0.1:%d%s", port, path);
}

static void http_2_is_spoken_where_it_is_offered(void **state)
{
    const struct http_options options = {.ca_file = in_folder("ca.pem")};
    struct program server;
    struct fixture f;
    struct call calls[50];
    (void)state;
    write_file("page", "hello");
    int port = h2_start(&server);
    fixture_open(&f, NULL, &options);
    call_h2(&calls[0], &f, port, "GET", "/page");
    call_run(&calls[0]);
    for (int i = 1; i < 50; i++) {
        static const char *const methods[] = {"HEAD", "GET", "POST"}; /* what is posted is echoed */
        call_h2(&calls[i], &f, port, methods[i % 3], i % 3 == 1 && i % 7 == 0 ? "/none" : "/page");
        call_start(&calls[i]);
    }
    turn_until(&f, &f.done, 50);
    for (int i = 0; i < 50; i++) {
        assert_int_equal(calls[i].answer.err.code, ERR_NONE);
        assert_int_equal(calls[i].answer.version, 20);
        assert_int_equal(calls[i].answer.status, i % 3 == 1 && i % 7 == 0 ? 404 : 200);
        if (i == 0 || (i % 3 == 1 && i % 7 != 0))
            assert_string_equal(calls[i].answer.body, "hello");
        call_free(&calls[i]);
    }
    fixture_close(&f);
    program_stop(&server);
}

static void http_2_bodies_pass_in_both_directions_with_pauses(void **state)
{
    const struct http_options options = {.ca_file = in_folder("ca.pem")};
    struct program server;
    struct fixture f;
    struct call calls[4];
    (void)state;
    int port = h2_start(&server);
    fixture_open(&f, NULL, &options);
    for (int i = 0; i < 4; i++) {
        call_h2(&calls[i], &f, port, "PUT", "/");
        call_stream(&calls[i], 1000000, i % 2 == 0 ? 1000000 : -1);
        calls[i].r.data = call_data;
        calls[i].later_at = 1;
        call_start(&calls[i]);
    }
    for (uint64_t at = 1; at < 1000000; at += 300000) {
        unsigned before[4];
        for (int i = 0; i < 4; i++) {
            before[i] = calls[i].laters;
            calls[i].later_at = at;
            if (at > 1)
                http_resume(calls[i].t);
        }
        /* it says so for what goes out or for what comes back: both pass the same mark */
        for (int i = 0; i < 4; i++)
            turn_until(&f, &calls[i].laters, at > 1 ? before[i] + 1 : 1);
        turn_for(&f, 10);
    }
    for (int i = 0; i < 4; i++) {
        calls[i].later_at = 0;
        http_resume(calls[i].t);
    }
    turn_until(&f, &f.done, 4);
    for (int i = 0; i < 4; i++) {
        assert_answer(&calls[i], 200);
        assert_int_equal(calls[i].answer.version, 20);
        assert_int_equal(calls[i].answer.sent_bytes, 1000000);
        assert_int_equal(calls[i].got, 1000000);
        assert_int_equal(calls[i].sum, pattern_sum(1000000));
        call_free(&calls[i]);
    }
    fixture_close(&f);
    program_stop(&server);
}

static void an_http_2_upload_keeps_to_its_limit(void **state)
{
    struct rate rate;
    const struct http_options options = {.ca_file = in_folder("ca.pem"), .upload_rate = &rate};
    struct program server;
    struct fixture f;
    struct call calls[3];
    (void)state;
    rate_init(&rate, 1500000);
    int port = h2_start(&server);
    fixture_open(&f, NULL, &options);
    uint64_t began_ns = uv_hrtime();
    for (int i = 0; i < 3; i++) {
        call_h2(&calls[i], &f, port, "PUT", "/");
        call_stream(&calls[i], 500000, 500000);
        call_start(&calls[i]);
    }
    turn_until(&f, &f.done, 3);
    assert_true((uv_hrtime() - began_ns) / 1000000 >= 900);
    for (int i = 0; i < 3; i++) {
        assert_answer(&calls[i], 200);
        assert_int_equal(calls[i].answer.body_size, 500000);
        call_free(&calls[i]);
    }
    fixture_close(&f);
    program_stop(&server);
}

static void an_http_2_request_ends_without_its_neighbours(void **state)
{
    const struct http_options options = {.ca_file = in_folder("ca.pem")};
    struct program server;
    struct fixture f;
    struct call calls[6];
    (void)state;
    write_file("page", "hello");
    int port = h2_start(&server);
    fixture_open(&f, NULL, &options);
    call_h2(&calls[0], &f, port, "GET", "/page");
    call_run(&calls[0]);
    for (int i = 1; i < 6; i++) { /* all paused in the middle */
        call_h2(&calls[i], &f, port, "PUT", "/");
        call_stream(&calls[i], 400000, 400000);
        calls[i].later_at = 200000;
        call_start(&calls[i]);
    }
    for (int i = 1; i < 6; i++)
        turn_until(&f, &calls[i].laters, 1);
    http_cancel(calls[1].t);
    http_cancel(calls[3].t);
    turn_until(&f, &f.done, 3);
    for (int i = 2; i < 5; i += 2) {
        calls[i].later_at = 0;
        http_resume(calls[i].t);
    }
    turn_until(&f, &f.done, 5);
    fixture_close(&f);
    for (int i = 0; i < 6; i++) {
        if (i % 2 == 1)
            assert_failed(&calls[i], ERR_STOPPED, false, false);
        else
            assert_answer(&calls[i], 200);
        call_free(&calls[i]);
    }
    program_stop(&server);
}

static void an_http_2_server_that_dies_is_an_error_for_all(void **state)
{
    const struct http_options options = {.ca_file = in_folder("ca.pem")};
    struct program server;
    struct fixture f;
    struct call calls[6];
    (void)state;
    int port = h2_start(&server);
    fixture_open(&f, NULL, &options);
    for (int i = 0; i < 6; i++) {
        call_h2(&calls[i], &f, port, "PUT", "/");
        call_stream(&calls[i], 400000, 400000);
        calls[i].later_at = 200000;
        call_start(&calls[i]);
    }
    for (int i = 0; i < 6; i++)
        turn_until(&f, &calls[i].laters, 1);
    program_stop(&server);
    for (int i = 0; i < 6; i++) {
        calls[i].later_at = 0;
        http_resume(calls[i].t);
    }
    turn_until(&f, &f.done, 6);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(calls[i].answer.err.code, ERR_REMOTE);
        assert_true(calls[i].answer.err.retryable);
        call_free(&calls[i]);
    }
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_certificate_is_believed_or_refused),
        cmocka_unit_test(an_old_tls_is_refused),
        cmocka_unit_test(a_ca_file_that_is_none_is_the_operators_to_solve),
        cmocka_unit_test(a_server_without_tls_is_no_partner),
        cmocka_unit_test(http_2_is_spoken_where_it_is_offered),
        cmocka_unit_test(http_2_bodies_pass_in_both_directions_with_pauses),
        cmocka_unit_test(an_http_2_upload_keeps_to_its_limit),
        cmocka_unit_test(an_http_2_request_ends_without_its_neighbours),
        cmocka_unit_test(an_http_2_server_that_dies_is_an_error_for_all),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, make_all, remove_all);
}
