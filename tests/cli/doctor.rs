//! `cocoon doctor` and `doctor/check.sh`, both for real: what they find, say and repair.

mod upgrade;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::private::{hide, in_private_host};
use crate::support::{Cocoon, stderr, stdout};

/// Every check, in order; scripts may rely on the names.
const CHECKS: [&str; 20] = [
    "root-user",
    "cpu-virtualization",
    "kvm",
    "kvm-create-vm",
    "kvm-create-vcpu",
    "nx-huge-pages",
    "favordynmods",
    "userfaultfd",
    "hugepages",
    "tun",
    "kernel-modules",
    "cni-plugins",
    "cni-conflist",
    "ip-forward",
    "forward-rules",
    "folders",
    "disk-space",
    "reflink",
    "mkfs-ext4",
    "firmware",
];

/// Those whose verdict is a measurement's, or that the script needs another program for.
const MEASURED: [&str; 6] = [
    "kvm-create-vm",
    "kvm-create-vcpu",
    "nx-huge-pages",
    "favordynmods",
    "userfaultfd",
    "kernel-modules",
];

/// [`Patient::program`] or [`Patient::script`].
type Doctor = fn(&Patient, &[&str]) -> Command;

/// A host of its own folders, and the program or the script on it.
struct Patient {
    cocoon: Cocoon,
}

impl Patient {
    fn new() -> Self {
        Self {
            cocoon: Cocoon::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.cocoon.root.path().join(name)
    }

    /// `cocoon doctor` with these arguments.
    fn program(&self, args: &[&str]) -> Command {
        let mut command = self.cocoon.command(&[&["doctor"], args].concat());
        self.own_folders(&mut command);
        command
    }

    /// `doctor/check.sh` with these arguments.
    fn script(&self, args: &[&str]) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("doctor/check.sh");
        let mut command = Command::new(script);
        self.own_folders(command.args(args));
        command
    }

    fn own_folders(&self, command: &mut Command) {
        for (name, folder) in [
            ("COCOON_ROOT_DIR", "root"),
            ("COCOON_LOG_DIR", "log"),
            ("COCOON_CNI_CONF_DIR", "net.d"),
            ("COCOON_CNI_BIN_DIR", "bin"),
        ] {
            command.env(name, self.path(folder));
        }
    }

    /// Every file and folder of this host, with what files hold.
    fn files(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.cocoon.root.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                found.insert(path.clone(), fs::read(&path).ok());
                if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        found
    }
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(output)))
}

/// The verdict of each check in JSON, in order.
fn verdicts(found: &Value) -> Vec<(String, String)> {
    let text = |check: &Value, key: &str| check[key].as_str().unwrap().to_owned();
    let checks = found["checks"].as_array().unwrap();
    checks
        .iter()
        .map(|check| (text(check, "name"), text(check, "verdict")))
        .collect()
}

/// The verdict of each check in lines for people, in order.
fn verdicts_of_lines(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().filter(|line| !line.starts_with(' '));
    lines
        .map(|line| {
            let mut words = line.split_ascii_whitespace();
            let verdict = words.next().unwrap().to_lowercase();
            (words.next().unwrap().to_owned(), verdict)
        })
        .collect()
}

fn verdict_of(found: &Value, name: &str) -> String {
    let mut found = verdicts(found).into_iter();
    found.find(|(check, _)| check == name).unwrap().1
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn json_has_every_check_and_the_exit_code_says_whether_one_failed() {
    let patient = Patient::new();
    let output = patient.program(&["-o", "json"]).output().unwrap();
    let found = json(&output);
    let names: Vec<_> = verdicts(&found).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, CHECKS);
    let mut failed = 0;
    for check in found["checks"].as_array().unwrap() {
        let is_well = match check["verdict"].as_str().unwrap() {
            "pass" => true,
            "warn" => false,
            "fail" => {
                failed += 1;
                false
            }
            other => panic!("{other}"),
        };
        assert!(!check["says"].as_str().unwrap().is_empty(), "{check}");
        assert_eq!(check["fix"].is_null(), is_well, "{check}");
    }
    // There is no CNI configuration in these folders, on any host.
    assert_eq!(verdict_of(&found, "cni-conflist"), "fail");
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(
        text.contains(&format!("failed {failed} of the checks")),
        "{text}"
    );
    assert!(text.contains("hint: cocoon doctor --fix"), "{text}");
    assert_eq!(patient.files().len(), 0, "a check has left something");
}

