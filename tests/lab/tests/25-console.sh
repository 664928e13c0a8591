# The console of a VM: history, escape keys, window size, several viewers.
# images: tiny

# One VM for all of it: each boot costs ten seconds.
lab_console_keeps_history_obeys_escape_keys_and_serves_two_viewers() { # 300 s
    run_tiny talk
    PYTHONPATH=$LAB/guest python3 - "$COCOON_BIN" "$COCOON_ROOT" <<'EOF'
import os
import sys

from console import ESCAPE, Console

program, root = sys.argv[1:]

# The shell's answers, and the escape keys.
console = Console(program, root, "talk")
console.expect("cocoon-tiny ready", 30)
output, code = console.run("echo word; false")
assert (output, code) == ("word\n", 1), (output, code)
start = len(console.text)
console.send(ESCAPE + b"?")
console.expect(r"(?i)help|disconnect|detach|leave", 20, start)
# Doubled, it is sent: the guest's terminal echoes it, then `cat -v` shows it, which thus runs: earlier
# a ^C would be a character like any other.
console.send(b"echo re''ady; cat -v\n")
console.expect("^ready", 20, start)
start = len(console.text)
console.send(ESCAPE + ESCAPE + b"\n")
console.expect(r"\^\]\s+\^\]\s", 20, start)
# What is typed before the shell is back is thrown away with `cat`.
start = len(console.text)
console.send(b"\x03")
console.expect(r"root@\S+:\S*# ", 20, start)
assert console.leave() == 0, console.code

# Two viewers see the history, and what either types.
one, two = Console(program, root, "talk"), Console(program, root, "talk", extra=["--escape-char", "^A"])
for console in one, two:
    console.expect("cocoon-tiny ready", 30)
    console.expect("word", 30)
one.send(b"echo for''both\n")
two.expect("^forboth", 30)
one.expect("^forboth", 30)
two.send(b"\x01.")
assert one.leave() == 0 and two.wait() == 0

# The guest's terminal has the window's size, where the console is more than a serial line.
if os.environ["COCOON_ENGINE"] != "micro":
    console = Console(program, root, "talk", rows=33, columns=101)
    console.expect("cocoon-tiny ready", 30)
    for rows, columns in ((33, 101), (44, 122)):
        console.resize(rows, columns)
        # The kernel tells the guest by an interrupt; the guest's shell may be a little late.
        output, _ = console.run(f"n=0; while [ \"$(stty size)\" != '{rows} {columns}' ] && [ $n -lt 50 ]; do usleep 100000; n=$((n+1)); done; stty size")
        assert output == f"{rows} {columns}\n", output
    assert console.leave() == 0
EOF
}
