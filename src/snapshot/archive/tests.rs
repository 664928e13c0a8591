//! Archives: whole ones round trip, others are refused.

use super::*;
use crate::snapshot::manifest::Depth;
use crate::snapshot::manifest::tests::snapshot;
use std::os::unix::fs::MetadataExt;

fn export(folder: &SnapshotFolder, manifest: &Manifest) -> Vec<u8> {
    let mut archive = Vec::new();
    write(folder, manifest, &mut archive, &|| true).unwrap();
    archive
}

fn import(archive: &[u8], into: &Path) -> Result<Manifest, ArchiveError> {
    let folder = SnapshotFolder::new(into);
    read(archive, &|| true, |_| {
        folder.prepare().unwrap();
        Ok(folder.clone())
    })
}

/// An archive with these entries, whatever they are.
fn archive_of(entries: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
    let mut tar = Builder::new(zstd::Encoder::new(Vec::new(), 0).unwrap());
    for (name, kind, content) in entries {
        let mut header = Header::new_gnu();
        // As `set_path` would refuse some of them.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, *content).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

#[test]
fn a_snapshot_round_trips_with_its_holes() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, manifest) = snapshot(&dir.path().join("from"));
    let archive = export(&folder, &manifest);
    assert!(archive.len() < 64 << 10, "{} bytes", archive.len());
    let into = dir.path().join("into");
    let read = import(&archive, &into).unwrap();
    assert_eq!(read, manifest);
    read.check(&SnapshotFolder::new(&into), Depth::Full, &|| true)
        .unwrap();
    for file in &manifest.files {
        let blocks = |path: PathBuf| path.metadata().unwrap().blocks();
        let room = 64; // Blocks of 512 bytes: what a file system may allocate around a run.
        assert!(
            blocks(into.join(&file.path)) <= blocks(file.place(&folder)) + room,
            "the holes of {} were filled",
            file.path
        );
    }
}

#[test]
fn an_archive_that_is_cut_anywhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, manifest) = snapshot(&dir.path().join("from"));
    let archive = export(&folder, &manifest);
    for cut in [0, 1, 100, archive.len() / 2, archive.len() - 1] {
        let into = tempfile::tempdir().unwrap();
        import(&archive[..cut], into.path()).unwrap_err();
    }
}

#[test]
fn what_the_manifest_does_not_describe_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, mut manifest) = snapshot(&dir.path().join("from"));
    manifest.files.retain(|file| file.path == "vm/state");
    manifest.disks.clear();
    let text = manifest.to_bytes(&folder.manifest()).unwrap();
    let (file, link) = (EntryType::Regular, EntryType::Symlink);
    let first = (MANIFEST, file, text.as_slice());
    let state = ("vm/state", file, &b"registers"[..]);
    assert!(import(&archive_of(&[first, state]), &dir.path().join("good")).is_ok());
    for (entries, sentence) in [
        (vec![], "does not begin with a manifest"),
        (vec![state], "does not begin with a manifest"),
        (vec![(MANIFEST, file, b"{}")], "is no manifest"),
        (vec![first], "lacks vm/state"),
        (vec![first, state, state], "holds \"vm/state\""),
        (vec![first, ("vm/state", link, b"")], "holds \"vm/state\""),
        (
            vec![first, ("vm/state", file, b"regi")],
            "holds \"vm/state\"",
        ),
        (vec![first, ("vm/other", file, b"x")], "holds \"vm/other\""),
        (
            vec![first, ("../escape", file, b"x")],
            "holds \"../escape\"",
        ),
        (
            vec![first, ("/etc/passwd", file, b"x")],
            "holds \"/etc/passwd\"",
        ),
        (vec![first, first], "holds \"manifest.json\""),
    ] {
        let into = tempfile::tempdir().unwrap();
        let error = import(&archive_of(&entries), into.path()).unwrap_err();
        assert!(error.to_string().contains(sentence), "{error}");
    }
}

#[test]
fn neither_way_goes_on_when_told_not_to() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, manifest) = snapshot(dir.path());
    write(&folder, &manifest, Vec::new(), &|| false).unwrap_err();
    let archive = export(&folder, &manifest);
    let begin = |_: &Manifest| Ok::<_, ArchiveError>(folder.clone());
    read(archive.as_slice(), &|| false, begin).unwrap_err();
}
