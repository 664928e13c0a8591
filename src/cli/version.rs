//! `cocoon version`

use serde_json::json;

use super::error::Failure;
use super::output::{self, FormatArgs};
use crate::vmm::Engine;

/// What `cocoon version` takes.
#[derive(Debug, clap::Args)]
pub(super) struct VersionArgs {
    #[command(flatten)]
    format: FormatArgs,
}

/// Shows the version and the engines of this build.
pub(super) fn version(args: &VersionArgs, engines: &[&'static dyn Engine]) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    let revision = option_env!("COCOON_REVISION").unwrap_or("unknown");
    let built = option_env!("COCOON_BUILT").unwrap_or("unknown");
    let platform = format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH);
    if args.format.is_json() {
        let engine =
            |engine: &&dyn Engine| json!({"name": engine.name(), "version": engine.version()});
        return output::json(&json!({
            "version": version,
            "revision": revision,
            "built": built,
            "platform": platform,
            "engines": engines.iter().map(engine).collect::<Vec<_>>(),
        }));
    }
    let listed: Vec<_> = engines
        .iter()
        .map(|engine| format!("{} {}", engine.name(), engine.version()))
        .collect();
    let listed = if listed.is_empty() {
        "none".to_owned()
    } else {
        listed.join(", ")
    };
    let rows = [
        ("Version:", version),
        ("Git hash:", revision),
        ("Built:", built),
        ("Engines:", &listed),
        ("OS/Arch:", &platform),
    ];
    for (label, value) in rows {
        output::line(format_args!("{label:<10}{value}"));
    }
    Ok(())
}
