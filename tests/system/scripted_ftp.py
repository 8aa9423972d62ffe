"""An FTP server that does what real ones can't be made to do: it cuts connections, lies, is slow, and lacks commands."""
import os
import socket
import socketserver
import threading
import time
from datetime import datetime, timezone


class Script:
    """What to do; changed while it runs. `commands` is what was asked, `transfers` the names that were sent."""

    def __init__(self):
        self.without = set()  # commands answered with 502: MLSD SIZE MDTM REST EPSV
        self.cut_command = None  # (command, how often): the control connection is closed instead of an answer
        self.cut_data = 0  # so many RETRs end half-way
        self.cut_listing = 0  # so many listings end half-way
        self.is_cut_silent = False  # … and are called complete all the same
        self.size_lies = 0  # SIZE says so many bytes more
        self.pause = 0  # seconds between pieces of a file
        self.piece = 65536
        self.refuse_retr = set()  # names that are listed and answered with 550
        self.shift = 0  # seconds that MLSD and MDTM tell later
        self.listing = None  # bytes of every listing
        self.login = ("anonymous", None)
        self.commands = []
        self.transfers = []
        self.sent = 0  # bytes of files

    def takes(self, name):
        """One of `name`, a number of times that is left; counts it."""
        left = getattr(self, name)
        if left > 0:
            setattr(self, name, left - 1)
        return left > 0


class Handler(socketserver.StreamRequestHandler):
    def say(self, text):
        self.wfile.write(text.encode() + b"\r\n")

    def path(self, argument):
        name = argument if argument.startswith("/") else self.cwd.rstrip("/") + "/" + argument
        return os.path.normpath(name)

    def real(self, argument):
        return self.server.root + self.path(argument)

    def handle(self):
        script = self.server.script
        self.cwd, self.rest, self.passive, user = "/", 0, None, ""
        self.say("220 ready")
        while True:
            line = self.rfile.readline()
            if not line:
                return
            command, _, argument = line.decode("utf-8", "surrogateescape").rstrip("\r\n").partition(" ")
            command = command.upper()
            script.commands.append(command)
            if script.cut_command and script.cut_command[0] == command and script.cut_command[1] > 0:
                script.cut_command = (command, script.cut_command[1] - 1)
                return
            if command in script.without:
                self.say("502 not implemented")
            elif command == "USER":
                user = argument
                self.say("331 password")
            elif command == "PASS":
                if script.login[1] is not None and (user, argument) != script.login:
                    self.say("530 no")
                else:
                    self.say("230 in")
            elif not self.do(command, argument):
                return

    def do(self, command, argument):
        script = self.server.script
        if command == "PWD":
            self.say('257 "/"')
        elif command == "CWD":
            if os.path.isdir(self.real(argument)):
                self.cwd = self.path(argument)
                self.say("250 fine")
            else:
                self.say("550 no such folder")
        elif command == "TYPE":
            self.say("200 fine")
        elif command in ("EPSV", "PASV"):
            if self.passive is not None:
                self.passive.close()
            self.passive = socket.create_server(("127.0.0.1", 0))
            self.passive.settimeout(20)
            port = self.passive.getsockname()[1]
            if command == "EPSV":
                self.say("229 go (|||%d|)" % port)
            else:
                self.say("227 go (127,0,0,1,%d,%d)" % (port >> 8, port & 255))
        elif command == "SIZE":
            try:
                self.say("213 %d" % (os.path.getsize(self.real(argument)) + script.size_lies))
            except OSError:
                self.say("550 no such file")
        elif command == "MDTM":
            try:
                self.say("213 " + stamp(os.path.getmtime(self.real(argument)) + script.shift))
            except OSError:
                self.say("550 no such file")
        elif command == "REST":
            self.rest = int(argument)
            self.say("350 from there")
        elif command in ("MLSD", "LIST"):
            self.send_listing(command)
        elif command == "RETR":
            self.send_file(argument)
        elif command == "DELE":
            os.unlink(self.real(argument))
            self.say("250 gone")
        elif command == "MKD":
            try:
                os.mkdir(self.real(argument))
                self.say("257 made")
            except OSError:
                self.say("550 is there")
        elif command == "RNFR":
            self.renamed = self.real(argument)
            self.say("350 to what")
        elif command == "RNTO":
            os.rename(self.renamed, self.real(argument))
            self.say("250 renamed")
        elif command == "QUIT":
            self.say("221 bye")
            return False
        else:
            self.say("502 not implemented")
        return True

    def send(self, data, is_cut, name=None):
        script = self.server.script
        self.say("150 here it comes")
        connection, _ = self.passive.accept()
        self.passive.close()
        self.passive = None
        part = data[:len(data) // 2] if is_cut else data
        try:
            for at in range(0, len(part), script.piece):
                connection.sendall(part[at:at + script.piece])
                if name:
                    script.sent += len(part[at:at + script.piece])
                    time.sleep(script.pause)
        except OSError:
            pass
        connection.close()
        self.say("426 cut" if is_cut and not script.is_cut_silent else "226 sent")

    def send_file(self, argument):
        script = self.server.script
        if os.path.basename(argument) in script.refuse_retr or not os.path.isfile(self.real(argument)):
            self.say("550 no")
            return
        with open(self.real(argument), "rb") as f:
            f.seek(self.rest)
            self.rest = 0
            data = f.read()
        script.transfers.append(self.path(argument))
        self.send(data, script.takes("cut_data"), name=argument)

    def send_listing(self, command):
        script = self.server.script
        lines = []
        for entry in sorted(os.scandir(self.server.root + self.cwd), key=lambda e: e.name):
            st = entry.stat()
            kind = "dir" if entry.is_dir() else "file"
            at = st.st_mtime + script.shift
            if command == "MLSD":
                lines.append("type=%s;size=%d;modify=%s; %s" % (kind, st.st_size, stamp(at), entry.name))
            else:
                lines.append("%srw-r--r-- 1 ftp ftp %d %s %s" % ("d" if kind == "dir" else "-", st.st_size,
                                                                 datetime.fromtimestamp(at, timezone.utc).strftime("%b %d %H:%M"), entry.name))
        data = "".join(line + "\r\n" for line in lines).encode("utf-8", "surrogateescape") if script.listing is None else script.listing
        self.send(data, script.takes("cut_listing"))


def stamp(seconds):
    return datetime.fromtimestamp(int(seconds), timezone.utc).strftime("%Y%m%d%H%M%S")


class ScriptedFtp(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, root):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = str(root)
        self.script = Script()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def handle_error(self, *_):
        pass  # a client that went away

    @property
    def port(self):
        return self.server_address[1]

    def source(self):
        return {"type": "ftp", "url": "ftp://127.0.0.1:%d/" % self.port}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
