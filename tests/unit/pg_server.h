/*
 * pg_server.h -- a PostgreSQL of the test's own: a folder, a port, gone with the test.
 *
 * pg_server_start() makes a cluster and runs it, as the user postgres if we are root, which the server refuses to be.
 * It listens on 127.0.0.1 and on a socket in its folder. Over the socket everybody is believed; over TCP the password
 * of postgres is PG_SERVER_PASSWORD, asked for by SCRAM.
 */
#ifndef CHUTE_PG_SERVER_H
#define CHUTE_PG_SERVER_H

#include <setjmp.h>
#include <stdarg.h>
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <pwd.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#define PG_SERVER_PASSWORD "s3cr3t pass'w\\rd"
#define PG_SERVER_PATIENCE_S 60

struct pg_server {
    char folder[64];
    char url[200]; /* over the socket */
    char tcp[200]; /* over TCP, without the password */
    int port;
    pid_t pid; /* 0: it does not run */
};

static inline const char *pg_server_binary(const char *name, char *ret, size_t size)
{
    const char *folder = getenv("CHUTE_TEST_POSTGRES");
    snprintf(ret, size, "%s/%s", folder != NULL ? folder : "/usr/lib/postgresql/15/bin", name);
    if (access(ret, X_OK) != 0)
        fail_msg("%s is not installed (Debian: postgresql-15); or set CHUTE_TEST_POSTGRES", ret);
    return ret;
}

static inline const struct passwd *pg_server_user(void)
{
    const struct passwd *user = getpwnam("postgres");
    return user != NULL ? user : getpwnam("nobody");
}

/* Run ARGS as the server's user; its words go to FOLDER/log. It ends when we do. */
static inline pid_t pg_server_spawn(const struct pg_server *s, const char *const *args)
{
    const struct passwd *user = pg_server_user();
    char log[100];
    snprintf(log, sizeof log, "%s/log", s->folder);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0)
        return pid;
    int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0644);
    dup2(fd, 1);
    dup2(fd, 2);
    if (geteuid() == 0 && (setgroups(0, NULL) != 0 || setgid(user->pw_gid) != 0 || setuid(user->pw_uid) != 0))
        _exit(126);
    prctl(PR_SET_PDEATHSIG, SIGINT); /* after setuid(), which forgets it */
    setsid();
    unsetenv("LD_PRELOAD");
    if (chdir("/") == 0)
        execvp(args[0], (char *const *)args);
    _exit(127);
}

static inline void pg_server_write(const struct pg_server *s, const char *name, const char *mode, const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/data/%s", s->folder, name);
    FILE *f = fopen(path, mode);
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static inline int pg_server_free_port(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &size), 0);
    close(fd);
    return ntohs(at.sin_port);
}

/* Its postmaster.pid says "ready"; it has ended: -1. */
static inline int pg_server_is_ready(const struct pg_server *s)
{
    char path[128], text[1024] = "";
    int status;
    if (waitpid(s->pid, &status, WNOHANG) == s->pid)
        return -1;
    snprintf(path, sizeof path, "%s/data/postmaster.pid", s->folder);
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    return n > 0 && atoi(text) == s->pid && strstr(text, "\nready") != NULL;
}

static inline void pg_server_print_log(const struct pg_server *s)
{
    static char last[50][1000];
    char path[100];
    unsigned lines = 0;
    snprintf(path, sizeof path, "%s/log", s->folder);
    FILE *f = fopen(path, "r");
    while (f != NULL && fgets(last[lines % 50], sizeof last[0], f) != NULL)
        lines++;
    for (unsigned i = lines > 50 ? lines - 50 : 0; i < lines; i++)
        fprintf(stderr, "server: %s", last[i % 50]);
    if (f != NULL)
        fclose(f);
}

