//! `cocoon image pull`

use std::path::PathBuf;

use clap_complete::ArgValueCandidates;

use super::super::error::Failure;
use super::super::output::{self, FormatArgs};
use super::super::progress::PullProgress;
use super::super::{cancel, completion};
use crate::image::assembly::AssemblyOptions;
use crate::image::cloud::{CloudOptions, CloudUrl};
use crate::image::pull::PullOptions;
use crate::image::reference::Reference;
use crate::ops::{self, Host};
use crate::units::Digest;

/// What `cocoon image pull` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct PullArgs {
    /// Images: [registry/]repository[:tag][@digest], or the https:// address of a disk image (qcow2 or raw)
    #[arg(required = true, value_name = "IMAGE", add = ArgValueCandidates::new(completion::images))]
    images: Vec<String>,
    /// SHA-256 that the disk image must have, as its publisher says
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    sha256: Option<Digest>,
    #[command(flatten)]
    format: FormatArgs,
}

/// What is pulled.
enum Source {
    Registry(Reference),
    Address(CloudUrl),
}

/// Pulls images, one after the other, the layers of each at once.
pub(in crate::cli) fn pull(host: &Host, args: &PullArgs) -> Result<(), Failure> {
    let sources = args.images.iter().map(|image| source(image));
    let sources = sources.collect::<Result<Vec<_>, _>>()?;
    let disk_options = disk_options(args, &sources)?;
    let options = PullOptions {
        docker_config: docker_config(),
        registry_config: Some(host.config.registry_config_dir.clone()),
        assembly: AssemblyOptions {
            parallel: host.config.pool_size,
            cancel: disk_options.cancel.clone(),
            ..AssemblyOptions::default()
        },
        ..PullOptions::default()
    };
    let mut pulled = Vec::new();
    for source in &sources {
        let progress = match source {
            Source::Registry(reference) => PullProgress::new("pulling", reference),
            Source::Address(url) => PullProgress::new("pulling", url),
        };
        let image = match source {
            Source::Registry(reference) => ops::pull::pull(host, reference, &options, &progress),
            Source::Address(url) => ops::disk_images::pull(host, url, &disk_options, &progress),
        };
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

fn source(image: &str) -> Result<Source, Failure> {
    if !CloudUrl::is_meant_by(image) {
        return super::parse(image).map(Source::Registry);
    }
    image.parse().map(Source::Address).map_err(Failure::Address)
}

fn disk_options(args: &PullArgs, sources: &[Source]) -> Result<CloudOptions, Failure> {
    if args.sha256.is_some() && !matches!(sources, [Source::Address(_)]) {
        return Err(Failure::Sha256OfMany);
    }
    Ok(CloudOptions {
        expected: args.sha256,
        cancel: cancel::on_interrupt()?.1,
        ..CloudOptions::default()
    })
}

/// A digest as sha256sum and its lists write it.
fn sha256(hex: &str) -> Result<Digest, String> {
    let digest = format!(
        "sha256:{}",
        hex.trim_start_matches("sha256:").to_lowercase()
    );
    digest
        .parse()
        .map_err(|_| "not the 64 digits of a SHA-256".to_owned())
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
