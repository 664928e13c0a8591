use std::io::{Read, Write};
use std::thread::{Scope, ScopedJoinHandle};

use rustix::termios::LocalModes;

use super::*;
use crate::console::fixture::{Console, End, pattern, signals_alone};
use crate::console::socket::connect;
use crate::sys::tty::WindowSize;

type Ending = Result<RelayEnd, RelayError>;

fn at_terminal(terminal: &OwnedFd) -> Session<'_> {
    Session {
        input: terminal.as_fd(),
        output: terminal.as_fd(),
        escape: Some(EscapeByte::default()),
        history: true,
        linger: None,
        signals: None,
    }
}

/// Relays on a thread, as the CLI does on its main one.
fn start<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    console: &'env Console,
    session: &'env Session<'env>,
) -> ScopedJoinHandle<'scope, Ending> {
    let viewer = connect(&console.socket).unwrap();
    scope.spawn(move || relay(viewer, session))
}

fn echoes(terminal: &OwnedFd) -> bool {
    let settings = rustix::termios::tcgetattr(terminal).unwrap();
    settings.local_modes.contains(LocalModes::ECHO)
}

#[test]
fn a_user_types_reads_asks_for_help_and_leaves() {
    let (console, guest) = Console::with_guest();
    let (user, terminal) = End::new_pty();
    let session = at_terminal(&terminal);
    std::thread::scope(|scope| {
        let relay = start(scope, &console, &session);
        guest.write(b"login: ");
        assert_eq!(user.read(7), b"login: ");
        assert!(!echoes(&terminal));
        user.write(b"root\r\x03\x1d\x1d");
        assert_eq!(guest.read(7), b"root\r\x03\x1d");
        user.write(b"\x1d?");
        let shown = user.read_until("send ^] to the VM\r\n");
        assert!(shown.contains("^].  leave"), "{shown}");
        user.write(b"ls\x1d.never");
        assert_eq!(relay.join().unwrap().unwrap(), RelayEnd::Detached);
        assert_eq!(guest.read(2), b"ls");
    });
    assert!(echoes(&terminal));
}

#[test]
fn the_window_size_is_sent_at_the_start_and_with_each_change() {
    let _alone = signals_alone();
    let signals = Signals::catch().unwrap();
    let (console, guest) = Console::with_guest();
    let (user, terminal) = End::new_pty();
    let mut session = at_terminal(&terminal);
    session.signals = Some(&signals);
    std::thread::scope(|scope| {
        let first = WindowSize { rows: 20, cols: 70 };
        tty::set_window_size(&user.0, first).unwrap();
        let relay = start(scope, &console, &session);
        // What is typed comes after the size.
        user.write(b"a");
        guest.read(1);
        assert_eq!(tty::window_size(&guest.0).unwrap(), first);

        let second = WindowSize {
            rows: 60,
            cols: 200,
        };
        tty::set_window_size(&user.0, second).unwrap();
        signal_hook::low_level::raise(signal_hook::consts::SIGWINCH).unwrap();
        user.write(b"b");
        guest.read(1);
        assert_eq!(tty::window_size(&guest.0).unwrap(), second);
        user.write(b"\x1d.");
        assert_eq!(relay.join().unwrap().unwrap(), RelayEnd::Detached);
    });
}

#[test]
fn a_signal_ends_the_relay_of_a_screen_that_is_stuck_and_restores_the_terminal() {
    let _alone = signals_alone();
    let signals = Signals::catch().unwrap();
    let (console, guest) = Console::with_guest();
    let (_user, terminal) = End::new_pty();
    let mut session = at_terminal(&terminal);
    session.signals = Some(&signals);
    let (mut watcher, _) = console.attach();
    std::thread::scope(|scope| {
        let relay = start(scope, &console, &session);
        guest.write(&pattern(300_000));
        watcher.output(300_000);
        signal_hook::low_level::raise(signal_hook::consts::SIGTERM).unwrap();
        assert_eq!(relay.join().unwrap().unwrap(), RelayEnd::Interrupted);
    });
    assert!(echoes(&terminal));
}

#[test]
fn the_user_can_leave_although_the_screen_is_stuck() {
    let (console, guest) = Console::with_guest();
    let (user, terminal) = End::new_pty();
    let session = at_terminal(&terminal);
    let (mut watcher, _) = console.attach();
    std::thread::scope(|scope| {
        let relay = start(scope, &console, &session);
        // The relay is at work before the keys come, else the terminal's own echo takes them.
        guest.write(b"ready");
        user.read(5);
        guest.write(&pattern(300_000));
        watcher.output(5 + 300_000);
        user.write(b"\x1d.");
        assert_eq!(relay.join().unwrap().unwrap(), RelayEnd::Detached);
    });
}

#[test]
fn the_end_of_the_vm_ends_the_relay_after_its_last_words() {
    let (console, guest) = Console::with_guest();
    let (user, terminal) = End::new_pty();
    let session = at_terminal(&terminal);
    let viewer = connect(&console.socket).unwrap();
    std::thread::scope(|scope| {
        let relay = scope.spawn(|| relay(viewer, &session));
        guest.write(b"boot ");
        assert_eq!(user.read(5), b"boot ");
        guest.write(b"halted");
        console.hub.stop();
        assert_eq!(relay.join().unwrap().unwrap(), RelayEnd::ConsoleClosed);
        assert_eq!(user.read(6), b"halted");
    });
    assert!(echoes(&terminal));
}

