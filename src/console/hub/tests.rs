use std::path::Path;
use std::time::Instant;

use super::*;
use crate::console::fixture::{Console, End, TestViewer, pattern};
use crate::console::log;
use crate::console::protocol::{Closing, FromHub, input_frames, resize_frame};
use crate::console::socket::connect;
use crate::console::switch::{END_MAX, VIEWERS_MAX};
use crate::sys::tty::{self, WindowSize};

#[test]
fn two_viewers_see_the_same_bytes_and_so_does_the_log() {
    let (console, guest) = Console::with_guest();
    let (mut one, _) = console.attach();
    let (mut two, _) = console.attach();
    assert_eq!(console.hub.viewers(), 2);
    let bytes = pattern(70_000);
    guest.write(&bytes);
    assert_eq!(one.output(bytes.len()), bytes);
    assert_eq!(two.output(bytes.len()), bytes);
    let logged = console.log.clone();
    console.hub.stop();
    assert_eq!(log::tail(&logged, usize::MAX).unwrap(), bytes);
}

#[test]
fn a_late_viewer_is_shown_what_it_missed_once() {
    let (console, guest) = Console::with_guest();
    let (mut early, history) = console.attach();
    assert_eq!(history, b"");
    guest.write(b"login: ");
    early.output(7);
    let (mut late, history) = console.attach();
    assert_eq!(history, b"login: ");
    guest.write(b"root");
    assert_eq!(late.output(4), b"root");
}

#[test]
fn a_long_history_is_shown_from_its_end_and_the_log_has_more() {
    let (console, guest) = Console::with_guest();
    let (mut early, _) = console.attach();
    let lines: Vec<u8> = (0..30_000)
        .flat_map(|i| format!("line {i:05}\r\n").into_bytes())
        .collect();
    guest.write(&lines);
    early.output(lines.len());
    let (_late, history) = console.attach();
    assert!(history.len() > 60_000 && history.starts_with(b"line "));
    assert!(lines.ends_with(&history));
    assert_eq!(log::tail(&console.log, lines.len()).unwrap(), lines);
}

#[test]
fn a_viewer_that_does_not_read_is_let_go_while_the_others_see_ten_megabytes() {
    let (console, guest) = Console::with_guest();
    let (mut fast, _) = console.attach();
    let (mut slow, _) = console.attach();
    let mut flood = |parts: usize, enough: &dyn Fn() -> bool| {
        // In parts, each awaited: the fast viewer must not lag because the machine is busy.
        let part = pattern(256 << 10);
        let sent = (0..parts).take_while(|_| !enough()).map(|_| {
            guest.write(&part);
            assert_eq!(fast.output(part.len()), part);
        });
        sent.count()
    };
    let sent = flood(40, &|| console.hub.viewers() == 1);
    assert!(sent < 40, "it was never let go of");
    let mut seen = 0;
    let end = loop {
        match slow.frame() {
            Some(FromHub::Output(bytes)) => seen += bytes.len(),
            other => break other,
        }
    };
    assert_eq!(end, Some(FromHub::Closing(Closing::TooSlow)));
    assert!(seen < 2 << 20, "{seen} bytes were kept for it");
    assert_eq!(slow.frame(), None);
    flood(40 - sent, &|| false);
    guest.write(b"on");
    assert_eq!(fast.output(2), b"on");
    assert_eq!(console.hub.viewers(), 1);
    let kept = log::tail(&console.log, usize::MAX).unwrap().len();
    assert!((1 << 20..=2 << 20).contains(&kept), "{kept}");
}

#[test]
fn input_reaches_the_guest_byte_for_byte_though_its_viewer_has_left() {
    let (console, guest) = Console::with_guest();
    let (mut viewer, _) = console.attach();
    // More than a terminal, the hub's queue and the socket hold: the viewer waits for the guest,
    // and the end of it is still in the socket when the viewer is dropped.
    let bytes = pattern(400_000);
    let frames = input_frames(&bytes);
    let sender = std::thread::spawn(move || viewer.send(&frames));
    assert_eq!(guest.read(bytes.len()), bytes);
    sender.join().unwrap();
}

#[test]
fn input_of_two_viewers_is_mixed_by_whole_frames() {
    let (console, guest) = Console::with_guest();
    let senders = [*b"aaaaaaa\n", *b"bbbbbbb\n"].map(|line| {
        let (mut viewer, _) = console.attach();
        std::thread::spawn(move || {
            for _ in 0..2000 {
                viewer.send(&input_frames(&line));
            }
            viewer
        })
    });
    let got = guest.read(4000 * 8);
    let whole = |line: &[u8]| line == b"aaaaaaa\n" || line == b"bbbbbbb\n";
    assert!(got.chunks(8).all(whole));
    for sender in senders {
        sender.join().unwrap();
    }
}

