//! The server behind a pair of Unix sockets; what needs root has namespaces of its own.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::{Pid, test_kill_process};
use serde::de::DeserializeOwned;

use super::*;
use crate::frame::Frame;
use crate::protocol::*;
use crate::tree::{self, Destination, Piece, Receiver};

/// No answer takes longer, on whatever machine.
const PATIENCE: Duration = Duration::from_secs(30);

struct Host(UnixStream);

impl Host {
    /// A connection to a server in a thread of its own.
    fn connect() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        std::thread::spawn(move || serve(File::from(OwnedFd::from(theirs))));
        Self(ours)
    }

    fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Answer<T> {
        frame::write(&mut self.0, request, b"").unwrap();
        self.next().header().unwrap()
    }

    fn next(&mut self) -> Frame {
        frame::read(&mut self.0)
            .unwrap()
            .expect("the server ended the connection")
    }

    fn send(&mut self, header: &ToCommand, body: &[u8]) {
        frame::write(&mut self.0, header, body).unwrap();
    }

    fn start(wanted: Exec) -> Self {
        let mut host = Self::connect();
        done(host.ask::<Started>(&Request::Exec(wanted)));
        host
    }

    /// What a command writes, and its end.
    fn finish(&mut self) -> (String, String, Ending) {
        let (mut output, mut error) = (Vec::new(), Vec::new());
        loop {
            let frame = self.next();
            match frame.header().unwrap() {
                FromCommand::Output => output.extend(frame.body),
                FromCommand::Error => error.extend(frame.body),
                FromCommand::InputTaken(_) => {}
                FromCommand::Ended(ending) => {
                    let text = |bytes| String::from_utf8(bytes).unwrap();
                    return (text(output), text(error), ending);
                }
            }
        }
    }

    /// Reads output until it holds `text`.
    fn until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            let frame = self.next();
            if frame.header::<FromCommand>().unwrap() == FromCommand::Output {
                seen.push_str(std::str::from_utf8(&frame.body).unwrap());
            }
        }
        seen
    }
}

fn done<T: std::fmt::Debug>(answer: Answer<T>) -> T {
    match answer {
        Answer::Done(done) => done,
        Answer::Failed(failure) => panic!("{failure:?}"),
    }
}

fn failed<T: std::fmt::Debug>(answer: Answer<T>) -> Failure {
    match answer {
        Answer::Done(done) => panic!("{done:?}"),
        Answer::Failed(failure) => failure,
    }
}

fn shell(script: &str) -> Exec {
    Exec {
        argv: vec!["sh".into(), "-c".into(), script.into()],
        ..Exec::default()
    }
}

fn wait_for(what: &str, mut is_true: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn hello_tells_version_boot_and_name() {
    let hello: Hello = done(Host::connect().ask(&Request::Hello));
    assert_eq!(hello.version, VERSION);
    assert_eq!(hello.boot_id.len(), 36);
    assert_eq!(
        hello.hostname.as_bytes(),
        rustix::system::uname().nodename().to_bytes()
    );
}

#[test]
fn what_is_no_request_is_answered_by_a_failure_or_an_end() {
    let mut host = Host::connect();
    frame::write(
        &mut host.0,
        &serde_json::json!({"dance": {"with": "me"}}),
        b"",
    )
    .unwrap();
    let failure = failed(host.next().header::<Answer<()>>().unwrap());
    assert_eq!(failure.kind, FailureKind::Unsupported);
    assert!(failure.message.contains("dance"), "{failure:?}");
    // Too large, cut, and no frame at all: the connection just ends.
    for bytes in [
        &[0xff; 8][..],
        b"\x09\0\0\0\0\0\0\0\"hel",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut host = Host::connect();
        host.0.write_all(bytes).unwrap();
        host.0.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        // A reset is an end, too: what was sent has not been read.
        let _ = host.0.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:?}");
    }
}

#[test]
#[expect(unsafe_code, reason = "this process ignores a signal")]
fn a_command_does_not_ignore_what_the_agent_was_made_to_ignore() {
    // SAFETY: no handler is set, and nothing else in these tests has to do with this signal.
    unsafe { libc::signal(libc::SIGUSR2, libc::SIG_IGN) };
    let (output, _, ending) = Host::start(shell("kill -s USR2 $$; echo lives")).finish();
    assert_eq!((output.as_str(), ending), ("", Ending::Signal(12)));
}

#[test]
fn a_command_has_its_streams_its_environment_and_its_exit_code() {
    let mut wanted = shell("cat; echo $GREETING $PWD $HOME >&2; exit 7");
    wanted.env = vec![
        ("GREETING".into(), "hello".into()),
        ("HOME".into(), "/h".into()),
    ];
    wanted.cwd = Some("/proc".into());
    wanted.stdin = true;
    let mut host = Host::start(wanted);
    host.send(&ToCommand::Input, b"in and out");
    host.send(&ToCommand::InputEnd, b"");
    let expected = (
        "in and out".into(),
        "hello /proc /h\n".into(),
        Ending::Code(7),
    );
    assert_eq!(host.finish(), expected);
    let (_, _, ending) = Host::start(shell("kill -KILL $$")).finish();
    assert_eq!(ending, Ending::Signal(9));
    // Without input there is an end of it at once.
    let (output, _, ending) = Host::start(shell("cat; echo over")).finish();
    assert_eq!((output.as_str(), ending), ("over\n", Ending::Code(0)));
}