#[test]
fn a_users_terminal_that_goes_away_ends_the_relay() {
    let (console, guest) = Console::with_guest();
    let (user, terminal) = End::new_pty();
    let session = at_terminal(&terminal);
    std::thread::scope(|scope| {
        let relay = start(scope, &console, &session);
        user.write(b"x");
        guest.read(1);
        drop(user);
        assert_eq!(relay.join().unwrap().unwrap(), RelayEnd::InputClosed);
    });
}

/// A session whose input is a pipe with `input` in it, and whose output is another pipe.
struct Piped {
    input: OwnedFd,
    output: OwnedFd,
    reader: std::fs::File,
}

impl Piped {
    fn new(input: &[u8]) -> Self {
        let (from, to) = rustix::pipe::pipe().unwrap();
        std::fs::File::from(to).write_all(input).unwrap();
        let (reader, output) = rustix::pipe::pipe().unwrap();
        Self {
            input: from,
            output,
            reader: reader.into(),
        }
    }

    fn session(&self) -> Session<'_> {
        Session {
            input: self.input.as_fd(),
            output: self.output.as_fd(),
            escape: None,
            history: true,
            linger: None,
            signals: None,
        }
    }

    fn shown(mut self) -> Vec<u8> {
        drop(self.output);
        let mut shown = Vec::new();
        self.reader.read_to_end(&mut shown).unwrap();
        shown
    }
}

#[test]
fn piped_input_gets_its_answer_after_it_has_ended() {
    let (console, guest) = Console::with_guest();
    let piped = Piped::new(b"uptime\n\x1d.");
    let session = piped.session();
    let viewer = connect(&console.socket).unwrap();
    std::thread::scope(|scope| {
        let relay = scope.spawn(|| relay(viewer, &session));
        assert_eq!(guest.read(9), b"uptime\n\x1d.");
        guest.write(b"up 3 days");
        console.hub.stop();
        assert_eq!(relay.join().unwrap().unwrap(), RelayEnd::ConsoleClosed);
    });
    assert_eq!(piped.shown(), b"up 3 days");
}

#[test]
fn piped_input_lingers_until_the_guest_is_silent() {
    let (console, guest) = Console::with_guest();
    let piped = Piped::new(b"uptime\n");
    let mut session = piped.session();
    session.linger = Some(Duration::from_millis(200));
    std::thread::scope(|scope| {
        let relay = start(scope, &console, &session);
        assert_eq!(guest.read(7), b"uptime\n");
        guest.write(b"up");
        assert_eq!(relay.join().unwrap().unwrap(), RelayEnd::InputClosed);
    });
}

#[test]
fn an_escape_byte_at_the_end_of_piped_input_is_sent() {
    let (console, guest) = Console::with_guest();
    let piped = Piped::new(b"a\x1d");
    let mut session = piped.session();
    session.escape = Some(EscapeByte::default());
    session.linger = Some(Duration::ZERO);
    std::thread::scope(|scope| {
        let relay = start(scope, &console, &session);
        assert_eq!(guest.read(2), b"a\x1d");
        assert_eq!(relay.join().unwrap().unwrap(), RelayEnd::InputClosed);
    });
}

#[test]
fn without_history_only_what_comes_after_is_shown() {
    for (history, expected) in [(true, &b"old new"[..]), (false, b"new")] {
        let (console, guest) = Console::with_guest();
        let (mut watcher, _) = console.attach();
        guest.write(b"old ");
        watcher.output(4);
        let piped = Piped::new(b"x");
        let mut session = piped.session();
        session.history = history;
        let viewer = connect(&console.socket).unwrap();
        std::thread::scope(|scope| {
            let relay = scope.spawn(|| relay(viewer, &session));
            guest.read(1);
            guest.write(b"new");
            console.hub.stop();
            relay.join().unwrap().unwrap();
        });
        assert_eq!(piped.shown(), expected);
    }
}

/// Relays with a hub that says `bytes` and is gone.
fn relay_with(bytes: &[u8]) -> (Ending, Vec<u8>) {
    let piped = Piped::new(b"ignored");
    let (viewer, mut hub) = UnixStream::pair().unwrap();
    hub.write_all(bytes).unwrap();
    drop(hub);
    let end = relay(viewer, &piped.session());
    (end, piped.shown())
}

#[test]
fn what_a_hub_says_at_its_end_is_told() {
    let said = protocol::output_frames(b"said");
    let slow = protocol::closing_frame(Closing::TooSlow);
    let (end, shown) = relay_with(&[&said[..], &slow].concat());
    assert!(
        matches!(end, Err(RelayError::LetGo(Closing::TooSlow))),
        "{end:?}"
    );
    assert_eq!(shown, b"said");

    let (end, shown) = relay_with(&said);
    assert!(matches!(end, Ok(RelayEnd::ConsoleClosed)), "{end:?}");
    assert_eq!(shown, b"said");

    let (end, shown) = relay_with(&[&said[..], b"\x7fgarbage"].concat());
    assert!(matches!(end, Err(RelayError::Protocol(_))), "{end:?}");
    assert_eq!(shown, b"said");
}

#[test]
fn a_closed_output_is_an_error_and_not_an_endless_loop() {
    let (console, guest) = Console::with_guest();
    let piped = Piped::new(b"");
    let (reader, output) = rustix::pipe::pipe().unwrap();
    drop(reader);
    let mut session = piped.session();
    session.output = output.as_fd();
    std::thread::scope(|scope| {
        let relay = start(scope, &console, &session);
        guest.write(b"x");
        let end = relay.join().unwrap();
        assert!(matches!(end, Err(RelayError::WriteOutput(_))), "{end:?}");
    });
}
