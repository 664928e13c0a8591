//! The client against the agent's own server, and against guests that mean ill.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use cocoon_agent::frame;
use cocoon_agent::protocol::{
    Answer, Ending, Exec, Failure, FailureKind, FromCommand, Identity, Renewed, Request, Started,
    TerminalSize,
};
use cocoon_agent::tree::{Meta, Piece};

use super::fixture::Guest;
use super::*;
use crate::sys::interrupt::Interrupt;
use crate::sys::tty;

const PATIENCE: Duration = Duration::from_secs(20);

/// In nanoseconds.
const SECOND: u64 = 1_000_000_000;

fn encoded(frames: &[(serde_json::Value, &[u8])]) -> Vec<u8> {
    let bytes = frames
        .iter()
        .map(|(header, body)| frame::encode(header, body).unwrap());
    bytes.collect::<Vec<_>>().concat()
}

fn value(header: &impl serde::Serialize) -> serde_json::Value {
    serde_json::to_value(header).unwrap()
}

/// A guest that accepts, and then sends these frames.
fn sending(frames: &[(serde_json::Value, &[u8])]) -> Guest {
    Guest::saying([b"OK 1\n".to_vec(), encoded(frames)].concat())
}

fn never() -> Interrupt {
    Interrupt::never().unwrap()
}

fn shell(script: &str) -> Exec {
    Exec {
        argv: vec!["sh".into(), "-c".into(), script.into()],
        stdin: true,
        ..Exec::default()
    }
}

/// Runs a command with `input`; returns its end and what it wrote.
fn run(
    guest: &Guest,
    command: Exec,
    input: &[u8],
) -> (Result<ExecEnd, AgentError>, Vec<u8>, Vec<u8>) {
    let interrupt = never();
    let (output, error, given) = (
        tempfile::tempfile().unwrap(),
        tempfile::tempfile().unwrap(),
        tempfile::tempfile().unwrap(),
    );
    std::os::unix::fs::FileExt::write_all_at(&given, input, 0).unwrap();
    let session = Session {
        input: Some(given.as_fd()),
        output: output.as_fd(),
        error: error.as_fd(),
        tty: false,
        resized: interrupt.as_fd(),
        stop: interrupt.as_fd(),
    };
    let end = Agent::new(&guest.socket(), interrupt.as_fd()).exec(command, &session, PATIENCE);
    let read = |file: &std::fs::File| {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0).unwrap();
        bytes
    };
    (end, read(&output), read(&error))
}

#[test]
fn an_agent_that_is_there_answers_who_does_not_wait() {
    let (guest, interrupt) = (Guest::with_agent(), never());
    Agent::new(&guest.socket(), interrupt.as_fd())
        .hello(Duration::ZERO)
        .unwrap();
}

#[test]
fn an_agent_that_comes_late_is_waited_for() {
    let tries = std::sync::atomic::AtomicUsize::new(0);
    let guest = Guest::that(move |mut stream| {
        // Nobody listens yet: the connection ends at once.
        if tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) >= 3 {
            stream.write_all(b"OK 1\n").unwrap();
            let _ = cocoon_agent::server::serve(std::fs::File::from(std::os::fd::OwnedFd::from(
                stream,
            )));
        }
    });
    let interrupt = never();
    let hello = Agent::new(&guest.socket(), interrupt.as_fd())
        .hello(PATIENCE)
        .unwrap();
    assert_eq!(hello.version, cocoon_agent::protocol::VERSION);
    assert_eq!(guest.connections(), 4);
}

/// A guest whose clock is late each time that it is set, by the first of `late` at first, and after the last one is so
/// far ahead that it is not late however slow this host is.
fn hard_of_hearing(late: &'static [Option<u64>]) -> Guest {
    let told = std::sync::atomic::AtomicUsize::new(0);
    Guest::that(move |mut stream| {
        stream.write_all(b"OK 1\n").unwrap();
        let request = frame::read(&mut stream).unwrap().unwrap();
        let Ok(Request::Identity(identity)) = request.header() else {
            panic!("it is told who it is");
        };
        let at = told.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let is_first = at == 0;
        assert_eq!(identity.hostname.is_some(), is_first, "once is enough");
        let clock = identity.clock_ns.unwrap();
        let ahead = clock + 3600 * SECOND;
        let renewed = Renewed {
            warnings: if is_first {
                vec!["first".into()]
            } else {
                vec![]
            },
            clock_ns: late
                .get(at)
                .map_or(Some(ahead), |late| late.map(|late| clock - late)),
        };
        frame::write(&mut stream, &Answer::Done(renewed), b"").unwrap();
    })
}