#[test]
fn commands_that_cannot_run_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "no program").unwrap();
    let exec = |argv: &[&str]| Exec {
        argv: argv.iter().map(|word| (*word).into()).collect(),
        ..Exec::default()
    };
    let file = file.to_str().unwrap();
    let in_folder = Exec {
        cwd: Some("/nowhere".into()),
        ..exec(&["true"])
    };
    let as_nobody = Exec {
        user: Some("no such user".into()),
        ..exec(&["true"])
    };
    for (wanted, kind, word) in [
        (
            exec(&["no-such-program"]),
            FailureKind::NotFound,
            "no-such-program",
        ),
        (
            exec(&["/no/such/program"]),
            FailureKind::NotFound,
            "/no/such/program",
        ),
        (exec(&[file]), FailureKind::CannotRun, file),
        (exec(&[]), FailureKind::Invalid, "no command"),
        (in_folder, FailureKind::CannotRun, "/nowhere"),
        (as_nobody, FailureKind::CannotRun, "no such user"),
    ] {
        let failure = failed(Host::connect().ask::<Started>(&Request::Exec(wanted)));
        assert_eq!(failure.kind, kind, "{failure:?}");
        assert!(failure.message.contains(word), "{failure:?}");
    }
}

#[test]
fn megabytes_pass_both_ways_and_no_more_waits_than_the_window() {
    let mut wanted = shell("cat");
    wanted.stdin = true;
    let mut host = Host::start(wanted);
    let sent: Vec<u8> = (0..8u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let (mut at, mut room, mut got) = (0, INPUT_WINDOW, Vec::new());
    while got.len() < sent.len() {
        while room > 0 && at < sent.len() {
            let end = (at + room.min(frame::BODY_MAX)).min(sent.len());
            host.send(&ToCommand::Input, &sent[at..end]);
            room -= end - at;
            at = end;
        }
        let frame = host.next();
        match frame.header().unwrap() {
            FromCommand::Output => got.extend(frame.body),
            FromCommand::InputTaken(count) => room += count as usize,
            other => panic!("{other:?}"),
        }
    }
    assert!(got == sent);
    host.send(&ToCommand::InputEnd, b"");
    assert_eq!(host.finish().2, Ending::Code(0));
    // Who sends more than there is room for is cut off.
    let mut wanted = shell("sleep 60");
    wanted.stdin = true;
    let mut host = Host::start(wanted);
    for _ in 0..=(INPUT_WINDOW + (256 << 10)) / frame::BODY_MAX {
        if frame::write(&mut host.0, &ToCommand::Input, &[0; frame::BODY_MAX]).is_err() {
            break;
        }
    }
    while frame::read(&mut host.0).is_ok_and(|frame| frame.is_some()) {}
}

#[test]
fn a_terminal_has_a_size_that_changes_and_keys_that_interrupt() {
    let mut wanted =
        shell("tty; stty size; trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done");
    wanted.tty = Some(TerminalSize {
        rows: 33,
        cols: 101,
    });
    wanted.stdin = true;
    let mut host = Host::start(wanted);
    let said = host.until("ready");
    assert!(
        said.contains("/dev/pts/") && said.contains("33 101"),
        "{said}"
    );
    host.send(
        &ToCommand::Resize(TerminalSize {
            rows: 44,
            cols: 122,
        }),
        b"",
    );
    host.until("44 122");
    // The terminal turns ^C into a signal for its foreground processes.
    host.send(&ToCommand::Input, b"\x03");
    assert_eq!(host.finish().2, Ending::Signal(2));
}

#[test]
fn the_end_of_input_ends_a_shell_in_a_terminal() {
    let wanted = Exec {
        argv: vec!["sh".into()],
        tty: Some(TerminalSize { rows: 24, cols: 80 }),
        stdin: true,
        ..Exec::default()
    };
    let mut host = Host::start(wanted);
    host.send(&ToCommand::Input, b"(exit 5)\n");
    host.send(&ToCommand::InputEnd, b"");
    assert_eq!(host.finish().2, Ending::Code(5));
}

#[test]
fn the_end_of_the_connection_ends_the_whole_process_group() {
    for tty in [None, Some(TerminalSize::default())] {
        // One that does not want to end, and whose input is full.
        let mut wanted = shell("trap '' TERM HUP; sleep 1000 & echo $! $$; wait; sleep 1000");
        wanted.tty = tty;
        wanted.stdin = true;
        let mut host = Host::start(wanted);
        let said = host.until("\n");
        let pids: Vec<Pid> = said
            .split_whitespace()
            .map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap())
            .collect();
        assert_eq!(pids.len(), 2);
        for _ in 0..INPUT_WINDOW / frame::BODY_MAX {
            host.send(&ToCommand::Input, &[b' '; frame::BODY_MAX]);
        }
        drop(host);
        for pid in pids {
            wait_for("the end of a process of a lost connection", || {
                test_kill_process(pid).is_err() || is_zombie(pid)
            });
        }
    }
}

