//! `snapshot import`: an exported snapshot becomes one of this host's.
//!
//! ```text
//! manifest ─▶ image here? ─▶ row, name, pins ─▶ files ─▶ all digests ─▶ publish
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::staging::{Staging, unless_interrupted};
use super::{Error, Host, create, export, require_root};
use crate::snapshot::manifest::Depth;
use crate::snapshot::records::Reservation;
use crate::snapshot::{Manifest, archive};
use crate::store::layout::SnapshotFolder;
use crate::sys::failpoint;
use crate::sys::interrupt::Interrupt;
use crate::units::{SnapshotId, SnapshotName};

/// Where a snapshot comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An archive.
    File(PathBuf),
    /// A folder with a manifest.
    Folder(PathBuf),
    /// An archive on standard input.
    Stream,
}

impl Source {
    /// What a user means by `path`: `-` is standard input.
    pub fn of(path: &Path) -> Self {
        match path.to_str() {
            Some("-") => Self::Stream,
            _ if path.is_dir() => Self::Folder(path.to_owned()),
            _ => Self::File(path.to_owned()),
        }
    }
}

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where it comes from.
    pub source: Source,
    /// The name, or that which it had.
    pub name: Option<SnapshotName>,
    /// The description, or that which it had.
    pub description: Option<String>,
}

/// Imports a snapshot under a new id.
///
/// # Errors
/// It is damaged, its image is not on this host, its name is taken, or the disk is full; nothing of it
/// is left then.
pub fn import(host: &Host, request: &Request, interrupt: &Interrupt) -> Result<SnapshotId, Error> {
    require_root()?;
    let mut staging = None;
    let filled = fill(host, request, &mut staging, interrupt);
    match (filled, staging) {
        (Ok(manifest), Some(staging)) => staging.finish(&manifest),
        (Err(error), staging) => {
            let error = unless_interrupted(error, interrupt.is_raised());
            let failures = staging.map(Staging::discard).unwrap_or_default();
            Err(error.and_not_undone(failures))
        }
        // A source that was read has had its manifest read, upon which it is staged.
        (Ok(_), None) => Err(archive::ArchiveError::NoManifest.into()),
    }
}

/// Reserves the snapshot when its manifest is known, fills its folder, and checks all of it.
fn fill<'a>(
    host: &'a Host,
    request: &Request,
    staging: &mut Option<Staging<'a>>,
    interrupt: &Interrupt,
) -> Result<Manifest, Error> {
    let go_on = || !interrupt.is_raised();
    let mut begin = |manifest: &Manifest| -> Result<SnapshotFolder, Error> {
        let begun = stage(host, request, manifest)?;
        let folder = begun.folder().clone();
        *staging = Some(begun);
        Ok(folder)
    };
    let mut manifest = match &request.source {
        Source::Stream => archive::read(io::stdin().lock(), &go_on, begin)?,
        Source::File(path) => archive::read(open(path)?, &go_on, begin)?,
        Source::Folder(path) => {
            let from = SnapshotFolder::new(path);
            let manifest = Manifest::read(&from)?;
            manifest.check(&from, Depth::Quick, &go_on)?;
            export::copy_files(&from, &begin(&manifest)?, &manifest, &go_on)?;
            manifest
        }
    };
    if let Some(staging) = staging {
        manifest.check(staging.folder(), Depth::Full, &go_on)?;
        failpoint::reach("import: files checked");
        manifest.id = staging.id();
    }
    manifest.name = name(request, &manifest);
    if let Some(description) = &request.description {
        manifest.description.clone_from(description);
    }
    Ok(manifest)
}

fn open(path: &Path) -> Result<impl Read + use<>, Error> {
    File::open(path).map_err(|source| Error::File {
        action: "open",
        path: path.to_owned(),
        source,
    })
}

fn name(request: &Request, manifest: &Manifest) -> Option<SnapshotName> {
    request.name.clone().or_else(|| manifest.name.clone())
}

fn stage<'a>(host: &'a Host, request: &Request, manifest: &Manifest) -> Result<Staging<'a>, Error> {
    let description = request.description.as_ref();
    let begun = Staging::begin(
        host,
        &Reservation {
            name: name(request, manifest).as_ref(),
            description: description.unwrap_or(&manifest.description),
            vm: manifest.vm,
            vm_name: &manifest.vm_name,
            config: &manifest.config,
            created_at: manifest.created_at,
        },
    )?;
    // With the pins in place, what is here stays here.
    match check_image(host, manifest) {
        Ok(()) => Ok(begun),
        Err(error) => Err(error.and_not_undone(begun.discard())),
    }
}

/// Refuses a snapshot whose image is not, or not whole, on this host.
fn check_image(host: &Host, manifest: &Manifest) -> Result<(), Error> {
    let config = &manifest.config;
    let mut files = create::image_files(host, config).into_iter();
    match files.find(|path| !path.is_file()) {
        None => Ok(()),
        Some(path) => Err(Error::ImageAbsent {
            image: config.image.clone(),
            digest: config.image_digest,
            path,
        }),
    }
}
