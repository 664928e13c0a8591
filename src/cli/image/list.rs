//! `cocoon image list`

use super::super::error::Failure;
use super::super::output::{self, ListArgs};
use crate::image::records::ImageRecord;
use crate::ops::{Host, images};

/// Characters of a digest in the table: `sha256:` and 12 digits.
const SHORT_DIGEST: usize = 19;

/// Lists images.
pub(in crate::cli) fn list(host: &Host, args: &ListArgs) -> Result<(), Failure> {
    let images = images::list(host)?;
    if args.format.is_json() {
        return output::json(&images.iter().map(super::to_json).collect::<Vec<_>>());
    }
    if args.quiet {
        output::lines(images.iter().map(|image| image.digest));
        return Ok(());
    }
    if images.is_empty() {
        output::note("No images found.");
        return Ok(());
    }
    output::table(
        &["TYPE", "NAME", "DIGEST", "SIZE", "CREATED"],
        &images.iter().map(row).collect::<Vec<_>>(),
    );
    Ok(())
}

fn row(image: &ImageRecord) -> Vec<String> {
    let digest = image.digest.to_string()[..SHORT_DIGEST].to_owned();
    vec![
        super::kind(image).to_owned(),
        image.name.clone(),
        digest,
        image.size.to_string(),
        output::local_time(image.created_at),
    ]
}