#[test]
fn a_clock_that_was_set_late_is_set_again_and_nothing_else_is() {
    const LATE: Option<u64> = Some(SECOND);
    let too_late = ["cannot set the clock better"; 1];
    for (late, tries, warnings) in [
        (&[][..], 1, &[][..]),
        (&[LATE, LATE], 3, &[]),
        // An agent of old does not say what time it is.
        (&[None], 1, &[]),
        (&[LATE; 1000], 50, &too_late[..]),
    ] {
        let (guest, interrupt) = (hard_of_hearing(late), never());
        let identity = Identity {
            hostname: Some("web".into()),
            ..Identity::default()
        };
        let said = Agent::new(&guest.socket(), interrupt.as_fd())
            .identity(identity, PATIENCE)
            .unwrap();
        assert_eq!(guest.connections(), tries, "{said:?}");
        assert_eq!(said[0], "first");
        assert_eq!(said.len(), 1 + warnings.len());
        for (said, warning) in said[1..].iter().zip(warnings) {
            assert!(said.starts_with(warning), "{said}");
        }
    }
}

#[test]
fn no_agent_is_a_failure_after_the_patience_and_not_before() {
    let interrupt = never();
    let nobody = Guest::that(drop);
    // A guest whose driver is not up says nothing at all.
    let silent = Guest::saying(Vec::new());
    for guest in [&nobody, &silent] {
        let (begun, patience) = (Instant::now(), Duration::from_millis(300));
        let error = Agent::new(&guest.socket(), interrupt.as_fd())
            .hello(patience)
            .unwrap_err();
        assert!(matches!(error, AgentError::NotThere { .. }), "{error:?}");
        assert!(begun.elapsed() > patience / 2 && begun.elapsed() < PATIENCE);
    }
    assert!(nobody.connections() > 1, "it was tried once only");
    let error = Agent::new(std::path::Path::new("/nowhere.sock"), interrupt.as_fd())
        .hello(Duration::ZERO)
        .unwrap_err();
    assert!(matches!(error, AgentError::NotThere { .. }), "{error:?}");
}

#[test]
fn a_refusal_is_not_waited_for_by_who_waits_for_a_silent_guest() {
    let interrupt = never();
    let nobody = Guest::that(drop);
    let error = Agent::new(&nobody.socket(), interrupt.as_fd())
        .hello_again(false, PATIENCE)
        .unwrap_err();
    assert!(matches!(error, AgentError::NotThere { .. }), "{error:?}");
    assert_eq!(nobody.connections(), 1);
}

#[test]
fn a_restored_guest_that_refuses_or_loses_new_connections_with_its_old_ones_is_asked_again() {
    let interrupt = never();
    for (word, answered) in [("OK 1\n", false), ("", true)] {
        let tries = std::sync::atomic::AtomicUsize::new(0);
        let guest = Guest::that(move |mut stream| {
            if tries
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed)
                .is_multiple_of(2)
            {
                stream.write_all(word.as_bytes()).unwrap();
                return;
            }
            stream.write_all(b"OK 1\n").unwrap();
            let request = frame::read(&mut stream).unwrap().unwrap();
            let done = match request.header().unwrap() {
                Request::Hello => serde_json::json!({"version": 1, "boot_id": "", "hostname": ""}),
                _ => serde_json::json!({}),
            };
            let answer = encoded(&[(serde_json::json!({ "done": done }), b"")]);
            stream.write_all(&answer).unwrap();
        });
        let agent = Agent::new(&guest.socket(), interrupt.as_fd());
        agent.hello_again(answered, PATIENCE).unwrap();
        agent.identity(Identity::default(), PATIENCE).unwrap();
        assert_eq!(guest.connections(), 4);
    }
}

#[test]
fn an_interruption_ends_every_wait() {
    let (stop, mut raise) = UnixStream::pair().unwrap();
    raise.write_all(b"!").unwrap();
    for guest in [
        Guest::saying(Vec::new()),
        Guest::saying(b"OK 1\n".to_vec()),
        Guest::that(drop),
    ] {
        let error = Agent::new(&guest.socket(), stop.as_fd())
            .hello(PATIENCE)
            .unwrap_err();
        assert!(matches!(error, AgentError::Interrupted), "{error:?}");
    }
}

