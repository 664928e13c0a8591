use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::*;
use crate::frame;

const META: Meta = Meta {
    mode: 0o4755,
    mtime: 1,
    mtime_ns: 0,
};

fn to(path: &Path, name: Option<&str>) -> Destination {
    Destination {
        path: path.to_owned(),
        name: name.map(Into::into),
        mode_mask: 0o777,
    }
}

fn receive(bytes: &[u8], destination: Destination) -> Result<Copied, TreeError> {
    Receiver::new(destination).run(&mut &*bytes)
}

fn sent(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    send(path, &mut bytes).unwrap();
    bytes
}

/// Pieces and their bodies as the bytes of a connection.
fn pieces(pieces: &[(Piece, &[u8])]) -> Vec<u8> {
    let frames = pieces
        .iter()
        .map(|(piece, body)| frame::encode(piece, body).unwrap());
    frames.collect::<Vec<_>>().concat()
}

fn end() -> (Piece, &'static [u8]) {
    (Piece::End(Copied::default()), b"")
}

/// source/{file, sub/{run (0751), link -> ../file}, pipe}
fn source(folder: &Path) -> std::path::PathBuf {
    let source = folder.join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::write(source.join("file"), vec![7; 200_000]).unwrap();
    fs::write(source.join("sub/run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(source.join("sub/run"), fs::Permissions::from_mode(0o4751)).unwrap();
    symlink("../file", source.join("sub/link")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, source.join("pipe"), rustix::fs::Mode::RUSR).unwrap();
    fs::set_permissions(source.join("sub"), fs::Permissions::from_mode(0o555)).unwrap();
    source
}

#[test]
fn a_tree_arrives_with_modes_times_and_links() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let target = folder.path().join("target");
    let copied = receive(&sent(&source), to(&target, Some("source"))).unwrap();
    assert_eq!(
        (copied.entries, copied.bytes, copied.skipped),
        (5, 200_010, 1)
    );
    assert_eq!(fs::read(target.join("file")).unwrap(), vec![7; 200_000]);
    assert_eq!(
        fs::read_link(target.join("sub/link")).unwrap(),
        Path::new("../file")
    );
    for name in ["file", "sub", "sub/run"] {
        let (a, b) = (
            source.join(name).metadata().unwrap(),
            target.join(name).metadata().unwrap(),
        );
        assert_eq!(
            (a.mtime(), a.mtime_nsec()),
            (b.mtime(), b.mtime_nsec()),
            "{name}"
        );
        // The bits that make a program run as its owner stay behind.
        assert_eq!(a.mode() & !0o7000, b.mode(), "{name}");
    }
    assert!(!target.join("pipe").exists());
}

/// The table in the documentation of `Destination`.
#[test]
fn a_destination_is_understood_as_cp_does() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("there")).unwrap();
    fs::write(path("old"), "old").unwrap();
    symlink("old", path("link")).unwrap();
    let (file, tree) = (sent(&source.join("sub/run")), sent(&source));
    for (bytes, destination, name, made) in [
        (&file, "there", Some("run"), Some("there/run")),
        (&file, "new", Some("run"), Some("new")),
        (&file, "new/", Some("run"), None),
        (&file, "nowhere/new", Some("run"), None),
        (&file, "link", Some("run"), Some("old")),
        (&file, "old/", Some("run"), None),
        (&tree, "there", Some("tree"), Some("there/tree/sub/run")),
        // Again, over itself.
        (&tree, "there", Some("tree"), Some("there/tree/sub/run")),
        (&tree, "there", None, Some("there/sub/run")),
        (&tree, "fresh", Some("tree"), Some("fresh/sub/run")),
        (&tree, "fresh2/", None, Some("fresh2/sub/run")),
        (&tree, "old", Some("tree"), None),
        (&tree, "there", Some("../out"), None),
    ] {
        let result = receive(bytes, to(&path(destination), name));
        match made {
            Some(made) => {
                result.unwrap();
                assert_eq!(
                    fs::read(path(made)).unwrap(),
                    b"#!/bin/sh\n",
                    "{destination} {name:?}"
                );
            }
            None => drop(result.unwrap_err()),
        }
    }
    assert!(path("link").is_symlink());
    assert!(!path("new").is_dir() && !path("out").exists());
}

#[test]
fn a_hostile_sender_stays_in_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let inside = folder.path().join("inside");
    fs::create_dir(&inside).unwrap();
    let through = format!("door\0{}", outside.display());
    let to_secret = format!("door\0{}/secret", outside.display());
    let folder_piece = |name: &'static [u8]| (Piece::Folder(META), name);
    let file = |name: &'static [u8]| (Piece::File(META), name);
    let data = (Piece::Data, b"owned".as_slice());
    let close = (Piece::Close, b"".as_slice());
    let nested: Vec<_> = (0..=DEPTH_MAX).map(|_| folder_piece(b"d")).collect();
    let rows: Vec<Vec<(Piece, &[u8])>> = vec![
        vec![
            folder_piece(b"top"),
            file(b"../outside/secret"),
            data.clone(),
        ],
        vec![folder_piece(b"top"), file(b".."), data.clone()],
        vec![folder_piece(b"top"), file(b""), data.clone()],
        vec![folder_piece(b"top"), file(b"/etc/passwd2"), data.clone()],
        vec![
            folder_piece(b"top"),
            folder_piece(b".."),
            file(b"new"),
            data.clone(),
        ],
        vec![
            folder_piece(b"top"),
            (Piece::Link(META), through.as_bytes()),
            folder_piece(b"door"),
            file(b"new"),
        ],
        vec![folder_piece(b"top"), (Piece::Link(META), b"../x\0y")],
        vec![folder_piece(b"top"), (Piece::Link(META), b"no target")],
        // Pieces in no order.
        vec![data.clone()],
        vec![close.clone()],
        vec![end()],
        vec![file(b"a"), end()],
        vec![file(b"a"), file(b"b")],
        vec![file(b"a"), close.clone(), file(b"b")],
        vec![folder_piece(b"top"), end()],
        nested,
    ];
    for row in &rows {
        let result = receive(&pieces(row), to(&inside, Some("top")));
        assert!(
            !matches!(result, Err(TreeError::Frame(_)) | Ok(_)),
            "{row:?}: {result:?}"
        );
    }
    // A file that takes the place of a link does not go through it.
    let row = [
        folder_piece(b"top"),
        (Piece::Link(META), to_secret.as_bytes()),
        file(b"door"),
        data.clone(),
        close.clone(),
        close.clone(),
        end(),
    ];
    receive(&pieces(&row), to(&inside, Some("fine"))).unwrap();
    assert_eq!(fs::read(inside.join("fine/door")).unwrap(), b"owned");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
}

#[test]
fn a_sender_that_gives_up_is_believed() {
    let folder = tempfile::tempdir().unwrap();
    let failure = Failure::new(crate::protocol::FailureKind::Failed, "disk\x1b[2J gone");
    let bytes = pieces(&[(Piece::Failed(failure), b"")]);
    let error = receive(&bytes, to(folder.path(), Some("x"))).unwrap_err();
    assert_eq!(error.to_string(), "the other side failed: disk [2J gone");
    let error = receive(&bytes[..9], to(folder.path(), Some("x"))).unwrap_err();
    assert!(
        matches!(error, TreeError::Frame(FrameError::Cut)),
        "{error}"
    );
}