#[test]
fn people_read_the_same_in_lines_with_a_fix_below() {
    let patient = Patient::new();
    let output = patient.program(&[]).output().unwrap();
    let text = stdout(&output);
    let names: Vec<_> = verdicts_of_lines(&text)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, CHECKS);
    assert!(
        text.contains("fix: cocoon doctor --fix writes one"),
        "{text}"
    );
    assert!(stderr(&output).contains(" passed, "), "{}", stderr(&output));
}

#[test]
fn the_script_finds_the_same_by_the_same_names() {
    let patient = Patient::new();
    let of_program = verdicts(&json(&patient.program(&["-o", "json"]).output().unwrap()));
    let script = patient.script(&[]).output().unwrap();
    let of_script = verdicts_of_lines(&stdout(&script));
    let names: Vec<_> = of_script.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, CHECKS, "{}", stderr(&script));
    for (of_program, of_script) in of_program.iter().zip(&of_script) {
        if !MEASURED.contains(&of_program.0.as_str()) {
            assert_eq!(of_program, of_script);
        }
    }
    assert_eq!(script.status.code(), Some(1), "{}", stderr(&script));
    assert_eq!(patient.files().len(), 0, "a check has left something");
}

#[test]
fn the_scripts_own_configuration_and_pins_are_those_of_the_program() {
    let script = include_str!("../../doctor/check.sh");
    let manifest: toml::Table =
        toml::from_str(include_str!("../../firmware/manifest.toml")).unwrap();
    let files = manifest["file"].as_array().unwrap();
    for file in files {
        let field = |key: &str| file[key].as_str().unwrap();
        let pin = ["install", "arch", "sha256", "url"].map(field).join(" ");
        assert!(script.lines().any(|line| line == pin), "{pin}");
    }
    let pins = script
        .lines()
        .filter(|line| line.contains("/releases/download/"));
    assert_eq!(pins.count(), files.len());
}

#[test]
fn root_a_repair_by_another_user_is_refused_with_a_sentence() {
    if !is_root() {
        println!("SKIPPED: it needs root");
        return;
    }
    let patient = Patient::new();
    for mut command in [patient.program(&["--fix"]), patient.script(&["--fix"])] {
        let output = match command.uid(65534).gid(65534).output() {
            Ok(output) => output,
            Err(error) => {
                println!("SKIPPED: another user may not run the program here: {error}");
                return;
            }
        };
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            text.contains("error: only root may repair a host"),
            "{text}"
        );
        assert!(text.contains("hint: run "), "{text}");
        assert!(output.stdout.is_empty());
    }
    assert_eq!(patient.files().len(), 0);
}

/// The FORWARD chain of this host, or nothing where iptables does not work.
fn forward_chain() -> Option<String> {
    let output = Command::new("iptables")
        .args(["-w", "5", "-S", "FORWARD"])
        .output();
    let output = output.ok().filter(|output| output.status.success())?;
    Some(stdout(&output))
}

/// Makes this private host one on which guests reach nothing, and hides where sysctls are kept.
#[expect(clippy::print_stdout, reason = "it says what a test did not try")]
fn shut() {
    if Path::new("/etc/sysctl.d").is_dir() {
        hide("/etc/sysctl.d").unwrap();
    }
    fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
    if forward_chain().is_none() {
        println!("iptables does not work here: its rules are not repaired in this test");
        return;
    }
    for args in [&["-F", "FORWARD"][..], &["-P", "FORWARD", "DROP"]] {
        let done = Command::new("iptables").args(args).status();
        assert!(done.unwrap().success(), "{args:?}");
    }
}

/// What the script or the program said it repaired.
fn repaired(output: &Output) -> Vec<String> {
    let text = stderr(output);
    let lines = text.lines().filter_map(|line| line.strip_prefix("fixed "));
    lines
        .map(|line| line.split(':').next().unwrap().to_owned())
        .collect()
}

