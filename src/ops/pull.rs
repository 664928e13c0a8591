//! `image pull`: fetch and convert, then record.

use jiff::Timestamp;

use super::{Error, Host};
use crate::image::assembly::ReadyImage;
use crate::image::blobs::BlobStore;
use crate::image::progress::Progress;
use crate::image::pull::{self, PullOptions};
use crate::image::records::{self, ImageLayer, ImageRecord};
use crate::image::reference::Reference;
use crate::store::Durability;
use crate::store::lock::ReferencesLock;
use crate::units::ByteSize;

/// Fetches an image, converts what is new of it, and records it.
///
/// # Errors
/// The image was not recorded. Layers that were complete before the failure stay until `gc`.
pub fn pull(
    host: &Host,
    reference: &Reference,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<ImageRecord, Error> {
    let _references = ReferencesLock::share(&host.layout)?;
    let layout = &host.layout;
    let store = BlobStore::open(layout.blobs(), layout.boot(), layout.staging())?;
    let pulled = pull::pull(reference, options, &store, progress).map_err(Box::new)?;
    let record = record_of(pulled);
    host.database()?
        .write(Durability::Full, |tx| records::put(tx, &record))?;
    Ok(record)
}

fn record_of(image: ReadyImage) -> ImageRecord {
    ImageRecord {
        name: image.reference.to_string(),
        digest: image.manifest_digest,
        size: ByteSize::from_bytes(image.size),
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
        created_at: Timestamp::now(),
        built_at: image.created.map(|time| time.to_string()),
    }
}
