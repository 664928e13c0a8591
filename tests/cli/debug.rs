//! `vm debug`: its script, in real shells, runs a guest that counts.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use cocoon::sys::tty;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::counter::{install, runs_here};
use crate::support::hear::Heard;
use crate::support::{Cocoon, is_empty, stderr, stdout};

/// What the guest prints after some 200 ms.
const COUNTED: &str = "T00000020";

/// A store with the counting image, and a folder in which a user works.
struct Desk {
    cocoon: Cocoon,
    /// Its name is one that a shell would take apart.
    here: TempDir,
}

impl Desk {
    fn new() -> Self {
        let cocoon = Cocoon::new();
        install(&cocoon);
        let here = tempfile::Builder::new()
            .prefix("it's, \"a\" $desk ")
            .tempdir()
            .unwrap();
        Self { cocoon, here }
    }

    fn debug(&self, args: &[&str]) -> std::process::Output {
        let mut all = vec!["vm", "debug", "--engine", "micro"];
        all.extend(["--memory", "64M", "--storage", "64M"]);
        all.extend(args);
        all.push("counter");
        let mut command = self.cocoon.command(&all);
        command.current_dir(self.here.path()).output().unwrap()
    }

    fn script(&self, args: &[&str]) -> String {
        let output = self.debug(args);
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = self.debug(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert_eq!(stdout(&output), "", "{args:?}");
        stderr(&output)
    }

    /// The folder of the VM that has no other name.
    fn folder(&self) -> PathBuf {
        self.here.path().join("debug-cocoon-counter")
    }

    /// The process of the VM.
    fn process(&self) -> Pid {
        let socket = UnixStream::connect(self.folder().join("control.sock")).unwrap();
        rustix::net::sockopt::socket_peercred(&socket).unwrap().pid
    }
}

/// A shell, and what it says.
struct Shell {
    child: Child,
    heard: Heard,
}

impl Shell {
    /// One that reads a script from a pipe.
    fn on_pipe(desk: &Desk, mut command: Command, script: &str) -> Self {
        let mut child = command
            .current_dir(desk.here.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(script.as_bytes()).unwrap();
        let output = child.stdout.take().unwrap();
        Self::hear(child, output)
    }

    fn bash(desk: &Desk, script: &str) -> Self {
        Self::on_pipe(desk, Command::new("bash"), script)
    }

    /// One at whose terminal somebody sits.
    fn on_terminal(desk: &Desk) -> (Self, File) {
        let pty = tty::open_pty().unwrap();
        let peer = || Stdio::from(pty.open_peer().unwrap());
        let child = Command::new("setsid")
            .args(["--ctty", "--wait", "bash", "--norc", "--noprofile", "-i"])
            .current_dir(desk.here.path())
            .stdin(peer())
            .stdout(peer())
            .stderr(peer())
            .spawn()
            .unwrap();
        let main = File::from(pty.main);
        let keyboard = main.try_clone().unwrap();
        (Self::hear(child, main), keyboard)
    }

    fn hear(child: Child, output: impl Read + Send + 'static) -> Self {
        let heard = Heard::of(output);
        Self { child, heard }
    }

    /// Waits until it has said `text`, and forgets what it said up to there.
    fn says(&mut self, text: &str) {
        self.heard.until(text);
    }

    fn ends(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

/// Every file below `folder`, with its length.
fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            found.extend(files(&entry.path()));
        }
        found.push((entry.path(), metadata.len()));
    }
    found.sort();
    found
}

#[test]
fn nothing_is_made_and_no_network_asked_for() {
    let desk = Desk::new();
    let store = desk.cocoon.root.path();
    let before = files(store);
    let script = desk.script(&["--nics", "2", "--cow", "mine.raw"]);
    assert_eq!(files(store), before);
    assert!(is_empty(desk.here.path()));
    for part in [
        "# VM cocoon-counter (image: docker.io/library/counter:latest, engine: micro,",
        "#   ip tuntap add dev tap1 mode tap vnet_hdr multi_queue\n",
        "/mine.raw' ]; then\n  truncate -s 67108864 '",
        " net.ifnames=0 ",
        "\"max\": 8\n",
    ] {
        assert!(script.contains(part), "{part:?} is not in {script}");
    }
}

#[test]
fn the_debug_only_flags_max_cpu_balloon_and_cow_and_the_vm_flags_change_what_they_say() {
    let desk = Desk::new();
    for (args, part) in [
        (&[][..], "\"max\": 8\n"),
        (&["--max-cpu", "5"], "\"max\": 5\n"),
        (&["--cpu", "9"], "\"max\": 9\n"),
        (&["--balloon", "16"], "\"balloon\": 16777216\n"),
        (&["--balloon", "0"], "\"balloon\": 268435456\n"),
        (&["--memory", "128M"], "\"balloon\": null\n"),
        (&["--name", "web"], "/debug-web/spec.json <<'COCOON'\n"),
        (&["--name", "web"], "/debug-web/cow.raw ]; then\n"),
        (&["--cow", "/mine.raw"], "[ ! -e /mine.raw ]; then\n"),
    ] {
        let mut all = vec!["vm", "debug", "--engine", "micro", "--hugepages", "off"];
        all.extend(args);
        all.push("counter");
        let output = desk.cocoon.run(&all);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        let script = stdout(&output);
        assert!(script.contains(part), "{part:?} is not in {script}");
    }
}

#[test]
fn what_cannot_be_is_refused_in_a_sentence() {
    let desk = Desk::new();
    for (args, said) in [
        (
            &["--max-cpu", "0"][..],
            "--max-cpu must be at least --cpu, which is 2, not 0",
        ),
        (&["--max-cpu", "300"], "cannot let a VM grow to 300 CPUs"),
        (&["--balloon", "64"], "cannot have a balloon that takes all"),
        (&["--ch", "x"], "--ch must be left out"),
        (&["--nics", "17"], "--nics must be at most 16"),
    ] {
        let text = desk.refused(args);
        assert!(text.contains(said), "{said:?} is not in {text}");
    }
    let other = desk.cocoon.run(&["vm", "debug", "--nics", "0", "absent"]);
    let text = stderr(&other);
    assert!(text.contains("hint: cocoon image list"), "{text}");
}

#[test]
fn root_a_pasted_script_runs_a_guest_until_a_signal_ends_it() {
    if !runs_here() {
        return;
    }
    let desk = Desk::new();
    let script = desk.script(&["--nics", "0", "--cpu", "1"]);
    let mut shell = Shell::bash(&desk, &script);
    shell.says(COUNTED);
    let second = Command::new("bash").arg("-c").arg(&script).output();
    let second = second.unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains("error: the VM runs already"));
    kill_process(desk.process(), Signal::TERM).unwrap();
    assert!(shell.ends().success());
    let left: Vec<_> = files(&desk.folder()).into_iter().map(|(p, _)| p).collect();
    let kept = ["alive.lock", "console.log", "cow.raw", "spec.json"];
    assert_eq!(left, kept.map(|name| desk.folder().join(name)));
    // Nothing of it is in the records, and none of its files is anybody else's.
    assert_eq!(stdout(&desk.cocoon.run(&["vm", "list", "-q"])), "");
    for file in left {
        assert_eq!(file.metadata().unwrap().mode() & 0o077, 0, "{file:?}");
    }

