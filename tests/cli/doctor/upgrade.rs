//! `--upgrade`, from a server on this host's own loopback.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::sync::{Arc, Mutex, mpsc};

use super::*;

/// The beginning of what is served, as a firmware of two pages.
const FIRMWARE: &[u8] = &[0x5a; 8192];

/// A script in the place of each plugin.
const PLUGIN: &[u8] = b"#!/bin/sh\nexit 0\n";

#[derive(Clone)]
enum Served {
    Whole(Vec<u8>),
    /// So many bytes of it, though all were promised.
    Cut(Vec<u8>, usize),
    /// The beginning; the rest never comes.
    Stalled,
}

/// A server of files, in the network namespace of the thread that starts it.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    /// Says when a download has begun that will not end.
    stalled: mpsc::Receiver<()>,
}

impl Server {
    fn start(files: HashMap<&'static str, Served>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (said, stalled) = mpsc::channel();
        let log = Arc::clone(&asked);
        // It ends with the test's process.
        std::thread::spawn(move || {
            let mut waiting = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let path = asked_path(&mut stream);
                log.lock().unwrap().push(path.clone());
                let head = |length| format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                // A client that has seen enough may be gone.
                let _ = match files.get(path.as_str()) {
                    None => {
                        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                    }
                    Some(Served::Whole(body)) => {
                        stream.write_all(&[head(body.len()).as_bytes(), body].concat())
                    }
                    Some(Served::Cut(body, at)) => {
                        stream.write_all(&[head(body.len()).as_bytes(), &body[..*at]].concat())
                    }
                    Some(Served::Stalled) => {
                        let sent = stream.write_all(&[head(9999).as_bytes(), FIRMWARE].concat());
                        said.send(()).unwrap();
                        waiting.push(stream);
                        sent
                    }
                };
            }
        });
        Self {
            address,
            asked,
            stalled,
        }
    }

    /// How often something was fetched.
    fn fetched(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn asked_path(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    head.split(' ').nth(1).unwrap().to_owned()
}

/// An archive of two plugins, a licence, and something that is in no plugin's place.
fn archive() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, mode, content) in [
        ("./bridge", 0o755, PLUGIN),
        ("./host-local", 0o755, PLUGIN),
        ("./LICENSE", 0o644, b"Apache"),
        ("./deep/bridge", 0o755, b"not this one"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_cksum();
        tar.append_data(&mut header, name, content).unwrap();
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar.into_inner().unwrap()).unwrap();
    gzip.finish().unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    cocoon::units::Digest::of(bytes).hex()
}

/// A manifest of these files: where they go, their path on the server, their digest.
fn manifest(patient: &Patient, server: &Server, files: &[(&str, &str, String)]) -> String {
    let entries = files.iter().map(|(install, path, sha256)| {
        format!(
            "[[file]]\nname = \"{install}\"\ninstall = \"{install}\"\narch = \"{}\"\nversion = \"v1\"\n\
             license = \"none\"\norigin = \"here\"\nurl = \"http://{}{path}\"\nsha256 = \"{sha256}\"\nfound = []\n",
            std::env::consts::ARCH,
            server.address
        )
    });
    patient
        .cocoon
        .file("manifest.toml", &entries.collect::<String>())
}

/// Runs `test` on a private host that has a loopback, for the program and for the script.
#[expect(clippy::print_stdout, reason = "it says why a test did not run")]
fn by_both(test: impl Fn(Doctor) + Send + Sync) {
    in_private_host(|| {
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        if !up.is_ok_and(|up| up.success()) {
            println!("SKIPPED: there is no ip to bring up the loopback");
            return;
        }
        for doctor in [Patient::program as Doctor, Patient::script] {
            shut();
            test(doctor);
        }
    });
}

/// Both files as they should be.
fn good() -> Server {
    Server::start(HashMap::from([
        ("/firmware", Served::Whole(FIRMWARE.to_vec())),
        ("/plugins", Served::Whole(archive())),
    ]))
}

fn both_files() -> [(&'static str, &'static str, String); 2] {
    [
        ("firmware", "/firmware", sha256(FIRMWARE)),
        ("cni-plugins", "/plugins", sha256(&archive())),
    ]
}

/// No file, and no part of one, where files are installed.
fn assert_nothing_installed(patient: &Patient) {
    for path in patient.files().keys() {
        let text = path.display().to_string();
        let is_installed = text.contains("/bin/") || text.contains("/firmware/");
        assert!(!is_installed, "{text} was left");
    }
}

