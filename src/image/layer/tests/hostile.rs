//! Archives that lie.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use super::super::{Compression, LayerError, LayerPaths, Limits, convert};
use super::attacks::{ACCEPTED, attacks};
use super::support::*;
use crate::image::fixture::{Cost, chain, is_alone};

/// What a conversion in `folder` says: its error with all causes, or that there is none. What it made is
/// looked at and removed.
fn refusal(tar: &[u8], compression: Compression, limits: &Limits, folder: &Path) -> String {
    let [blob, kernel, initrd] = ["blob", "kernel", "initrd"].map(|name| folder.join(name));
    let paths = LayerPaths {
        blob: &blob,
        kernel: &kernel,
        initrd: &initrd,
    };
    let converted = convert(&mut &tar[..], compression, limits, &paths);
    match converted.and_then(|converted| converted.finish(UUID)) {
        Ok(report) => {
            fsck(&blob);
            fs::remove_file(&blob).unwrap();
            for (path, is_there) in [(kernel, report.has_kernel), (initrd, report.has_initrd)] {
                assert_eq!(fs::remove_file(&path).is_ok(), is_there, "{path:?}");
            }
            ACCEPTED.to_owned()
        }
        Err(error) => chain(&error),
    }
}

/// Processor time of one attack; none of them needs a second.
const TIME: Duration = Duration::from_secs(10);

/// Memory of one attack, in bytes: buffers, one extension header, and what an image is written with.
const MEMORY: u64 = 64 << 20;

#[test]
fn every_attack_is_refused_by_name_within_bounds_and_leaves_nothing() {
    if !is_alone(
        module_path!(),
        "every_attack_is_refused_by_name_within_bounds_and_leaves_nothing",
    ) {
        return;
    }
    let attacks = attacks();
    assert!(attacks.len() > 120, "{}", attacks.len());
    let mut wrong = Vec::new();
    for attack in attacks {
        for compression in BOTH {
            let before = Cost::now();
            let outer = tempfile::tempdir().unwrap();
            let inner = outer.path().join("inner");
            fs::create_dir(&inner).unwrap();
            fs::write(outer.path().join("mine"), "mine").unwrap();
            let said = refusal(&attack.tar, compression, &attack.limits, &inner);
            let what = attack.what;
            let holds = match attack.sentence {
                ACCEPTED => said == ACCEPTED,
                sentence => said != ACCEPTED && said.contains(sentence),
            };
            if !holds || said.contains(char::is_control) {
                wrong.push(format!("{what}: {said:?} is not {:?}", attack.sentence));
            }
            assert_eq!(fs::read_dir(&inner).unwrap().count(), 0, "{what}");
            assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 2, "{what}");
            assert_eq!(fs::read(outer.path().join("mine")).unwrap(), b"mine");
            before.assert_within(TIME, MEMORY, what);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_stream_cut_anywhere_within_an_entry_is_refused() {
    let tar = TarBuilder::new()
        .file("a", &noise(700, 1))
        .pax(&[(b"path", b"long")])
        .file("b", &noise(100, 1))
        .cut();
    for cut in (1..tar.len()).step_by(37) {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits::default();
        let said = refusal(&tar[..cut], Compression::Lz4, &limits, dir.path());
        // After the first entry there may be an end.
        let is_boundary = cut == 512 + 1024;
        assert_eq!(said.contains("ends within"), !is_boundary, "{cut}: {said}");
    }
}

#[test]
fn existing_files_are_not_touched() {
    let tar = TarBuilder::new().file("vmlinuz", b"new").end();
    for taken in ["blob", "kernel"] {
        let dir = tempfile::tempdir().unwrap();
        let [blob, kernel, initrd] = ["blob", "kernel", "initrd"].map(|name| dir.path().join(name));
        std::fs::write(dir.path().join(taken), "mine").unwrap();
        let paths = LayerPaths {
            blob: &blob,
            kernel: &kernel,
            initrd: &initrd,
        };
        let result = convert(&mut &tar[..], Compression::None, &Limits::default(), &paths);
        assert!(matches!(result, Err(LayerError::Create { .. })));
        assert_eq!(std::fs::read(dir.path().join(taken)).unwrap(), b"mine");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

/// Fails after some bytes.
struct Breaking<'a>(&'a [u8]);

impl Read for Breaking<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Err(io::Error::from(io::ErrorKind::ConnectionReset));
        }
        self.0.read(buffer)
    }
}

#[test]
fn a_failing_stream_is_reported_with_its_cause_and_leaves_nothing() {
    let tar = TarBuilder::new().file("vmlinuz", &noise(100_000, 1)).end();
    for cut in [0, 100, 512, 50_000, tar.len()] {
        let dir = tempfile::tempdir().unwrap();
        let [blob, kernel, initrd] = ["blob", "kernel", "initrd"].map(|name| dir.path().join(name));
        let paths = LayerPaths {
            blob: &blob,
            kernel: &kernel,
            initrd: &initrd,
        };
        let mut stream = Breaking(&tar[..cut]);
        let result = convert(&mut stream, Compression::None, &Limits::default(), &paths);
        match result {
            Err(LayerError::Read { source, .. }) => {
                assert_eq!(source.kind(), io::ErrorKind::ConnectionReset, "{cut}");
            }
            other => panic!("{cut}: {other:?}"),
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