/// Lets `first` repair a host that lacks all, and then `second` find nothing to do.
fn repair_by(first: Doctor, second: Doctor) {
    shut();
    let patient = Patient::new();
    let output = first(&patient, &FIX).output().unwrap();
    let mut expected = vec!["folders"; 3];
    expected.extend(["cni-conflist", "ip-forward"]);
    if Path::new("/etc/sysctl.d").is_dir() {
        expected.push("ip-forward");
    }
    let has_iptables = forward_chain().is_some();
    if has_iptables {
        expected.extend(["forward-rules"; 2]);
    }
    assert_eq!(repaired(&output), expected, "{}", stderr(&output));
    // The plugins cannot be repaired.
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));

    let found = json(&patient.program(&["-o", "json"]).output().unwrap());
    for name in ["folders", "cni-conflist", "ip-forward", "forward-rules"] {
        if has_iptables || name != "forward-rules" {
            assert_eq!(
                verdict_of(&found, name),
                "pass",
                "{name}: {}",
                stdout(&output)
            );
        }
    }
    let list: Value = {
        let text = fs::read(patient.path("net.d/10-cocoon.conflist")).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let range = &list["plugins"][0]["ipam"]["ranges"][0][0];
    assert_eq!(range["subnet"], "10.213.0.0/20");
    assert_eq!(range["gateway"], "10.213.0.1");
    if let Some(chain) = forward_chain() {
        assert!(chain.contains("-i cni0 -j ACCEPT"), "{chain}");
        assert!(chain.contains("-o cni0 -m conntrack"), "{chain}");
    }

    let (files, chain) = (patient.files(), forward_chain());
    let again = second(&patient, &FIX).output().unwrap();
    assert_eq!(repaired(&again), [] as [&str; 0], "{}", stderr(&again));
    assert!(
        files == patient.files(),
        "a second repair has changed files"
    );
    assert_eq!(chain, forward_chain());
}

const FIX: [&str; 2] = ["--fix", "--subnet=10.213.0.0/20"];

#[test]
fn root_what_the_program_repairs_is_repaired_once_and_the_script_agrees() {
    in_private_host(|| {
        repair_by(Patient::program, Patient::program);
        repair_by(Patient::program, Patient::script);
    });
}

#[test]
fn root_what_the_script_repairs_is_repaired_once_and_the_program_agrees() {
    in_private_host(|| {
        repair_by(Patient::script, Patient::script);
        repair_by(Patient::script, Patient::program);
    });
}

#[test]
fn root_two_repairs_at_once_do_everything_once() {
    in_private_host(|| {
        shut();
        let patient = Patient::new();
        let commands = [
            patient.program(&FIX),
            patient.script(&FIX),
            patient.program(&FIX),
            patient.script(&FIX),
        ];
        let children = commands.map(|mut command| {
            let quiet = command.stdout(std::process::Stdio::null());
            quiet.stderr(std::process::Stdio::piped()).spawn().unwrap()
        });
        let outputs = children.map(|child| child.wait_with_output().unwrap());
        for output in &outputs {
            assert!(!stderr(output).contains("cannot"), "{}", stderr(output));
        }
        let lists = outputs.iter().flat_map(repaired);
        assert_eq!(lists.filter(|name| name == "cni-conflist").count(), 1);
        if let Some(chain) = forward_chain() {
            assert_eq!(chain.lines().count(), 3, "{chain}");
        }
    });
}

#[test]
fn root_what_a_user_has_is_kept() {
    const BROKEN: &str = "{ \"name\": ";
    in_private_host(|| {
        shut();
        for repair in [Patient::program, Patient::script] {
            let patient = Patient::new();
            fs::create_dir(patient.path("net.d")).unwrap();
            fs::write(patient.path("net.d/99-mine.conflist"), BROKEN).unwrap();
            let output = repair(&patient, &FIX).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
            assert!(!repaired(&output).iter().any(|name| name == "cni-conflist"));
            let left: Vec<_> = fs::read_dir(patient.path("net.d")).unwrap().collect();
            assert_eq!(left.len(), 1);
            let kept = fs::read_to_string(patient.path("net.d/99-mine.conflist"));
            assert_eq!(kept.unwrap(), BROKEN);
        }
    });
}

#[test]
fn root_a_subnet_that_the_host_uses_is_not_given_to_guests() {
    in_private_host(|| {
        shut();
        let add = "ip link set lo up && ip route add 10.213.4.0/24 dev lo";
        if !Command::new("sh")
            .args(["-c", add])
            .status()
            .is_ok_and(|done| done.success())
        {
            println!("SKIPPED: no route can be added");
            return;
        }
        for repair in [Patient::program, Patient::script] {
            let patient = Patient::new();
            let output = repair(&patient, &FIX).output().unwrap();
            let text = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert!(text.contains("10.213.0.0/20 overlaps"), "{text}");
            assert!(
                text.contains("of lo") && text.contains("--subnet"),
                "{text}"
            );
            assert!(!patient.path("net.d/10-cocoon.conflist").exists());
        }
    });
}