/// A process whose parent does not look after it: in a container process 1 may not.
fn is_zombie(pid: Pid) -> bool {
    let stat =
        std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| rest.starts_with('Z'))
}

#[test]
fn what_runs_on_in_the_background_is_not_waited_for() {
    for tty in [None, Some(TerminalSize::default())] {
        let mut wanted = shell("trap '' HUP; sleep 1000 & echo $!");
        wanted.tty = tty;
        let begun = Instant::now();
        let (output, _, ending) = Host::start(wanted).finish();
        let pid = Pid::from_raw(output.trim().parse().unwrap()).unwrap();
        assert_eq!(ending, Ending::Code(0));
        assert!(begun.elapsed() < PATIENCE);
        assert!(
            test_kill_process(pid).is_ok(),
            "the background process was killed"
        );
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
}

#[test]
fn files_go_in_and_come_out_with_their_modes() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("run"), vec![3; 300_000]).unwrap();
    std::fs::set_permissions(source.join("run"), std::fs::Permissions::from_mode(0o4755)).unwrap();

    let mut host = Host::connect();
    let guest = folder.path().join("guest");
    let put = Put {
        path: guest.to_str().unwrap().into(),
        name: Some("source".into()),
    };
    done(host.ask::<()>(&Request::Put(put)));
    tree::send(&source, &mut host.0).unwrap();
    let copied: Copied = done(host.next().header().unwrap());
    assert_eq!((copied.entries, copied.bytes), (2, 300_000));
    assert_eq!(
        guest.join("run").metadata().unwrap().permissions().mode() & 0o7777,
        0o4755
    );

    let mut host = Host::connect();
    done(host.ask::<()>(&Request::Get(Get {
        path: guest.to_str().unwrap().into(),
    })));
    let back = folder.path().join("back");
    let receiver = Receiver::new(Destination {
        path: back.clone(),
        name: None,
        mode_mask: 0o777,
    });
    assert_eq!(receiver.run(&mut host.0).unwrap(), copied);
    assert_eq!(std::fs::read(back.join("run")).unwrap(), vec![3; 300_000]);
}

#[test]
fn files_that_cannot_be_read_or_written_are_named() {
    let failure = failed(Host::connect().ask::<()>(&Request::Get(Get { path: "etc".into() })));
    assert_eq!(failure.kind, FailureKind::Invalid);
    let mut host = Host::connect();
    done(host.ask::<()>(&Request::Get(Get {
        path: "/no/such/file".into(),
    })));
    let Piece::Failed(failure) = host.next().header().unwrap() else {
        panic!("it was sent");
    };
    assert_eq!(failure.kind, FailureKind::NotFound);
    assert!(failure.message.contains("/no/such/file"), "{failure:?}");

    // The answer comes before all was sent, and the connection stays until it was read.
    let mut host = Host::connect();
    let put = Put {
        path: "/no/such/folder/file".into(),
        name: None,
    };
    done(host.ask::<()>(&Request::Put(put)));
    let meta = tree::Meta {
        mode: 0o644,
        mtime: 0,
        mtime_ns: 0,
    };
    frame::write(&mut host.0, &Piece::File(meta), b"file").unwrap();
    for _ in 0..100 {
        frame::write(&mut host.0, &Piece::Data, &[0; frame::BODY_MAX]).unwrap();
    }
    let failure = failed(host.next().header::<Answer<Copied>>().unwrap());
    assert!(failure.message.contains("/no/such/folder"), "{failure:?}");
}

#[test]
fn root_a_command_runs_as_the_user_that_is_wanted() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: it needs root");
        return;
    }
    let mut wanted = shell("id -u; id -g; id -G; echo $HOME");
    wanted.user = Some("4711:12".into());
    let (output, error, _) = Host::start(wanted).finish();
    assert_eq!(output, "4711\n12\n12\n/\n", "{error}");
}

#[test]
fn an_identity_that_makes_no_sense_changes_nothing() {
    let bad = |change: fn(&mut Identity)| {
        let mut identity = Identity::default();
        change(&mut identity);
        identity
    };
    for identity in [
        bad(|i| i.hostname = Some("a b".into())),
        bad(|i| i.hostname = Some("x".repeat(65))),
        bad(|i| i.hostname = Some("a\nb".into())),
        bad(|i| i.machine_id = Some("0123".into())),
        bad(|i| i.seed = vec![0; SEED_MAX + 1]),
        bad(|i| {
            i.nics = vec![NicIdentity {
                nic: WhichNic::Index(0),
                mac: None,
                routes: vec![],
                addresses: vec![Network {
                    ip: [10, 0, 0, 1].into(),
                    prefix: 33,
                }],
            }]
        }),
    ] {
        let failure = failed(Host::connect().ask::<Renewed>(&Request::Identity(identity)));
        assert_eq!(failure.kind, FailureKind::Invalid, "{failure:?}");
    }
}