#[test]
fn root_files_of_the_right_digest_are_installed_once() {
    by_both(|repair| {
        let (patient, server) = (Patient::new(), good());
        // The small firmware lies beside the other; here they are the same file.
        let small = ("small-firmware", "/firmware", sha256(FIRMWARE));
        let files = [both_files().as_slice(), &[small]].concat();
        let manifest = manifest(&patient, &server, &files);
        let args = [
            "--upgrade",
            "--subnet=10.213.0.0/20",
            "--manifest",
            &manifest,
        ];
        let output = repair(&patient, &args).output().unwrap();
        let text = stderr(&output);
        assert!(
            repaired(&output).iter().any(|name| name == "firmware"),
            "{text}"
        );
        assert!(
            repaired(&output).iter().any(|name| name == "cni-plugins"),
            "{text}"
        );
        for name in ["CLOUDHV.fd", "hypervisor-fw"] {
            let installed = fs::read(patient.path("root/firmware").join(name)).unwrap();
            assert!(installed == FIRMWARE, "{name}");
        }
        let mut programs: Vec<_> = fs::read_dir(patient.path("bin"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        programs.sort();
        assert_eq!(programs, ["bridge", "host-local"]);
        let bridge = patient.path("bin/bridge");
        assert_eq!(fs::read(&bridge).unwrap(), PLUGIN);
        assert_eq!(
            bridge.metadata().unwrap().permissions().mode() & 0o777,
            0o755
        );
        let found = json(&patient.program(&["-o", "json"]).output().unwrap());
        assert_eq!(verdict_of(&found, "firmware"), "pass");
        assert_eq!(verdict_of(&found, "cni-plugins"), "pass");

        let (files, fetched) = (patient.files(), server.fetched());
        assert_eq!(fetched, 3);
        let again = repair(&patient, &args).output().unwrap();
        assert_eq!(repaired(&again), [] as [&str; 0], "{}", stderr(&again));
        assert_eq!(server.fetched(), fetched);
        assert!(files == patient.files());
    });
}

#[test]
fn root_what_is_not_the_right_file_is_refused_and_nothing_is_left() {
    by_both(|repair| {
        let whole = archive();
        let half = whole.len() / 2;
        let server = Server::start(HashMap::from([
            ("/other", Served::Whole(b"another file".to_vec())),
            ("/cut", Served::Cut(whole.clone(), half)),
        ]));
        for (install, path, says) in [
            ("firmware", "/other", "is not the file that is wanted"),
            ("cni-plugins", "/other", "is not the file that is wanted"),
            ("cni-plugins", "/cut", "/cut"),
            ("firmware", "/none", "/none"),
        ] {
            let patient = Patient::new();
            let files = [(install, path, sha256(&whole))];
            let manifest = manifest(&patient, &server, &files);
            let args = ["--upgrade", "--manifest", &manifest];
            let output = repair(&patient, &args).output().unwrap();
            let text = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert!(text.contains("error: ") && text.contains(says), "{text}");
            assert!(
                !repaired(&output).iter().any(|name| name == install),
                "{text}"
            );
            assert_nothing_installed(&patient);
        }
    });
}

#[test]
fn root_a_file_of_the_users_own_is_kept_and_one_of_cocoons_is_renewed() {
    by_both(|repair| {
        let (patient, server) = (Patient::new(), good());
        fs::create_dir(patient.path("bin")).unwrap();
        fs::write(patient.path("bin/bridge"), "mine").unwrap();
        fs::create_dir_all(patient.path("root/firmware")).unwrap();
        fs::write(patient.path("root/firmware/CLOUDHV.fd"), "mine").unwrap();
        let manifest = manifest(&patient, &server, &both_files());
        let args = ["--upgrade", "--manifest", &manifest];
        let output = repair(&patient, &args).output().unwrap();
        let text = stderr(&output);
        assert_eq!(text.matches("kept ").count(), 2, "{text}");
        for own in ["bin/bridge", "root/firmware/CLOUDHV.fd"] {
            assert_eq!(fs::read_to_string(patient.path(own)).unwrap(), "mine");
        }
        assert_eq!(fs::read(patient.path("bin/host-local")).unwrap(), PLUGIN);
    });
}

#[test]
fn root_a_new_version_takes_the_place_of_what_cocoon_installed() {
    by_both(|repair| {
        let patient = Patient::new();
        let server = Server::start(HashMap::from([
            ("/old", Served::Whole(b"old".to_vec())),
            ("/firmware", Served::Whole(FIRMWARE.to_vec())),
        ]));
        let mut texts = Vec::new();
        for (path, content) in [("/old", &b"old"[..]), ("/firmware", FIRMWARE)] {
            let files = [("firmware", path, sha256(content))];
            let manifest = manifest(&patient, &server, &files);
            let args = ["--upgrade", "--manifest", &manifest];
            texts.push(stderr(&repair(&patient, &args).output().unwrap()));
        }
        let installed = fs::read(patient.path("root/firmware/CLOUDHV.fd")).unwrap();
        // The script keeps no record of what it has installed, so all that is there is its user's.
        let has_record = patient.path("root/firmware/installed.json").exists();
        assert_eq!(installed == FIRMWARE, has_record, "{texts:?}");
        assert_eq!(texts[1].contains("kept "), !has_record, "{texts:?}");
    });
}

/// Starts an upgrade that waits for the rest of a file, and ends it by `signal`.
fn end_by(
    signal: rustix::process::Signal,
    doctor: Doctor,
    patient: &Patient,
    install: &str,
) -> Output {
    let server = Server::start(HashMap::from([("/stalled", Served::Stalled)]));
    let files = [(install, "/stalled", sha256(FIRMWARE))];
    let manifest = manifest(patient, &server, &files);
    let mut command = doctor(patient, &["--upgrade", "--manifest", &manifest]);
    // As at a terminal, what it runs gets the signal, too.
    let quiet = command.process_group(0).stdout(Stdio::null());
    let child = quiet.stderr(Stdio::piped()).spawn().unwrap();
    server.stalled.recv().unwrap();
    let group = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process_group(group, signal).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn root_ctrl_c_leaves_nothing_of_a_download() {
    by_both(|doctor| {
        for install in ["firmware", "cni-plugins"] {
            let patient = Patient::new();
            let output = end_by(rustix::process::Signal::INT, doctor, &patient, install);
            assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
            assert_nothing_installed(&patient);
        }
    });
}

#[test]
fn root_what_a_killed_upgrade_left_goes_with_the_next() {
    by_both(|killed| {
        for next in [Patient::program as Doctor, Patient::script] {
            let patient = Patient::new();
            for install in ["firmware", "cni-plugins"] {
                end_by(rustix::process::Signal::KILL, killed, &patient, install);
            }
            let server = good();
            let manifest = manifest(&patient, &server, &both_files());
            let output = next(&patient, &["--upgrade", "--manifest", &manifest]).output();
            let text = stderr(&output.unwrap());
            assert_eq!(text.matches("installed ").count(), 2, "{text}");
            for path in patient.files().keys() {
                assert!(
                    !path.display().to_string().contains("/.tmp-"),
                    "{path:?} was left"
                );
            }
        }
    });
}

#[test]
fn root_a_full_disk_is_told_and_nothing_is_left() {
    by_both(|repair| {
        let (patient, server) = (Patient::new(), good());
        let folder = patient.path("root/firmware");
        fs::create_dir_all(&folder).unwrap();
        let (none, full) = (nix::mount::MsFlags::empty(), Some("size=4k"));
        nix::mount::mount(Some("tmpfs"), &folder, Some("tmpfs"), none, full).unwrap();
        let manifest = manifest(&patient, &server, &both_files()[..1]);
        let args = ["--upgrade", "--manifest", &manifest];
        let output = repair(&patient, &args).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        // The script says what curl says.
        let told = ["hint: the disk is full", "curl: (23) "];
        assert!(
            told.iter().any(|sentence| text.contains(sentence)),
            "{text}"
        );
        assert_nothing_installed(&patient);
    });
}

#[test]
fn root_a_manifest_that_is_none_is_refused_before_anything_is_done() {
    if !is_root() {
        println!("SKIPPED: it needs root");
        return;
    }
    let patient = Patient::new();
    let bad = patient.cocoon.file("bad.toml", "[[file]]\nname = \"x\"\n");
    let before = patient.files();
    for (file, says) in [
        ("/nowhere.toml", "/nowhere.toml"),
        (&bad, "the manifest is not one"),
    ] {
        let output = patient
            .program(&["--upgrade", "--manifest", file])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
        assert!(before == patient.files());
    }
}
