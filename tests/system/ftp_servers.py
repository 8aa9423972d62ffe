"""FTP and SFTP servers as the tests use them: loopback, free port, a folder of their own, ended with the test.

vsftpd takes anonymous logins; proftpd a user with a password, plain, over TLS and by SFTP (mod_sftp); OpenSSH a user with a
key. All of them serve `root`. Their Debian packages of FTP exclude each other: tests/run unpacks proftpd below .cache.
"""
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
PROFTPD = TOP / ".cache/proftpd"
PATIENCE = 30
USER, PASSWORD = "reader", "s3cret-Pass'word"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """One server program. `root` is what it serves; made below its own folder if none is given."""

    scheme = "ftp"

    def __init__(self, root=None, port=None):
        self.folder = Path(tempfile.mkdtemp(prefix="chute-ftp-"))
        self.folder.chmod(0o755)
        self.root = Path(root) if root is not None else self.folder / "root"
        self.root.mkdir(exist_ok=True)
        self.port = port or free_port()
        self.process = None
        self.log = self.folder / "log"

    def command(self):
        raise NotImplementedError

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + PATIENCE
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5) as s:
                    if self.is_silent or s.recv(16):
                        return self
            except OSError:
                pass
            assert self.process.poll() is None and time.monotonic() < end, "did not start: " + self.log.read_text(errors="replace")
            time.sleep(0.05)

    is_silent = False  # says nothing before the client does

    def stop(self):
        if self.process is not None:
            try:
                os.killpg(self.process.pid, 9)  # with what serves a connection
            except ProcessLookupError:
                pass
            self.process.wait()
            self.process = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def url(self):
        return "%s://127.0.0.1:%d/" % (self.scheme, self.port)

    def source(self):
        """Options of a source that reads from here."""
        return {"type": self.scheme, "url": self.url}


class Vsftpd(Server):
    """Anonymous; knows no MLSD."""

    def command(self):
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True)
        conf = self.folder / "vsftpd.conf"
        conf.write_text("\n".join([
            "listen=YES", "listen_address=127.0.0.1", "listen_port=%d" % self.port, "background=NO", "anonymous_enable=YES", "local_enable=NO",
            "anon_root=%s" % self.root, "ftp_username=ftp", "nopriv_user=nobody", "secure_chroot_dir=%s" % empty, "no_anon_password=YES",
            "write_enable=YES", "anon_upload_enable=YES", "anon_mkdir_write_enable=YES", "anon_other_write_enable=YES",
            "allow_writeable_chroot=YES", "seccomp_sandbox=NO", "max_per_ip=0", "max_clients=0", "isolate=NO", "isolate_network=NO",
            "anon_world_readable_only=NO", ""]))
        return ["/usr/sbin/vsftpd", str(conf)]


class Proftpd(Server):
    """USER with PASSWORD. `tls`: None, "explicit", "implicit"; `sftp`: SFTP instead."""

    def __init__(self, root=None, port=None, tls=None, sftp=False, extra=()):
        super().__init__(root, port)
        self.tls, self.sftp, self.extra = tls, sftp, extra
        self.scheme = "sftp" if sftp else "ftps" if tls else "ftp"
        self.is_silent = tls == "implicit"
        self.cert = self.folder / "cert.pem"
        self.key = self.folder / "key.pem"
        self.known_hosts = self.folder / "known_hosts"
        if tls:
            subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(self.key), "-out", str(self.cert), "-days", "2",
                            "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
        if sftp:
            host_key(self.folder / "host", self.known_hosts, self.port)

    def command(self):
        users = self.folder / "users"
        me = pwd.getpwuid(os.getuid())
        crypted = subprocess.run(["openssl", "passwd", "-6", PASSWORD], check=True, capture_output=True, text=True).stdout.strip()
        users.write_text("%s:%s:%d:%d::%s:/bin/sh\n" % (USER, crypted, me.pw_uid, me.pw_gid, self.root))
        users.chmod(0o600)
        modules = PROFTPD / "usr/lib/proftpd"
        lines = ["ModulePath %s" % modules, "ServerType standalone", "DefaultAddress 127.0.0.1", "SocketBindTight on", "Port %d" % self.port,
                 "UseIPv6 off", "User %s" % me.pw_name, "Group %s" % "root", "RequireValidShell off", "AuthOrder mod_auth_file.c",
                 "AuthUserFile %s" % users, "DefaultRoot %s" % self.root, "UseReverseDNS off", "PidFile %s" % (self.folder / "pid"),
                 "ScoreboardFile %s" % (self.folder / "scoreboard"), "DelayEngine off", "WtmpLog off", "TransferLog none", "SystemLog %s" % self.log,
                 "AllowOverwrite on", "AllowRetrieveRestart on", "TimesGMT on", "RootLogin on", "MaxInstances none", "ServerIdent off"]
        if self.tls:
            lines += ["LoadModule mod_tls.c", "TLSEngine on", "TLSRequired on", "TLSRSACertificateFile %s" % self.cert,
                      "TLSRSACertificateKeyFile %s" % self.key, "TLSLog %s" % (self.folder / "tls.log"),
                      "TLSOptions NoSessionReuseRequired%s" % (" UseImplicitSSL" if self.tls == "implicit" else "")]
        if self.sftp:
            lines += ["LoadModule mod_sftp.c", "SFTPEngine on", "SFTPHostKey %s" % (self.folder / "host"), "SFTPAuthMethods password",
                      "SFTPLog %s" % (self.folder / "sftp.log")]
        conf = self.folder / "proftpd.conf"
        conf.write_text("\n".join(lines + list(self.extra)) + "\n")
        return [str(PROFTPD / "usr/sbin/proftpd"), "-n", "-c", str(conf)]

    def source(self):
        options = {"type": self.scheme, "url": self.url, "user": USER, "password": PASSWORD}
        if self.tls:
            options.update(tls=self.tls, ca_file=str(self.cert))
        if self.sftp:
            options["known_hosts"] = str(self.known_hosts)
        return options


def host_key(path, known_hosts, port):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    public = path.with_suffix(".pub").read_text().split()
    known_hosts.write_text("[127.0.0.1]:%d %s %s\n" % (port, public[0], public[1]))


class OpenSSH(Server):
    """The user of this process, with a key."""

    scheme = "sftp"

    def __init__(self, root=None, port=None):
        super().__init__(root, port)
        self.known_hosts = self.folder / "known_hosts"
        self.private_key = self.folder / "id"
        host_key(self.folder / "host", self.known_hosts, self.port)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.private_key)], check=True)
        shutil.copy(self.private_key.with_suffix(".pub"), self.folder / "authorized_keys")

    def command(self):
        if os.getuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        conf = self.folder / "sshd_config"
        conf.write_text("\n".join([
            "ListenAddress 127.0.0.1:%d" % self.port, "HostKey %s" % (self.folder / "host"), "AuthorizedKeysFile %s" % (self.folder / "authorized_keys"),
            "StrictModes no", "PidFile none", "PermitRootLogin prohibit-password", "PasswordAuthentication no", "UsePAM no",
            "Subsystem sftp internal-sftp", "MaxStartups 100", "MaxSessions 100", "LogLevel ERROR", ""]))
        return ["/usr/sbin/sshd", "-D", "-e", "-f", str(conf)]

    @property
    def url(self):
        return "sftp://%s@127.0.0.1:%d%s" % (pwd.getpwuid(os.getuid()).pw_name, self.port, self.root)

    def source(self):
        return {"type": "sftp", "url": self.url, "private_key_file": str(self.private_key), "known_hosts": str(self.known_hosts)}
