//! Manifests, and what they find of damage.

use super::*;
use crate::units::{ByteSize, Mac};
use crate::vm::config::{Hugepages, Layers, Root};
use crate::vm::spec::{self, Boot, Console, Cpus, Disk, DiskFormat, Memory, Nic, Paths, Vsock};

pub(crate) fn config() -> VmConfig {
    let layer = Digest::of(b"layer");
    VmConfig {
        engine: EngineName::Micro,
        cpu: 1,
        memory: ByteSize::from_mib(256),
        storage: ByteSize::from_gib(1),
        nics: 1,
        hugepages: Hugepages::Auto,
        dns: vec![],
        image: "docker.io/library/tiny:latest".into(),
        image_digest: Digest::of(b"image"),
        root: Root::Layers(Layers {
            layers: vec![layer],
            kernel: layer,
            initrd: layer,
        }),
    }
}

pub(crate) fn spec() -> VmSpec {
    let disk = |path: &str, readonly, serial: &str| Disk {
        path: path.into(),
        readonly,
        format: DiskFormat::Raw,
        serial: serial.into(),
        queues: 1,
    };
    VmSpec {
        version: spec::VERSION,
        id: "00000000000000ff".parse().unwrap(),
        name: "web".parse().unwrap(),
        engine: EngineName::Micro,
        cpus: Cpus {
            boot: 1,
            added: 0,
            max: 1,
        },
        memory: Memory {
            size: ByteSize::from_mib(256),
            added: ByteSize::default(),
            max: ByteSize::default(),
            hugepages: false,
            balloon: None,
        },
        boot: Boot::Direct {
            kernel: "/k".into(),
            initrd: "/i".into(),
            cmdline: "quiet".into(),
        },
        disks: vec![
            disk("/blobs/a.erofs", true, "cocoon-layer0"),
            disk("/vms/ff/cow.raw", false, "cocoon-cow"),
        ],
        nics: vec![Nic {
            tap: "tap0".into(),
            mac: "02:00:00:00:00:01".parse::<Mac>().unwrap(),
            queue_pairs: 1,
            mtu: 1500,
        }],
        netns: None,
        console: Console::Virtio,
        watchdog: true,
        saved: None,
        on_reset: spec::OnReset::default(),
        vsock: Some(Vsock {
            cid: 3,
            socket: "/v".into(),
        }),
        paths: Paths {
            root_dir: "/r".into(),
            alive_lock: "/l".into(),
            control_socket: "/c".into(),
            console_socket: "/d".into(),
            api_socket: "/a".into(),
            console_log: "/e".into(),
            vmm_log: "/f".into(),
        },
    }
}

/// A snapshot with a state, a memory of some MiB that is mostly hole, and a disk.
pub(crate) fn snapshot(dir: &Path) -> (SnapshotFolder, Manifest) {
    use std::os::unix::fs::FileExt;
    let folder = SnapshotFolder::new(dir);
    folder.prepare().unwrap();
    fs::write(folder.vm().join("state"), b"registers").unwrap();
    for (path, size) in [
        (folder.vm().join("memory"), 8 << 20),
        (folder.disks().join("cow.raw"), 64 << 20),
    ] {
        let file = File::create(path).unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(&[5; 10_000], size / 2).unwrap();
    }
    let manifest = Manifest {
        version: VERSION,
        id: "00000000000000aa".parse().unwrap(),
        name: Some("nightly".parse().unwrap()),
        description: "before the upgrade".into(),
        created_at: Timestamp::UNIX_EPOCH,
        vm: spec().id,
        vm_name: spec().name,
        engine: EngineName::Micro,
        engine_version: "0.1.0".into(),
        cpu: HostCpu::of_this_host().unwrap(),
        agent: None,
        first_booted: None,
        config: config(),
        spec: spec(),
        disks: vec![SavedDisk {
            serial: "cocoon-cow".into(),
            file: "disks/cow.raw".into(),
        }],
        files: describe(&folder, &|| true).unwrap(),
    };
    manifest.write(&folder).unwrap();
    (folder, manifest)
}

