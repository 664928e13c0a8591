//! `image import`: read and convert, then record.

use super::{Error, Host, disk_images, images};
use crate::image::assembly::AssemblyOptions;
use crate::image::cloud::CloudOptions;
use crate::image::import::{self, Input, Kind};
use crate::image::progress::Progress;
use crate::image::records::ImageRecord;
use crate::image::reference::Reference;
use crate::store::lock::ReferencesLock;

/// Reads an image, converts what is new of it, and records it as `name`, in place of what had that name.
///
/// # Errors
/// The name has a digest, or the image was not recorded. Layers of several that were complete before the
/// failure stay until `gc`.
pub fn import(
    host: &Host,
    name: &Reference,
    input: Input,
    options: &AssemblyOptions,
    progress: &dyn Progress,
) -> Result<ImageRecord, Error> {
    if name.digest().is_some() {
        return Err(Error::BadRequest {
            what: "the name of an imported image",
            rule: "without a digest, for its content has its own".to_owned(),
            given: name.to_string(),
        });
    }
    let what = input.to_string();
    let _references = ReferencesLock::share(&host.layout)?;
    let input = match import::kind(input) {
        Ok(Kind::Layers(input)) => input,
        Ok(Kind::Disk(input)) => {
            let options = CloudOptions {
                cancel: options.cancel.clone(),
                ..CloudOptions::default()
            };
            return disk_images::import(host, name, input, &options, progress);
        }
        Err(source) => {
            return Err(Error::File {
                action: "read",
                path: what.into(),
                source,
            });
        }
    };
    let store = images::blobs(host)?;
    let imported = import::import(name, input, options, &store, progress).map_err(Box::new)?;
    images::record(host, imported)
}
