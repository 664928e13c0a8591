"""A machine under plain QEMU, driven by its console: what `check` and `check-cloud` have in common."""

import os
import re
import selectors
import socket
import subprocess
import time


class Failed(Exception):
    """A check that did not hold."""


class Guest:
    """A QEMU process, its console as text, and its monitor."""

    def __init__(self, work, machine, kvm=False):
        """Starts `machine`, QEMU's arguments; its console is the character device `console`."""
        self.monitor, self.started, self.text = os.path.join(work, "monitor"), time.monotonic(), ""
        # A second machine in the same folder finds the first one's socket.
        if os.path.exists(self.monitor):
            os.unlink(self.monitor)
        command = ["qemu-system-x86_64", "-accel", "kvm" if kvm else "tcg,thread=multi",
                   "-cpu", "host" if kvm else "max", "-smp", "2", "-m", "1024", "-display", "none", "-no-reboot",
                   "-chardev", "stdio,id=console,signal=off",
                   "-monitor", f"unix:{self.monitor},server=on,wait=off", *machine]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stdout, selectors.EVENT_READ)

    def read(self, deadline):
        """Adds what the console printed to the text; False at its end."""
        if not self.selector.select(max(0.0, deadline - time.monotonic())):
            raise Failed("time is up")
        data = os.read(self.process.stdout.fileno(), 65536)
        self.text += data.decode(errors="replace").replace("\r", "")
        return bool(data)

    def expect(self, pattern, seconds, since=0):
        """Waits until the console has printed `pattern` after position `since`; returns the match."""
        deadline = time.monotonic() + seconds
        while not (match := re.compile(pattern, re.M).search(self.text, since)):
            try:
                alive = self.read(deadline)
            except Failed as failed:
                raise Failed(f"the console did not print {pattern!r} within {seconds} s") from failed
            if not alive:
                raise Failed(f"the machine went off before it printed {pattern!r}")
        return match

    def type(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def run(self, command):
        """Runs a command in the guest's shell and returns its output."""
        start = len(self.text)
        # The quotes keep the echo of what we type from looking like the answer.
        self.type(f"echo BEG''IN; {command}; echo EN''D=$?")
        self.expect(r"^END=\d+$", 60, start)
        return re.search(r"^BEGIN$\n(.*)^END=\d+$", self.text[start:], re.M | re.S).group(1)

    def press_power_button(self):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.monitor)
            connection.sendall(b"system_powerdown\n")
            connection.settimeout(2)
            try:
                while b"system_powerdown" not in connection.recv(4096):
                    pass
                connection.recv(4096)
            except socket.timeout:
                pass

    def wait_off(self, seconds):
        deadline = time.monotonic() + seconds
        while self.read(deadline):
            pass
        return self.process.wait(10)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def passed(text):
    print(f"pass  {text}", flush=True)


def require(condition, text, seen):
    if not condition:
        raise Failed(f"{text}; seen: {seen.strip()!r}")
    passed(text)


def network(nics):
    """QEMU's arguments for NICs with nothing behind them, one for each MAC."""
    arguments = []
    for number, mac in enumerate(nics):
        arguments += ["-netdev", f"user,id=n{number},restrict=on",
                      "-device", f"virtio-net-pci,netdev=n{number},mac={mac},romfile="]
    return arguments


def log_in_as_root(guest, prompt, password):
    """From the login prompt, which the console has printed, to a shell that is easy to read."""
    guest.type("root")
    guest.expect(r"Password: ?", 60, prompt.end())
    guest.type(password)
    guest.expect(r"root@\S+:\S*[#$] ", 120, prompt.end())
    guest.type("export TERM=dumb PAGER=cat; bind 'set enable-bracketed-paste off' 2>/dev/null; PS1='# '")
