//! What people type who know Docker, and cocoon not yet: each mistake gets a sentence that names the thing, a
//! hint of what to do, and its exit code, and changes nothing.

use std::io::Read;
use std::process::{Command, Output};

use crate::support::counter::{Counter, SHAPE, root_tar};
use crate::support::network::write_conflist;
use crate::support::{is_empty, stderr, stdout};

/// What is typed, on what host; the exit code, the sentence, and the hint.
type Row = (&'static str, Host, i32, &'static str, &'static str);

/// A script that runs a command, which are its arguments, on a host that is otherwise, in mounts of its own.
type Host = &'static str;

/// By root, and all is well.
const WELL: Host = r#"exec "$0" "$@""#;

/// By another user. The program may lie where that one cannot go.
const OTHER_USER: Host = r#"cp "$0" cocoon && chmod 711 . && install -d -o 65534 theirs &&
    export COCOON_ROOT_DIR=$PWD/theirs COCOON_LOG_DIR=$PWD/theirs &&
    exec setpriv --reuid 65534 --regid 65534 --clear-groups ./cocoon "$@""#;

/// Where `/dev/kvm` makes no VMs.
const NO_KVM: Host = r#"mount --bind /dev/null /dev/kvm && exec "$0" "$@""#;

/// With a root folder on a disk that has room for the records alone.
const FULL_DISK: Host = r#"mkdir small && mount -t tmpfs -o size=1M none small &&
    COCOON_ROOT_DIR=$PWD/small exec "$0" "$@""#;

#[rustfmt::skip]
const ROWS: [Row; 36] = [
    // Docker's words.
    ("run counter", WELL, 2, "unrecognized subcommand 'run'", "tip: here that is: cocoon vm run"),
    ("ps", WELL, 2, "unrecognized subcommand 'ps'", "tip: here that is: cocoon vm list"),
    ("pull ubuntu", WELL, 2, "unrecognized subcommand 'pull'", "tip: here that is: cocoon image pull"),
    ("rmi counter", WELL, 2, "unrecognized subcommand 'rmi'", "tip: here that is: cocoon image rm"),
    ("exec counter sh", WELL, 2, "unrecognized subcommand 'exec'", "tip: here that is: cocoon vm exec"),
    ("vm kill counter", WELL, 2, "unrecognized subcommand 'kill'", "tip: here that is: cocoon vm stop --force"),
    ("vm run -d counter", WELL, 2, "unexpected argument '-d'", "tip: a VM runs in the background"),
    ("vm run -p 80:80 counter", WELL, 2, "unexpected argument '-p'", "tip: a VM has an address of its own"),
    ("vm run --rm counter", WELL, 2, "unexpected argument '--rm'", "cocoon vm rm --force"),
    // Images.
    ("image pull Ubuntu:24.04", WELL, 2, "the repository must be lower-case", "hint: write [registry/]repository[:tag]"),
    ("image pull 127.0.0.1:1/ubuntu", WELL, 1, "127.0.0.1:1", "hint: check the registry's name"),
    ("vm run --nics 0 ubuntu", WELL, 1, "there is no image \"ubuntu\"", "cocoon image pull IMAGE"),
    ("vm run --nics 0 conuter", WELL, 1, "there is no image \"conuter\"", "hint: is it docker.io/library/counter:latest?"),
    ("image import app app.tar", WELL, 1, "is not a VM image", "hint: os-image/README.md"),
    ("image import disk disk.img", WELL, 1, "its header lies behind the end of the file", "hint: it is damaged or not whole"),
    ("image pull http://127.0.0.1:1/disk.img", WELL, 1, "cannot reach http://127.0.0.1:1/disk.img", "hint: check the address"),
    ("image pull htp://example.org/disk.img", WELL, 2, "is not the address of a disk image", ""),
    ("vm run --nics 0 --boot firmware counter", WELL, 1, "--boot must be direct for an OCI image", ""),
    // What a VM is to have.
    ("vm run --memory 2 counter", WELL, 1, "--memory must be at least 64MiB, not 2B", "hint: a number alone is bytes: write --memory 2G"),
    ("vm run --memory 2048 counter", WELL, 1, "--memory must be at least 64MiB, not 2KiB", "write --memory 2048M"),
    ("vm run --memory 2x counter", WELL, 2, "\"2x\" is not a size", "use a unit like K, M, G or T"),
    ("vm run --name web_1! counter", WELL, 2, "\"web_1!\" is not a name", "--help"),
    ("vm run --name counter --nics 0 counter", WELL, 1, "the name counter is taken", "hint: choose another --name"),
    ("vm run counter", WELL, 1, "/none does not exist", "--nics 0"),
    ("vm run --cni-conf-dir network --cni-bin-dir none counter", WELL, 1, "the CNI plugin bridge is not in", "hint: install the CNI plugins"),
    // VMs and snapshots that are not there, or in another state.
    ("vm stop couner", WELL, 1, "no VM is called \"couner\"", "hint: is it counter?"),
    ("vm rm counter", WELL, 1, "VM counter is running", "cocoon vm rm --force counter"),
    ("vm console off", WELL, 1, "VM off is not running", "hint: start it: cocoon vm start off"),
    ("vm exec off -- sh", WELL, 125, "VM off is not running", "hint: start it: cocoon vm start off"),
    ("vm start still", WELL, 1, "VM still is paused", "hint: let it go on: cocoon vm resume still"),
    ("vm clone momnet", WELL, 1, "no snapshot is called \"momnet\"", "hint: is it moment?"),
    ("vm clone --memory 32M moment", WELL, 1, "--memory must be at least what was saved, 64MiB", "hint: leave --memory out"),
    ("vm restore still moment", WELL, 1, "moment is no snapshot of VM still", "hint: make another VM of it: cocoon vm clone moment"),
    // The host.
    ("vm run counter", OTHER_USER, 1, "this needs root", "hint: run cocoon as root"),
    ("vm run counter", NO_KVM, 1, "/dev/kvm", "hint: use a Linux host with a working KVM"),
    ("image import vm vm.tar", FULL_DISK, 1, "No space left", "hint: the disk is full"),
];

/// A host on which something has been done already, and files in the folder where people type.
struct Desk(Counter);

impl Desk {
    fn new() -> Option<Self> {
        // Nobody has set up a network.
        let counter = Counter::run_with(0, vec![("COCOON_CNI_CONF_DIR", "none".into())])?;
        let create = |name| {
            [
                &["vm", "create", "--name", name, "--nics", "0"],
                &SHAPE[..],
                &["counter"],
            ]
            .concat()
        };
        counter.ok(&create("off"));
        counter.ok(&create("still"));
        counter.ok(&["vm", "start", "still"]);
        counter.ok(&["vm", "pause", "still"]);
        counter.ok(&["snapshot", "save", "--name", "moment", "counter"]);
        let folder = counter.cocoon.root.path();
        std::fs::create_dir(folder.join("network")).unwrap();
        write_conflist(&folder.join("network"), "test");
        std::fs::write(folder.join("vm.tar"), root_tar(&noise())).unwrap();
        std::fs::write(folder.join("app.tar"), tar_of("bin/app", b"no kernel")).unwrap();
        std::fs::write(folder.join("disk.img"), b"QFI\xfb\0\0\0\x03").unwrap();
        Some(Self(counter))
    }

    /// Types `line` on `host`.
    fn type_(&self, line: &str, host: Host) -> Output {
        let cocoon = self.0.command(&line.split(' ').collect::<Vec<_>>());
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", host]);
        command.arg(cocoon.get_program()).args(cocoon.get_args());
        for (name, value) in cocoon.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
            .current_dir(self.0.cocoon.root.path())
            .output()
            .unwrap()
    }

    /// All that the records say.
    fn records(&self) -> [String; 3] {
        ["vm", "image", "snapshot"].map(|noun| self.0.ok(&[noun, "list", "-o", "json"]))
    }
}

/// 2 MiB that nothing makes smaller, as text.
fn noise() -> String {
    let mut bytes = vec![0; 1 << 20];
    let mut random = std::fs::File::open("/dev/urandom").unwrap();
    random.read_exact(&mut bytes).unwrap();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn tar_of(path: &str, body: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(body.len() as u64);
    header.set_mode(0o755);
    tar.append_data(&mut header, path, body).unwrap();
    tar.into_inner().unwrap()
}

#[test]
fn root_twenty_newcomers_mistakes_and_more_get_a_sentence_a_hint_and_their_exit_code() {
    let Some(desk) = Desk::new() else {
        return;
    };
    let records = desk.records();
    let mut wrong = Vec::new();
    for (line, host, code, sentence, hint) in ROWS {
        let output = desk.type_(line, host);
        let told = stderr(&output);
        let is_right = output.status.code() == Some(code)
            && told.starts_with("error: ")
            && told.contains(sentence)
            && told.contains(hint)
            && stdout(&output).is_empty();
        if !is_right {
            wrong.push(format!(
                "$ cocoon {line}\n{told}{}: {sentence:?}, {hint:?}",
                output.status
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert_eq!(desk.records(), records);
    assert!(is_empty(&desk.0.cocoon.root.path().join("staging")));
    desk.0.goes_on();
}