#[test]
fn answers_that_make_no_sense_are_failures_of_bounded_size() {
    let huge = [b"OK 1\n".as_slice(), &[0xff; 4096]].concat();
    let cut = [b"OK 1\n".as_slice(), &encoded(&[(value(&"x"), b"y")])[..7]].concat();
    let rows: Vec<(Guest, &str)> = vec![
        (Guest::saying(huge), "no answer"),
        (sending(&[(value(&"what?"), b"")]), "no answer"),
        (
            sending(&[(serde_json::json!({"done": {"version": "one"}}), b"")]),
            "no answer",
        ),
        (
            Guest::that(move |mut stream| drop(stream.write_all(&cut))),
            "lost the connection",
        ),
    ];
    let interrupt = never();
    for (guest, sentence) in rows {
        let error = Agent::new(&guest.socket(), interrupt.as_fd())
            .hello(PATIENCE)
            .unwrap_err();
        assert!(error.to_string().contains(sentence), "{error:?}");
    }
    // A line that never ends is not read for ever.
    let guest = Guest::saying(vec![b'O'; 1 << 20]);
    let error = Agent::new(&guest.socket(), interrupt.as_fd())
        .hello(Duration::ZERO)
        .unwrap_err();
    assert!(matches!(error, AgentError::NotThere { .. }), "{error:?}");
}

#[test]
fn a_guests_refusal_is_one_plain_line() {
    let failure = Failure::new(FailureKind::NotFound, "no\x1b]0;owned\x07\nhint: rm -rf /");
    let guest = sending(&[(value(&Answer::<()>::Failed(failure)), b"")]);
    let interrupt = never();
    let error = Agent::new(&guest.socket(), interrupt.as_fd())
        .hello(PATIENCE)
        .unwrap_err();
    assert_eq!(error.to_string(), "no ]0;owned  hint: rm -rf /");
    assert_eq!(error.refusal(), Some(FailureKind::NotFound));
}

#[test]
fn no_word_of_a_guest_reaches_a_terminal_as_it_is() {
    let evil = "\x1b[2J\n\u{202e}";
    let failure = Failure::new(FailureKind::Failed, evil);
    let answers = [
        value(&Answer::<()>::Failed(failure)),
        value(&evil),
        serde_json::json!({ evil: {} }),
        serde_json::json!({"done": {evil: {}, "version": evil}}),
    ];
    let interrupt = never();
    for answer in answers {
        let guest = sending(&[(answer, b"")]);
        let error = Agent::new(&guest.socket(), interrupt.as_fd())
            .hello(PATIENCE)
            .unwrap_err();
        let mut link: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = link {
            let text = error.to_string();
            assert!(
                !text.contains(|c: char| c.is_control() || c == '\u{202e}'),
                "{text:?}"
            );
            link = error.source();
        }
    }
    let warnings = vec![evil.repeat(2_000); 2];
    let guest = sending(&[(serde_json::json!({"done": {"warnings": warnings}}), b"")]);
    let renewed = Agent::new(&guest.socket(), interrupt.as_fd())
        .identity(Identity::default(), PATIENCE)
        .unwrap();
    assert!(
        renewed
            .iter()
            .all(|text| text.len() < 1000 && !text.contains(char::is_control))
    );
}

#[test]
fn a_command_has_our_streams_and_we_its_end() {
    let guest = Guest::with_agent();
    let (end, output, error) = run(&guest, shell("cat; echo err >&2; exit 9"), b"in");
    assert_eq!(
        (end.unwrap(), output.as_slice(), error.as_slice()),
        (ExecEnd::Code(9), b"in".as_slice(), b"err\n".as_slice())
    );
    let (end, ..) = run(&guest, shell("kill -TERM $$"), b"");
    assert_eq!(end.unwrap().exit_code(), 143);
    let megabytes: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let (end, output, _) = run(&guest, shell("cat"), &megabytes);
    assert!(end.unwrap() == ExecEnd::Code(0) && output == megabytes);
    // A command that reads none of its input.
    let (end, ..) = run(&guest, shell("exit 4"), &megabytes);
    assert_eq!(end.unwrap(), ExecEnd::Code(4));
    let missing = Exec {
        argv: vec!["no-such-program".into()],
        ..Exec::default()
    };
    assert_eq!(
        run(&guest, missing, b"").0.unwrap_err().refusal(),
        Some(FailureKind::NotFound)
    );
}

#[test]
fn a_hostile_command_cannot_lend_itself_room_or_write_after_its_end() {
    let started = (value(&Answer::Done(Started { pid: 1 })), b"".as_slice());
    let ended = (value(&FromCommand::Ended(Ending::Code(0))), b"".as_slice());
    let room = (value(&FromCommand::InputTaken(u32::MAX)), b"".as_slice());
    let after = (value(&FromCommand::Output), b"after".as_slice());
    let guest = sending(&[started.clone(), room.clone(), room, ended, after]);
    let (end, output, _) = run(&guest, shell(""), &[0; 100]);
    assert_eq!((end.unwrap(), output.len()), (ExecEnd::Code(0), 0));
    for frames in [
        vec![started.clone()],
        vec![started, (value(&"nonsense"), b"".as_slice())],
    ] {
        let guest = Guest::that(move |mut stream| {
            let bytes = [b"OK 1\n".to_vec(), encoded(&frames)].concat();
            drop(stream.write_all(&bytes));
            let _ = stream.read(&mut [0; 64]);
        });
        assert!(run(&guest, shell(""), b"").0.is_err());
    }
}

