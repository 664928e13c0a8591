//! `cocoon image inspect`

use clap_complete::ArgValueCandidates;

use super::super::completion;
use super::super::error::Failure;
use super::super::output::{self, FormatArgs};
use crate::ops::{Host, images};

/// What `cocoon image inspect` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct InspectArgs {
    /// Name or digest
    #[arg(add = ArgValueCandidates::new(completion::images))]
    image: String,
    /// The output is JSON in any case
    #[command(flatten)]
    _format: FormatArgs,
}

/// Shows an image.
pub(in crate::cli) fn inspect(host: &Host, args: &InspectArgs) -> Result<(), Failure> {
    output::json(&super::to_json(&images::inspect(host, &args.image)?))
}
