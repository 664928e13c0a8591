//! `image pull`: fetch and convert, then record.

use super::{Error, Host, images};
use crate::image::progress::Progress;
use crate::image::pull::{self, PullOptions};
use crate::image::records::ImageRecord;
use crate::image::reference::Reference;
use crate::store::lock::ReferencesLock;

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
    let store = images::blobs(host)?;
    let pulled = pull::pull(reference, options, &store, progress).map_err(Box::new)?;
    images::record(host, pulled)
}
