//! Images on this host: recording, finding, listing and removing them.

use jiff::Timestamp;
use rusqlite::Transaction;

use super::{Error, Host};
use crate::image::assembly::ReadyImage;
use crate::image::blobs::BlobStore;
use crate::image::cloud::CloudUrl;
use crate::image::records::{
    self, Content, ImageLayer, ImageRecord, ImageRecordError, LayersContent,
};
use crate::image::reference::Reference;
use crate::snapshot::records as snapshots;
use crate::store::Durability;
use crate::sys::failpoint;
use crate::units::{ByteSize, VmName};
use crate::vm::records as vms;

/// Where blobs are, and are made.
pub(super) fn blobs(host: &Host) -> Result<BlobStore, Error> {
    let layout = &host.layout;
    Ok(BlobStore::open(
        layout.blobs(),
        layout.boot(),
        layout.staging(),
    )?)
}

/// Records an image whose layers are all there. Whoever made them so still shares the lock on references.
pub(super) fn record(host: &Host, image: ReadyImage) -> Result<ImageRecord, Error> {
    record_image(host, record_of(image))
}

/// Records an image whose blobs are all there; as [`record`].
pub(super) fn record_image(host: &Host, record: ImageRecord) -> Result<ImageRecord, Error> {
    host.database()?
        .write(Durability::Full, |tx| records::put(tx, &record))?;
    failpoint::reach("image: recorded");
    Ok(record)
}

fn record_of(image: ReadyImage) -> ImageRecord {
    ImageRecord {
        name: image.reference.to_string(),
        digest: image.manifest_digest,
        size: ByteSize::from_bytes(image.size),
        created_at: Timestamp::now(),
        content: Content::Layers(LayersContent {
            architecture: image.architecture.to_owned(),
            layers: image
                .layers
                .iter()
                .map(|layer| ImageLayer {
                    digest: layer.digest,
                    diff_id: layer.diff_id,
                })
                .collect(),
            kernel_layer: image.kernel_layer,
            initrd_layer: image.initrd_layer,
            built_at: image.created.map(|time| time.to_string()),
        }),
    }
}

/// The image that a user means.
///
/// # Errors
/// No image fits, or several do.
pub(super) fn resolve(tx: &Transaction<'_>, typed: &str) -> Result<ImageRecord, ImageRecordError> {
    let normalised = normalised(typed);
    records::resolve(tx, typed, normalised.as_deref())
}

/// The name under which an image is recorded that is called so.
fn normalised(typed: &str) -> Option<String> {
    if CloudUrl::is_meant_by(typed) {
        return typed.parse::<CloudUrl>().ok().map(|url| url.to_string());
    }
    let reference = typed.parse::<Reference>().ok()?;
    Some(reference.to_string())
}

/// Every image, by name.
///
/// # Errors
/// The database failed.
pub fn list(host: &Host) -> Result<Vec<ImageRecord>, Error> {
    Ok(host.database()?.read(records::list)?)
}

/// One image.
///
/// # Errors
/// No image fits, or several do.
pub fn inspect(host: &Host, typed: &str) -> Result<ImageRecord, Error> {
    Ok(host.database()?.read(|tx| resolve(tx, typed))?)
}

/// A name that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The name.
    pub name: String,
    /// VMs that go on using its blobs.
    pub kept_for: Vec<VmName>,
    /// Snapshots that go on using its blobs, as people call them.
    pub kept_for_snapshots: Vec<String>,
}

/// Removes the names of images; all are found first. Blobs that no one else needs go with `gc`.
///
/// # Errors
/// Any of them is not found: nothing is removed then.
pub fn remove(host: &Host, typed: &[String]) -> Result<Vec<Removed>, Error> {
    let removed = host.database()?.write(Durability::Full, |tx| {
        let mut removed: Vec<Removed> = Vec::new();
        for typed in typed {
            let name = match resolve(tx, typed) {
                // The same name given twice is removed once.
                Err(ImageRecordError::NotFound { .. })
                    if removed.iter().any(|done| same(&done.name, typed)) =>
                {
                    continue;
                }
                image => image?.name,
            };
            records::delete(tx, &name)?;
            removed.push(Removed {
                kept_for: vms::users_of_image(tx, &name)?,
                kept_for_snapshots: snapshots::users_of_image(tx, &name)?,
                name,
            });
        }
        Ok::<_, Error>(removed)
    })?;
    failpoint::reach("image rm: names gone");
    Ok(removed)
}

fn same(name: &str, typed: &str) -> bool {
    normalised(typed).is_some_and(|normalised| normalised == name)
}