#[test]
fn the_last_window_size_wins() {
    let (console, guest) = Console::with_guest();
    let (mut viewer, _) = console.attach();
    let size = WindowSize {
        rows: 41,
        cols: 133,
    };
    viewer.send(&resize_frame(WindowSize { rows: 1, cols: 1 }));
    viewer.send(&resize_frame(size));
    viewer.send(&input_frames(b"x"));
    guest.read(1);
    assert_eq!(tty::window_size(&guest.0).unwrap(), size);
}

#[test]
fn a_stop_takes_the_last_words_tells_the_viewers_and_removes_the_socket() {
    let (console, guest) = Console::with_guest();
    let (mut viewer, _) = console.attach();
    guest.write(b"Power down");
    let (socket, log_path) = (console.socket.clone(), console.log.clone());
    console.hub.stop();
    assert_eq!(viewer.output(10), b"Power down");
    assert_eq!(viewer.frame(), Some(FromHub::Closing(Closing::Stopped)));
    assert_eq!(viewer.frame(), None);
    assert!(!socket.exists());
    assert_eq!(log::tail(&log_path, 100).unwrap(), b"Power down");
}

#[test]
fn a_viewer_that_does_not_read_cannot_hold_up_the_stop() {
    let (console, guest) = Console::with_guest();
    let (_stuck, _) = console.attach();
    let (mut fast, _) = console.attach();
    let bytes = pattern(800_000);
    guest.write(&bytes);
    fast.output(bytes.len());
    let begin = Instant::now();
    console.hub.stop();
    // END_MAX and what a busy machine adds; without the bound this would never end.
    assert!(begin.elapsed() < 20 * END_MAX);
}

#[test]
fn a_viewer_that_breaks_the_format_is_let_go_alone() {
    let (console, guest) = Console::with_guest();
    let (mut good, _) = console.attach();
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"\x01\xff\xff",
        b"\x02\x00\x01x",
    ] {
        let (mut bad, _) = console.attach();
        bad.send(bytes);
        assert_eq!(bad.frame(), Some(FromHub::Closing(Closing::BadFrame)));
        assert_eq!(bad.frame(), None);
    }
    // Half a frame and gone: nothing of it reaches the guest.
    let (mut half, _) = console.attach();
    half.send(&input_frames(b"half")[..5]);
    drop(half);
    good.send(&input_frames(b"whole"));
    assert_eq!(guest.read(5), b"whole");
}

#[test]
fn viewers_beyond_the_limit_are_told_so_and_the_next_one_finds_room() {
    let (console, guest) = Console::with_guest();
    let mut viewers: Vec<_> = (0..VIEWERS_MAX).map(|_| console.attach().0).collect();
    assert_eq!(console.hub.viewers(), VIEWERS_MAX);
    let mut refused = TestViewer::new(connect(&console.socket).unwrap());
    let frames: Vec<_> = std::iter::from_fn(|| refused.frame()).collect();
    assert_eq!(frames.last(), Some(&FromHub::Closing(Closing::TooMany)));

    viewers.pop();
    // Two turns of the hub: one in which the viewer's end is seen, one after it.
    for _ in 0..2 {
        guest.write(b"x");
        viewers[0].output(1);
    }
    console.attach();
}

#[test]
fn a_rebooted_guest_goes_on_with_its_new_terminal() {
    let (console, guest) = Console::with_guest();
    let (mut viewer, _) = console.attach();
    guest.write(b"bye ");
    assert_eq!(viewer.output(4), b"bye ");
    drop(guest);
    let (guest, terminal) = End::raw_pty();
    console.hub.replace_terminal(terminal).unwrap();
    guest.write(b"hello");
    assert_eq!(viewer.output(5), b"hello");
    viewer.send(&input_frames(b"in"));
    assert_eq!(guest.read(2), b"in");
}

#[test]
fn a_terminal_that_is_opened_again_goes_on() {
    let pty = tty::open_pty().unwrap();
    tty::make_raw(&pty.main).unwrap();
    let console = Console::on(pty.main.try_clone().unwrap());
    let (mut viewer, _) = console.attach();
    for boot in [b"one", b"two"] {
        let guest = End(pty.open_peer().unwrap());
        guest.write(boot);
        assert_eq!(viewer.output(3), boot);
        viewer.send(&input_frames(boot));
        assert_eq!(guest.read(3), boot);
    }
}

#[test]
fn a_full_disk_does_not_stop_the_console() {
    let (guest, terminal) = End::raw_pty();
    let full = Path::new("/dev/full").to_owned();
    let writer = ConsoleLog::open(&full, log::DEFAULT_MAX).unwrap();
    let console = Console::with(tempfile::tempdir().unwrap(), terminal, full, writer);
    let (mut viewer, _) = console.attach();
    guest.write(b"still here");
    assert_eq!(viewer.output(10), b"still here");
}

#[test]
fn a_hub_that_cannot_listen_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let log = ConsoleLog::open(&folder.path().join("log"), log::DEFAULT_MAX).unwrap();
    let (_guest, terminal) = End::raw_pty();
    let error = Hub::start(terminal, &folder.path().join("no/console.sock"), log).unwrap_err();
    assert!(error.to_string().contains("no/console.sock"), "{error}");
}
