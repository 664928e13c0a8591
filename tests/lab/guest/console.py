#!/usr/bin/env python3
"""A person at `cocoon vm console`: a pseudo-terminal, a shell at its other end.

    console.py --program COCOON --root DIR VM COMMAND

Runs COMMAND in the shell on the VM's console, prints its output, exits with its code. Tests that look
closer import Console.
"""

import argparse
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time

ESCAPE = b"\x1d"


class Console:
    """One attached console. `text` is what it has printed, without carriage returns."""

    def __init__(self, program, root, vm, rows=50, columns=200, extra=(), verb=None):
        self.text, self.code = "", None
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execv(program, [program, "--root-dir", root, "--run-dir", root + "/run", "--log-dir", root + "/log",
                               *(verb or ("vm", "console", vm, *extra))])
        self.resize(rows, columns)

    def resize(self, rows, columns):
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, data):
        while data:
            data = data[os.write(self.terminal, data):]

    def read(self, deadline):
        """Adds what has been printed to the text; False at the end."""
        ready, _, _ = select.select([self.terminal], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        try:
            data = os.read(self.terminal, 65536)
        except OSError:
            return False
        self.text += data.decode(errors="replace").replace("\r", "")
        return bool(data)

    def expect(self, pattern, seconds=60, since=0):
        deadline = time.monotonic() + seconds
        while not (match := re.compile(pattern, re.M).search(self.text, since)):
            try:
                if not self.read(deadline):
                    sys.exit(f"the console ended before it printed {pattern!r}: {self.text[-2000:]}")
            except TimeoutError:
                sys.exit(f"the console did not print {pattern!r} in {seconds} s: {self.text[-2000:]}")
        return match

    def run(self, command, seconds=60):
        """Runs a command in the guest's shell; returns output and exit code."""
        # A shell that is still starting throws away what was typed before its prompt.
        self.expect(r"root@\S+:\S*# ", seconds)
        mark, start = f"M{os.getpid()}x{len(self.text)}", len(self.text)
        # The quotes keep the echo of what is typed from looking like the answer.
        self.send(f"echo {mark}''B; {command}; echo {mark}''E=$?\n".encode())
        end = self.expect(rf"{mark}E=(\d+)$", seconds, start)
        begin = self.text.index(f"{mark}B\n", start) + len(mark) + 2
        return self.text[begin:end.start()], int(end.group(1))

    def leave(self, seconds=20):
        """Types the escape sequence that detaches; returns cocoon's exit code."""
        self.send(ESCAPE + b".")
        return self.wait(seconds)

    def wait(self, seconds=20):
        """Waits until cocoon has ended by itself."""
        deadline = time.monotonic() + seconds
        try:
            while self.read(deadline):
                pass
        except TimeoutError:
            os.kill(self.pid, signal.SIGKILL)
            sys.exit(f"cocoon vm console did not end in {seconds} s: {self.text[-2000:]}")
        _, status = os.waitpid(self.pid, 0)
        self.code = os.waitstatus_to_exitcode(status)
        return self.code


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("vm")
    parser.add_argument("command")
    arguments = parser.parse_args()
    console = Console(arguments.program, arguments.root, arguments.vm)
    # What is typed before the terminal is raw may be thrown away; the history comes after that.
    console.expect(r"\S", 60)
    output, code = console.run(arguments.command, 120)
    console.leave()
    sys.stdout.write(output)
    sys.exit(code)


if __name__ == "__main__":
    main()