    // Again, on the same disk, also after one that was killed.
    let disk = || desk.folder().join("cow.raw").metadata().unwrap().ino();
    let before = disk();
    for signal in [Signal::KILL, Signal::INT] {
        let mut shell = Shell::bash(&desk, &script);
        shell.says(COUNTED);
        kill_process(desk.process(), signal).unwrap();
        assert_eq!(shell.ends().success(), signal == Signal::INT);
    }
    assert_eq!(disk(), before);
}

#[test]
fn root_whoever_pastes_it_at_a_terminal_has_the_shell_back_after_the_vm() {
    if !runs_here() {
        return;
    }
    let desk = Desk::new();
    let script = desk.script(&["--nics", "0", "--cpu", "1"]);
    let (mut shell, mut keyboard) = Shell::on_terminal(&desk);
    keyboard.write_all(script.as_bytes()).unwrap();
    shell.says(COUNTED);
    keyboard.write_all(b"\x1d.").unwrap();
    // What is typed before the prompt is still the guest's.
    shell.says("# ");
    keyboard.write_all(b"echo it ended with $?\r").unwrap();
    shell.says("echo it ended with $?");
    shell.says("it ended with 0");
    keyboard.write_all(b"exit\r").unwrap();
    assert!(shell.ends().success());
}

#[test]
fn root_its_nics_are_the_taps_that_its_comments_make() {
    if !runs_here() {
        return;
    }
    let desk = Desk::new();
    for cpus in ["1", "2"] {
        let script = desk.script(&["--nics", "1", "--cpu", cpus]);
        let mut shell = Shell::on_pipe(&desk, namespace(), &script);
        assert_eq!(shell.child.wait().unwrap().code(), Some(1), "no TAP yet");
        assert_eq!(shell.heard.rest(), "");
        let make = |line: &str| line.strip_prefix("#   ").map(str::to_owned);
        let commands: Vec<_> = script.lines().filter_map(make).collect();
        let taps = commands.join("\n");
        let mut shell = Shell::on_pipe(&desk, namespace(), &format!("{taps}\n{script}"));
        shell.says(COUNTED);
        kill_process(desk.process(), Signal::TERM).unwrap();
        assert!(shell.ends().success());
    }
}

/// A shell with a network of its own.
fn namespace() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "bash"]);
    command
}
