//! `cocoon image`

mod import;
mod inspect;
mod list;
mod pull;
mod rm;

use clap::Subcommand;
use serde_json::{Value, json};

use super::error::Failure;
use crate::image::records::{Content, ImageLayer, ImageRecord};
use crate::image::reference::Reference;
use crate::ops::Host;

/// The verbs.
#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Pull OCI images
    Pull(pull::PullArgs),
    /// Import an image from a tar, a `docker save` archive or an OCI layout
    Import(import::ImportArgs),
    /// List images on this host
    #[command(
        visible_alias = "ls",
        mut_arg("quiet", |quiet| quiet.help("Show digests only"))
    )]
    List(super::output::ListArgs),
    /// Show all about an image, as JSON
    Inspect(inspect::InspectArgs),
    /// Remove images; layers that nothing else needs go with `cocoon gc`
    Rm(rm::RmArgs),
}

/// Runs a verb.
pub(super) fn dispatch(host: &Host, command: ImageCommand) -> Result<(), Failure> {
    match command {
        ImageCommand::Pull(args) => pull::pull(host, &args),
        ImageCommand::Import(args) => import::import(host, &args),
        ImageCommand::List(args) => list::list(host, &args),
        ImageCommand::Inspect(args) => inspect::inspect(host, &args),
        ImageCommand::Rm(args) => rm::rm(host, &args),
    }
}

/// The image that a user names.
fn parse(image: &str) -> Result<Reference, Failure> {
    image.parse().map_err(|source| Failure::Reference {
        image: image.to_owned(),
        source,
    })
}

/// An image as JSON: the Go cocoon's keys, and cocoon's own beside them.
fn to_json(image: &ImageRecord) -> Value {
    let mut object = json!({
        "id": image.digest,
        "name": image.name,
        "type": kind(image),
        "size": image.size,
        "created_at": image.created_at,
    });
    match &image.content {
        Content::Layers(content) => {
            let layer =
                |layer: &ImageLayer| json!({"digest": layer.digest, "diff_id": layer.diff_id});
            object["built_at"] = json!(content.built_at);
            object["architecture"] = json!(content.architecture);
            object["layers"] = content.layers.iter().map(layer).collect();
            object["kernel_layer"] = json!(content.kernel_layer);
            object["initrd_layer"] = json!(content.initrd_layer);
        }
        Content::Disk(content) => {
            object["virtual_size"] = json!(content.virtual_size);
            object["etag"] = json!(content.etag);
            object["last_modified"] = json!(content.last_modified);
        }
    }
    object
}

/// What the Go cocoon calls an image of this kind.
fn kind(image: &ImageRecord) -> &'static str {
    match image.content {
        Content::Layers(_) => "oci",
        Content::Disk(_) => "cloudimg",
    }
}
