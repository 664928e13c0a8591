//! `image pull` of an address, and `image import` of a disk: fetch and convert, then record.

use std::fs::File;

use jiff::Timestamp;

use super::{Error, Host, images};
use crate::image::cloud::{self, CloudError, CloudOptions, CloudUrl, Known, Pulled, ReadyDisk};
use crate::image::import::Input;
use crate::image::progress::Progress;
use crate::image::records::{self, Content, DiskContent, ImageRecord};
use crate::image::reference::Reference;
use crate::store::lock::ReferencesLock;
use crate::units::ByteSize;

/// Fetches the disk image at `url` if it is another than the one that is here, and records it.
///
/// # Errors
/// The image was not recorded; nothing of it is left.
pub fn pull(
    host: &Host,
    url: &CloudUrl,
    options: &CloudOptions,
    progress: &dyn Progress,
) -> Result<ImageRecord, Error> {
    let _references = ReferencesLock::share(&host.layout)?;
    let name = url.to_string();
    let before = host.database()?.read(|tx| records::get(tx, &name))?;
    let known = before.as_ref().and_then(known);
    let store = images::blobs(host)?;
    let pulled = cloud::pull(url, known.as_ref(), options, &store, progress).map_err(Box::new)?;
    let has_a_version = |disk: &ReadyDisk| disk.etag.is_some() || disk.last_modified.is_some();
    match (pulled, before) {
        // Its server was not asked: what it said of it still stands.
        (Pulled::Ready(disk), Some(before))
            if disk.digest == before.digest && !has_a_version(&disk) =>
        {
            Ok(before)
        }
        (Pulled::Ready(disk), _) => images::record_image(host, record_of(name, disk)),
        (Pulled::Unchanged, Some(before)) => Ok(before),
        // Nothing was known that could be unchanged.
        (Pulled::Unchanged, None) => Err(Error::Image(records::ImageRecordError::NotFound {
            reference: name,
            near: None,
        })),
    }
}

/// Reads a disk image, and records it as `name`, in place of what had that name.
///
/// # Errors
/// The image was not recorded; nothing of it is left.
pub(super) fn import(
    host: &Host,
    name: &Reference,
    input: Input,
    options: &CloudOptions,
    progress: &dyn Progress,
) -> Result<ImageRecord, Error> {
    let store = images::blobs(host)?;
    let what = input.to_string();
    let ready = match input {
        Input::Stream(stream) => cloud::import(&what, stream, None, options, &store, progress),
        Input::File(path) | Input::Folder(path) => {
            let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
            let (total, file) = opened.map_err(|source| Error::File {
                action: "read",
                path,
                source,
            })?;
            cloud::import(&what, file, Some(total), options, &store, progress)
        }
    };
    let ready = ready.map_err(Box::<CloudError>::new)?;
    images::record_image(host, record_of(name.to_string(), ready))
}

fn known(image: &ImageRecord) -> Option<Known> {
    match &image.content {
        Content::Layers(_) => None,
        Content::Disk(disk) => Some(Known {
            etag: disk.etag.clone(),
            last_modified: disk.last_modified.clone(),
            digest: image.digest,
        }),
    }
}

fn record_of(name: String, disk: ReadyDisk) -> ImageRecord {
    ImageRecord {
        name,
        digest: disk.digest,
        size: ByteSize::from_bytes(disk.size_on_disk),
        created_at: Timestamp::now(),
        content: Content::Disk(DiskContent {
            virtual_size: ByteSize::from_bytes(disk.virtual_size),
            etag: disk.etag,
            last_modified: disk.last_modified,
        }),
    }
}
