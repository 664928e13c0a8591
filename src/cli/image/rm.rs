//! `cocoon image rm`

use clap_complete::ArgValueCandidates;

use serde_json::json;

use super::super::completion;
use super::super::error::Failure;
use super::super::output::{self, FormatArgs};
use crate::ops::{Host, images};

/// What `cocoon image rm` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct RmArgs {
    /// Names or digests
    #[arg(required = true, value_name = "IMAGE", add = ArgValueCandidates::new(completion::images))]
    images: Vec<String>,
    #[command(flatten)]
    format: FormatArgs,
}

/// Removes images.
pub(in crate::cli) fn rm(host: &Host, args: &RmArgs) -> Result<(), Failure> {
    let removed = images::remove(host, &args.images)?;
    if args.format.is_json() {
        let object = |image: &images::Removed| json!({"name": image.name, "kept_for": image.kept_for, "kept_for_snapshots": image.kept_for_snapshots});
        return output::json(&json!({"removed": removed.iter().map(object).collect::<Vec<_>>()}));
    }
    for image in &removed {
        output::line(&image.name);
        let vms = image.kept_for.iter().map(ToString::to_string);
        let snapshots = image.kept_for_snapshots.iter();
        let users: Vec<_> = vms
            .chain(snapshots.map(|name| format!("snapshot {name}")))
            .collect();
        if !users.is_empty() {
            output::note(format_args!(
                "{}: its layers stay, used by {}",
                image.name,
                users.join(", ")
            ));
        }
    }
    Ok(())
}
