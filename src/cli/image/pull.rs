//! `cocoon image pull`

use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, poll};

use clap_complete::ArgValueCandidates;

use super::super::completion;
use super::super::error::Failure;
use super::super::output::{self, FormatArgs};
use super::super::progress::PullProgress;
use crate::image::assembly::AssemblyOptions;
use crate::image::cancel::Cancel;
use crate::image::pull::PullOptions;
use crate::image::reference::Reference;
use crate::ops::{self, Host};
use crate::sys::interrupt::Interrupt;

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
    let parse = |image: &String| {
        image
            .parse::<Reference>()
            .map_err(|source| Failure::Reference {
                image: image.clone(),
                source,
            })
    };
    let references = args
        .images
        .iter()
        .map(parse)
        .collect::<Result<Vec<_>, _>>()?;
    let options = PullOptions {
        docker_config: docker_config(),
        assembly: AssemblyOptions {
            parallel: host.config.pool_size,
            cancel: cancel_on_interrupt()?,
            ..AssemblyOptions::default()
        },
        ..PullOptions::default()
    };
    let mut pulled = Vec::new();
    for reference in &references {
        let progress = PullProgress::new(reference);
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

/// Carries Ctrl-C over to the pull.
fn cancel_on_interrupt() -> Result<Cancel, Failure> {
    let interrupt = Interrupt::on_signals().map_err(Failure::Signals)?;
    let cancel = Cancel::new();
    let raised = cancel.clone();
    let watch = move || {
        let interrupt = interrupt.as_fd();
        while let Err(rustix::io::Errno::INTR) =
            poll(&mut [PollFd::new(&interrupt, PollFlags::IN)], None)
        {}
        raised.cancel();
    };
    std::thread::Builder::new()
        .name("interrupt".into())
        .spawn(watch)
        .map_err(Failure::Signals)?;
    Ok(cancel)
}