#[test]
fn a_manifest_reads_back_as_written_and_finds_its_files_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, manifest) = snapshot(dir.path());
    assert_eq!(Manifest::read(&folder).unwrap(), manifest);
    let paths: Vec<_> = manifest.files.iter().map(|file| &*file.path).collect();
    assert_eq!(paths, ["disks/cow.raw", "vm/memory", "vm/state"]);
    for depth in [Depth::Quick, Depth::Full] {
        manifest.check(&folder, depth, &|| true).unwrap();
    }
}

#[test]
fn each_kind_of_damage_gets_its_sentence() {
    use std::os::unix::fs::FileExt;
    type Harm = fn(&SnapshotFolder);
    fn open(path: PathBuf) -> File {
        File::options().write(true).open(path).unwrap()
    }
    let cut: Harm = |folder| open(folder.vm().join("memory")).set_len(1 << 20).unwrap();
    let grown: Harm = |folder| open(folder.vm().join("state")).set_len(10).unwrap();
    let flipped: Harm = |folder| {
        open(folder.vm().join("state"))
            .write_all_at(b"R", 0)
            .unwrap()
    };
    let missing: Harm = |folder| fs::remove_file(folder.disks().join("cow.raw")).unwrap();
    let replaced: Harm = |folder| {
        fs::remove_file(folder.vm().join("state")).unwrap();
        std::os::unix::fs::symlink("/dev/null", folder.vm().join("state")).unwrap();
    };
    let flipped_memory: Harm = |folder| {
        let memory = open(folder.vm().join("memory"));
        memory.write_all_at(&[4], (4 << 20) + 9).unwrap();
    };
    let filled_hole: Harm = |folder| {
        let disk = open(folder.disks().join("cow.raw"));
        disk.write_all_at(&[1], 60 << 20).unwrap();
    };
    for (harm, depth, file, sentence) in [
        (
            cut,
            Depth::Quick,
            "vm/memory",
            "is 1048576 bytes long and should be 8388608",
        ),
        (
            grown,
            Depth::Quick,
            "vm/state",
            "is 10 bytes long and should be 9",
        ),
        (flipped, Depth::Quick, "vm/state", "its digest is wrong"),
        (missing, Depth::Quick, "disks/cow.raw", "is missing"),
        (replaced, Depth::Quick, "vm/state", "is not a regular file"),
        (
            flipped_memory,
            Depth::Full,
            "vm/memory",
            "its digest is wrong",
        ),
        (
            filled_hole,
            Depth::Full,
            "disks/cow.raw",
            "its digest is wrong",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (folder, manifest) = snapshot(dir.path());
        harm(&folder);
        let error = manifest
            .check(&folder, depth, &|| true)
            .unwrap_err()
            .to_string();
        assert!(error.contains(file) && error.contains(sentence), "{error}");
    }
}

#[test]
fn a_damaged_or_foreign_manifest_gets_its_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, manifest) = snapshot(dir.path());
    let whole = String::from_utf8(manifest.to_bytes(&folder.manifest()).unwrap()).unwrap();
    let sealed = |change: fn(&mut Manifest)| {
        let mut other = manifest.clone();
        change(&mut other);
        String::from_utf8(other.to_bytes(&folder.manifest()).unwrap()).unwrap()
    };
    for (text, sentence) in [
        (whole.replace("before", "bef0re"), "its digest is wrong"),
        (whole[..whole.len() / 2].to_owned(), "is no manifest"),
        ("{}".to_owned(), "is no manifest"),
        (sealed(|m| m.version = 7), "has version 7"),
        (
            sealed(|m| m.files[0].path = "vm/../../x".into()),
            "names the file \"vm/../../x\"",
        ),
        (
            sealed(|m| m.files[0].path = "vm/..".into()),
            "names the file",
        ),
        (
            sealed(|m| m.files[0].path = "/etc/passwd".into()),
            "names the file",
        ),
        (
            sealed(|m| m.files[1].path = m.files[2].path.clone()),
            "names the file",
        ),
        (
            sealed(|m| m.disks[0].file = "disks/other".into()),
            "names the file",
        ),
    ] {
        fs::write(folder.manifest(), &text).unwrap();
        let error = Manifest::read(&folder).unwrap_err().to_string();
        assert!(error.contains("manifest.json"), "{error}");
        assert!(error.contains(sentence), "{error} lacks {sentence}");
    }
    fs::remove_file(folder.manifest()).unwrap();
    let error = Manifest::read(&folder).unwrap_err().to_string();
    assert!(error.contains("manifest.json is missing"), "{error}");
}