/* Run the cluster that is there, on the port it had. */
static inline void pg_server_run(struct pg_server *s)
{
    char postgres[200], data[100], port[12];
    snprintf(data, sizeof data, "%s/data", s->folder);
    snprintf(port, sizeof port, "%d", s->port);
    pg_server_binary("postgres", postgres, sizeof postgres);
    const char *args[] = {postgres, "-D", data, "-p", port, "-k", s->folder, "-h", "127.0.0.1", NULL};
    for (int tries = 0; tries < 20; tries++) {
        int ready = 0;
        s->pid = pg_server_spawn(s, args);
        for (int i = 0; i < PG_SERVER_PATIENCE_S * 100 && ready == 0; i++) {
            usleep(10000);
            ready = pg_server_is_ready(s);
        }
        if (ready > 0)
            return;
        if (ready == 0)
            break;
        usleep(200000); /* what was killed has not let go of its memory */
    }
    pg_server_print_log(s);
    fail_msg("PostgreSQL does not start");
}

static inline void pg_server_name(struct pg_server *s)
{
    s->port = pg_server_free_port();
    snprintf(s->url, sizeof s->url, "postgresql:///postgres?host=%s&port=%d&user=postgres", s->folder, s->port);
    snprintf(s->tcp, sizeof s->tcp, "postgresql://postgres@127.0.0.1:%d/postgres", s->port);
}

/* Run ARGS as the server's user, to its end. */
static inline void pg_server_do(const struct pg_server *s, const char *const *args)
{
    int status;
    assert_true(waitpid(pg_server_spawn(s, args), &status, 0) > 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        pg_server_print_log(s);
        fail_msg("%s failed", args[0]);
    }
}

/* A key and a certificate of the CA for NAME, in FOLDER/NAME.key and .pem; the CA is in FOLDER/ca.pem. */
static inline void pg_server_certify(const struct pg_server *s, const char *name, const char *extension)
{
    char key[128], request[128], pem[128], ext[128], ca[128], ca_key[128], subject[64];
    snprintf(key, sizeof key, "%s/%s.key", s->folder, name);
    snprintf(request, sizeof request, "%s/%s.csr", s->folder, name);
    snprintf(pem, sizeof pem, "%s/%s.pem", s->folder, name);
    snprintf(ext, sizeof ext, "%s/%s.ext", s->folder, name);
    snprintf(ca, sizeof ca, "%s/ca.pem", s->folder);
    snprintf(ca_key, sizeof ca_key, "%s/ca.key", s->folder);
    snprintf(subject, sizeof subject, "/CN=%s", name);
    FILE *f = fopen(ext, "w");
    assert_non_null(f);
    fprintf(f, "%s\n", extension);
    fclose(f);
    const char *ask[] = {"openssl", "req",   "-newkey", "ec",      "-pkeyopt", "ec_paramgen_curve:P-256",
                         "-nodes",  "-subj", subject,   "-keyout", key,        "-out",
                         request,   NULL};
    const char *sign[] = {"openssl",         "x509",  "-req", "-in",      request, "-CA",  ca,  "-CAkey", ca_key,
                          "-CAcreateserial", "-days", "2",    "-extfile", ext,     "-out", pem, NULL};
    pg_server_do(s, ask);
    pg_server_do(s, sign);
}

/* Between _make and _run: the server speaks TLS, for 127.0.0.1 and localhost. */
static inline void pg_server_tls(const struct pg_server *s)
{
    char ca[128], ca_key[128], text[600];
    snprintf(ca, sizeof ca, "%s/ca.pem", s->folder);
    snprintf(ca_key, sizeof ca_key, "%s/ca.key", s->folder);
    const char *args[] = {"openssl",
                          "req",
                          "-x509",
                          "-newkey",
                          "ec",
                          "-pkeyopt",
                          "ec_paramgen_curve:P-256",
                          "-nodes",
                          "-days",
                          "2",
                          "-subj",
                          "/CN=chute test CA",
                          "-keyout",
                          ca_key,
                          "-out",
                          ca,
                          NULL};
    pg_server_do(s, args);
    pg_server_certify(s, "server", "subjectAltName=IP:127.0.0.1,DNS:localhost");
    snprintf(text, sizeof text,
             "ssl = on\nssl_ca_file = '%s'\nssl_cert_file = '%s/server.pem'\nssl_key_file = '%s/server.key'\n", ca,
             s->folder, s->folder);
    pg_server_write(s, "postgresql.conf", "a", text);
}