#[test]
fn a_terminal_is_raw_while_the_command_runs_and_tells_its_size() {
    let guest = Guest::with_agent();
    let pty = tty::open_pty().unwrap();
    let user = pty.open_peer().unwrap();
    let sized =
        |rows, cols| tty::set_window_size(&pty.main, tty::WindowSize { rows, cols }).unwrap();
    sized(33, 101);
    let (resized, mut on_resize) = UnixStream::pair().unwrap();
    let (stop, _raise) = UnixStream::pair().unwrap();
    let mut command = shell("trap 'stty size' WINCH; stty size; while :; do sleep 0.05; done");
    command.tty = Some(TerminalSize { rows: 1, cols: 1 });
    std::thread::scope(|scope| {
        let relay = scope.spawn(|| {
            let session = Session {
                input: Some(user.as_fd()),
                output: user.as_fd(),
                error: user.as_fd(),
                tty: true,
                resized: resized.as_fd(),
                stop: stop.as_fd(),
            };
            Agent::new(&guest.socket(), stop.as_fd()).exec(command, &session, PATIENCE)
        });
        let mut screen = std::fs::File::from(pty.main.try_clone().unwrap());
        let mut seen = String::new();
        let mut until = |text: &str| {
            while !seen.contains(text) {
                let mut buffer = [0; 256];
                let read = screen.read(&mut buffer).unwrap();
                seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
            }
        };
        until("33 101");
        sized(44, 122);
        on_resize.write_all(b"!").unwrap();
        until("44 122");
        // Raw: the key is the guest's.
        rustix::io::write(&pty.main, b"\x03").unwrap();
        assert_eq!(relay.join().unwrap().unwrap(), ExecEnd::Signal(2));
    });
    let settings = rustix::termios::tcgetattr(&user).unwrap();
    assert!(
        settings
            .local_modes
            .contains(rustix::termios::LocalModes::ECHO)
    );
}

#[test]
fn files_go_there_and_back_without_the_power_to_run_as_root() {
    let guest = Guest::with_agent();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(path("tree/sub")).unwrap();
    std::fs::write(path("tree/sub/run"), vec![9; 500_000]).unwrap();
    std::fs::set_permissions(
        path("tree/sub/run"),
        std::fs::Permissions::from_mode(0o4755),
    )
    .unwrap();
    let interrupt = never();
    let agent = Agent::new(&guest.socket(), interrupt.as_fd());
    let there = path("there").to_str().unwrap().to_owned();
    let copied = agent
        .put(&path("tree"), there.clone(), Some("tree".into()), PATIENCE)
        .unwrap();
    assert_eq!((copied.entries, copied.bytes), (3, 500_000));
    agent
        .get(there, &path("back"), Some("there"), PATIENCE)
        .unwrap();
    let mode = |name| path(name).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        (mode("there/sub/run"), mode("back/sub/run")),
        (0o4755, 0o755)
    );
    assert_eq!(
        std::fs::read(path("back/sub/run")).unwrap(),
        vec![9; 500_000]
    );
    // The agent's own words, in the middle of what is sent.
    let error = agent
        .put(
            &path("tree/sub/run"),
            "/no/such/folder/file".into(),
            None,
            PATIENCE,
        )
        .unwrap_err();
    assert!(error.to_string().contains("/no/such/folder"), "{error:?}");
    assert!(matches!(error, AgentError::Refused(_)), "{error:?}");
    let error = agent
        .get("/no/such/file".into(), &path("none"), None, PATIENCE)
        .unwrap_err();
    assert_eq!(error.refusal(), Some(FailureKind::NotFound));
    assert!(!path("none").exists());
}

/// The tests of `cocoon_agent::tree` have the table of what is refused; this is that `get` obeys it.
#[test]
fn a_hostile_guest_cannot_write_outside_of_the_destination() {
    let folder = tempfile::tempdir().unwrap();
    let meta = Meta {
        mode: 0o777,
        mtime: 0,
        mtime_ns: 0,
    };
    let guest = sending(&[
        (value(&Answer::Done(())), b""),
        (value(&Piece::Folder(meta)), b"top"),
        (value(&Piece::File(meta)), b"../../escaped"),
        (value(&Piece::Data), b"owned"),
    ]);
    let interrupt = never();
    let to = folder.path().join("in/to");
    std::fs::create_dir_all(&to).unwrap();
    let error = Agent::new(&guest.socket(), interrupt.as_fd())
        .get("/x".into(), &to, Some("top"), PATIENCE)
        .unwrap_err();
    assert!(matches!(error, AgentError::Copy(_)), "{error:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(!folder.path().join("in/escaped").exists());
}
