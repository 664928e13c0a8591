//! `cocoon image import`

use std::path::PathBuf;

use super::super::cancel::{self, Stdin};
use super::super::error::Failure;
use super::super::output::{self, FormatArgs};
use super::super::progress::PullProgress;
use crate::image::assembly::AssemblyOptions;
use crate::image::import::Input;
use crate::ops::{self, Host};

/// What `cocoon image import` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ImportArgs {
    /// Name for the image: [registry/]repository[:tag]
    name: String,
    /// The tar of a root file system, what `docker save` wrote, or an OCI layout (a folder or a tar);
    /// tars may be compressed by gzip or zstd; - for standard input
    #[arg(value_name = "FILE|DIR|-")]
    from: PathBuf,
    #[command(flatten)]
    format: FormatArgs,
}

/// Imports an image.
pub(in crate::cli) fn import(host: &Host, args: &ImportArgs) -> Result<(), Failure> {
    let name = super::parse(&args.name)?;
    let (interrupt, cancel) = cancel::on_interrupt()?;
    let input = match args.from.to_str() {
        Some("-") => Input::Stream(Box::new(Stdin::new(interrupt, cancel.clone()))),
        _ => Input::at(&args.from),
    };
    let options = AssemblyOptions {
        parallel: host.config.pool_size,
        cancel,
        ..AssemblyOptions::default()
    };
    let progress = PullProgress::new("importing", &name);
    let image = ops::import_image::import(host, &name, input, &options, &progress);
    progress.finish();
    let image = image?;
    if args.format.is_json() {
        return output::json(&super::to_json(&image));
    }
    output::line(image.digest);
    Ok(())
}