static inline void pg_server_init(struct pg_server *s)
{
    char initdb[200], data[100], pwfile[100];
    snprintf(data, sizeof data, "%s/data", s->folder);
    snprintf(pwfile, sizeof pwfile, "--pwfile=%s/password", s->folder);
    pg_server_binary("initdb", initdb, sizeof initdb);
    FILE *f = fopen(pwfile + 9, "w");
    assert_non_null(f);
    fputs(PG_SERVER_PASSWORD, f);
    fclose(f);
    const char *args[] = {initdb,
                          "-D",
                          data,
                          "-U",
                          "postgres",
                          "--auth-local=trust",
                          "--auth-host=scram-sha-256",
                          pwfile,
                          "--no-sync",
                          "--no-instructions",
                          "-E",
                          "UTF8",
                          "--locale=C",
                          "--wal-segsize=1",
                          NULL};
    pg_server_do(s, args);
    pg_server_write(
        s, "postgresql.conf", "a",
        "fsync = off\nfull_page_writes = off\nshared_buffers = 16MB\nmax_connections = 30\ntimezone = UTC\n"
        "autovacuum = off\nlog_statement = none\nlc_messages = C\nmin_wal_size = 8MB\nmax_wal_size = 512MB\n");
}

/* What is written into postgresql.conf and pg_hba.conf between _make and _run holds. */
static inline void pg_server_make(struct pg_server *s)
{
    memset(s, 0, sizeof *s);
    snprintf(s->folder, sizeof s->folder, "/tmp/chute-pg-XXXXXX");
    assert_non_null(mkdtemp(s->folder));
    assert_int_equal(chmod(s->folder, 0755), 0);
    if (geteuid() == 0)
        assert_int_equal(chown(s->folder, pg_server_user()->pw_uid, pg_server_user()->pw_gid), 0);
    pg_server_init(s);
    pg_server_name(s);
}

static inline void pg_server_start(struct pg_server *s)
{
    pg_server_make(s);
    pg_server_run(s);
}

/* SIGINT: fast, SIGQUIT: immediate, SIGKILL: gone, and its sessions soon. Returns when the process has ended. */
static inline void pg_server_end(struct pg_server *s, int signal_number)
{
    int status;
    if (s->pid == 0)
        return;
    kill(s->pid, signal_number);
    for (int i = 0; waitpid(s->pid, &status, WNOHANG) == 0; i++) {
        if (i == PG_SERVER_PATIENCE_S * 200) {
            kill(s->pid, SIGQUIT);
            pg_server_print_log(s);
            fail_msg("the server does not end");
        }
        usleep(5000);
    }
    s->pid = 0;
}

static inline void pg_server_remove(const char *folder)
{
    DIR *d = opendir(folder);
    if (d == NULL)
        return;
    for (struct dirent *entry; (entry = readdir(d)) != NULL;) {
        char path[4096];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (snprintf(path, sizeof path, "%s/%s", folder, entry->d_name) >= (int)sizeof path)
            continue;
        if (entry->d_type == DT_DIR)
            pg_server_remove(path);
        else
            unlink(path);
    }
    closedir(d);
    rmdir(folder);
}

static inline void pg_server_stop(struct pg_server *s)
{
    pg_server_end(s, SIGQUIT);
    if (s->folder[0] != '\0')
        pg_server_remove(s->folder);
    s->folder[0] = '\0';
}

#endif
