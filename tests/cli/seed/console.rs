//! `vm console` and "Console Flags", at a terminal. What needs a shell in the guest is in
//! `tests/lab/tests/25-console.sh`.

use std::fs::File;
use std::io::Write;
use std::process::Child;
use std::process::Stdio;

use cocoon::sys::tty;

use crate::support::counter::Counter;
use crate::support::hear::Heard;

/// A console at which somebody sits.
struct Terminal {
    child: Child,
    heard: Heard,
    keyboard: File,
}

impl Terminal {
    fn attach(counter: &Counter, flags: &[&str]) -> Self {
        let pty = tty::open_pty().unwrap();
        let peer = || Stdio::from(pty.open_peer().unwrap());
        let mut command = counter.command(&[&["vm", "console"], flags, &["counter"]].concat());
        command.stdin(peer()).stdout(peer()).stderr(peer());
        let child = command.spawn().unwrap();
        // It has the other end, too.
        drop(command);
        let main = File::from(pty.main);
        Self {
            child,
            keyboard: main.try_clone().unwrap(),
            heard: Heard::of(main),
        }
    }

    fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    /// Presses the escape key and a dot, and sees that it lets go.
    fn leaves_by(mut self, escape: u8) {
        self.press(&[escape, b'.']);
        self.heard.until("Disconnected from counter.");
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn root_vm_console_shows_what_was_printed_helps_and_leaves_the_vm_running() {
    let Some(counter) = Counter::run() else {
        return;
    };
    let mut terminal = Terminal::attach(&counter, &[]);
    terminal
        .heard
        .until("Connected to counter (escape sequence: ^].)");
    terminal.heard.until("T00000001");
    terminal.press(b"\x1d?");
    terminal.heard.until("this help");
    terminal.leaves_by(0x1d);
    counter.goes_on();
    counter.ok(&["vm", "stop", "--force", "counter"]);
    let refused = counter.refused(&["vm", "console", "counter"]);
    assert!(refused.contains("is not running"), "{refused}");
}

#[test]
fn root_console_flag_escape_char_is_a_single_character_or_caret_notation_and_else_caret_bracket() {
    let Some(counter) = Counter::run() else {
        return;
    };
    let cases: [(&[&str], &str, u8); 4] = [
        (&[], "^]", 0x1d),
        (&["--escape-char", "^A"], "^A", 0x01),
        (&["--escape-char", "^]"], "^]", 0x1d),
        (&["--escape-char", "~"], "~", b'~'),
    ];
    for (flags, shown, byte) in cases {
        let mut terminal = Terminal::attach(&counter, flags);
        let told = format!("(escape sequence: {shown}.)");
        terminal.heard.until(&told);
        terminal.heard.until("T0000");
        // Any other key is the guest's.
        terminal.press(if byte == b'~' { b"\x1d." } else { b"~." });
        terminal.leaves_by(byte);
    }
    for wrong in ["ab", "^1", "."] {
        let output = counter.try_(&["vm", "console", "--escape-char", wrong, "counter"]);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
    }
}
