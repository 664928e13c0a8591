//! `snapshot export`: a snapshot for another host, as one file or a folder.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use super::staging::unless_interrupted;
use super::{Error, Host, require_root, snapshots};
use crate::snapshot::manifest::Depth;
use crate::snapshot::{Manifest, archive};
use crate::store::atomic::TEMP_PREFIX;
use crate::store::layout::SnapshotFolder;
use crate::sys::interrupt::Interrupt;
use crate::sys::{failpoint, reflink};
use crate::units::SnapshotId;

/// Where a snapshot goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An archive of this name; one that is there is replaced when the new one is whole.
    File(PathBuf),
    /// A folder, which is empty or does not exist.
    Folder(PathBuf),
    /// An archive on standard output.
    Stream,
}

impl Target {
    /// What a user means by `path`: `-` is standard output, a folder that exists or a path that ends in
    /// a slash is a folder.
    pub fn of(path: &Path) -> Self {
        let is_folder = path.as_os_str().as_encoded_bytes().ends_with(b"/") || path.is_dir();
        match path.to_str() {
            Some("-") => Self::Stream,
            _ if is_folder => Self::Folder(path.to_owned()),
            _ => Self::File(path.to_owned()),
        }
    }
}

/// Checks a snapshot, and writes it to `target`.
///
/// # Errors
/// The snapshot is damaged, or the target cannot be written; nothing of it is left then, but what a
/// stream has taken already.
pub fn export(
    host: &Host,
    id: SnapshotId,
    target: &Target,
    interrupt: &Interrupt,
) -> Result<(), Error> {
    require_root()?;
    let (_held, _) = snapshots::open(host, id)?;
    let folder = host.layout.snapshot(id).folder();
    let go_on = || !interrupt.is_raised();
    let exported = Manifest::read(&folder)
        .and_then(|manifest| {
            manifest.check(&folder, Depth::Full, &go_on)?;
            Ok(manifest)
        })
        .map_err(Error::from)
        .and_then(|manifest| match target {
            Target::File(path) => write_file(&folder, &manifest, path, &go_on),
            Target::Folder(path) => write_folder(&folder, &manifest, path, &go_on),
            Target::Stream => {
                let out = BufWriter::new(io::stdout().lock());
                Ok(archive::write(&folder, &manifest, out, &go_on)?)
            }
        });
    exported.map_err(|error| unless_interrupted(error, interrupt.is_raised()))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        action,
        path,
        source,
    }
}

fn write_file(
    folder: &SnapshotFolder,
    manifest: &Manifest,
    path: &Path,
    go_on: &dyn Fn() -> bool,
) -> Result<(), Error> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let fill = |file: &mut File| {
        failpoint::reach("export: file made");
        archive::write(folder, manifest, BufWriter::new(&mut *file), go_on)?;
        file.sync_all().map_err(failed("sync", path))?;
        failpoint::reach("export: archive whole");
        Ok::<_, Error>(())
    };
    let mut staged = tempfile::Builder::new();
    staged.prefix(TEMP_PREFIX);
    let persisted = match without_a_name(parent) {
        Ok(mut file) => {
            fill(&mut file)?;
            let named = staged.make_in(parent, |path| give_name(&file, path));
            named.and_then(|named| Ok(named.persist(path)?)).map(drop)
        }
        // Not every file system can, NFS for one; if it is anything else, this says what.
        Err(_) => {
            let mut named = staged.tempfile_in(parent).map_err(failed("write", path))?;
            fill(named.as_file_mut())?;
            named.persist(path).map(drop).map_err(io::Error::from)
        }
    };
    persisted.map_err(failed("write", path))?;
    failpoint::reach("export: archive in place");
    Ok(())
}

/// A file that goes with its last descriptor: of an export that is killed, nothing is left, where no `gc`
/// would look for it.
fn without_a_name(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)?.into())
}

fn give_name(file: &File, path: &Path) -> io::Result<()> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(
        CWD,
        open,
        CWD,
        path,
        AtFlags::SYMLINK_FOLLOW,
    )?)
}

fn write_folder(
    from: &SnapshotFolder,
    manifest: &Manifest,
    path: &Path,
    go_on: &dyn Fn() -> bool,
) -> Result<(), Error> {
    let to = SnapshotFolder::new(path);
    let existed = path.is_dir();
    if existed && fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::NotEmpty(path.to_owned()));
    }
    let copied = copy_files(from, &to, manifest, go_on).and_then(|()| Ok(manifest.write(&to)?));
    if copied.is_err() {
        // What is there is ours: the folder was empty, or did not exist.
        let _ = fs::remove_dir_all(to.vm());
        let _ = fs::remove_dir_all(to.disks());
        if !existed {
            let _ = fs::remove_dir(path);
        }
    }
    copied
}

/// Copies every file of a snapshot, and leaves the manifest to the caller.
///
/// # Errors
/// A file cannot be copied, or `go_on` said no.
pub(super) fn copy_files(
    from: &SnapshotFolder,
    to: &SnapshotFolder,
    manifest: &Manifest,
    go_on: &dyn Fn() -> bool,
) -> Result<(), Error> {
    to.prepare()?;
    for file in &manifest.files {
        let place = file.place(to);
        reflink::copy(&file.place(from), &place, go_on).map_err(failed("copy", &place))?;
        failpoint::reach("snapshot: file copied");
    }
    Ok(())
}
