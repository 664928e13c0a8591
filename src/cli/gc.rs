//! `cocoon gc`

use serde_json::json;

use super::error::Failure;
use super::output::{self, FormatArgs};
use crate::ops::{Host, gc};
use crate::units::ByteSize;

/// What `cocoon gc` takes.
#[derive(Debug, clap::Args)]
pub(super) struct GcArgs {
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    format: FormatArgs,
}

/// Collects, and lists what went.
pub(super) fn gc(host: &Host, args: &GcArgs) -> Result<(), Failure> {
    let collected = gc::collect(host, args.dry_run)?;
    let failures: Vec<_> = collected.failures.into_iter().map(Failure::from).collect();
    if args.format.is_json() {
        let failed: Vec<_> = failures.iter().map(Failure::line).collect();
        output::json(
            &json!({"removed": collected.items, "failed": failed, "dry_run": args.dry_run}),
        )?;
    } else {
        for item in &collected.items {
            let kind = serde_json::to_value(item.kind).unwrap_or_default();
            output::line(format_args!(
                "{} {}",
                kind.as_str().unwrap_or_default(),
                item.name
            ));
        }
        let total = ByteSize::from_bytes(collected.items.iter().map(|item| item.bytes).sum());
        let verb = if args.dry_run {
            "would be removed"
        } else {
            "removed"
        };
        output::note(format_args!("{} {verb}, {total}", collected.items.len()));
    }
    Failure::all(failures)
}
