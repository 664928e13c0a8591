//! `cocoon image pull`

use std::path::PathBuf;

use clap_complete::ArgValueCandidates;

use super::super::error::Failure;
use super::super::output::{self, FormatArgs};
use super::super::progress::PullProgress;
use super::super::{cancel, completion};
use crate::image::assembly::AssemblyOptions;
use crate::image::pull::PullOptions;
use crate::ops::{self, Host};

/// What `cocoon image pull` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct PullArgs {
    /// Images: [registry/]repository[:tag][@digest]
    #[arg(required = true, value_name = "IMAGE", add = ArgValueCandidates::new(completion::images))]
    images: Vec<String>,
    #[command(flatten)]
    format: FormatArgs,
}

/// Pulls images, one after the other, the layers of each at once.
pub(in crate::cli) fn pull(host: &Host, args: &PullArgs) -> Result<(), Failure> {
    let references = args.images.iter().map(|image| super::parse(image));
    let references = references.collect::<Result<Vec<_>, _>>()?;
    let options = PullOptions {
        docker_config: docker_config(),
        registry_config: Some(host.config.registry_config_dir.clone()),
        assembly: AssemblyOptions {
            parallel: host.config.pool_size,
            cancel: cancel::on_interrupt()?.1,
            ..AssemblyOptions::default()
        },
        ..PullOptions::default()
    };
    let mut pulled = Vec::new();
    for reference in &references {
        let progress = PullProgress::new("pulling", reference);
        let image = ops::pull::pull(host, reference, &options, &progress);
        progress.finish();
        let image = image?;
        if !args.format.is_json() {
            output::line(image.digest);
        }
        pulled.push(super::to_json(&image));
    }
    if args.format.is_json() {
        output::json(&pulled)
    } else {
        Ok(())
    }
}

/// Docker's own configuration, where users have logged in to registries.
fn docker_config() -> Option<PathBuf> {
    let folder = std::env::var_os("DOCKER_CONFIG")
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from);
    let folder =
        folder.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")))?;
    Some(folder.join("config.json"))
}
