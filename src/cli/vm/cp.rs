//! `cocoon vm cp`

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::super::error::Failure;
use super::super::output::{self, FormatArgs};
use super::exec::WAIT_SECONDS;
use crate::ops::Host;
use crate::ops::copy::{self, Copy};
use crate::sys::interrupt::Interrupt;
use crate::units::ByteSize;

/// What `cocoon vm cp` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "One of the two is VM:PATH, a path in a guest. A folder is copied with all that is in it: into \
    DST under its own name if DST is a folder, else as DST; of SRC/. the content is copied. Modes and times are kept, \
    owners are not; from a guest no file comes as setuid or setgid."
)]
pub(in crate::cli) struct CpArgs {
    /// How long to wait for the guest's agent, such as of a guest that still boots
    #[arg(long, default_value_t = WAIT_SECONDS, value_name = "SECONDS")]
    wait: u64,
    /// What to copy: PATH, or VM:PATH
    #[arg(value_name = "SRC")]
    from: String,
    /// Where to: VM:PATH, or PATH
    #[arg(value_name = "DST")]
    to: String,
    #[command(flatten)]
    format: FormatArgs,
}

/// Copies files into a guest or out of it.
pub(in crate::cli) fn cp(host: &Host, args: &CpArgs) -> Result<(), Failure> {
    let (vm, copy) = match (in_guest(&args.from), in_guest(&args.to)) {
        (Some((vm, from)), None) => {
            let (from, to) = (from.to_owned(), PathBuf::from(&args.to));
            (vm, Copy::OutOf { from, to })
        }
        (None, Some((vm, to))) => {
            let (from, to) = (PathBuf::from(&args.from), to.to_owned());
            (vm, Copy::Into { from, to })
        }
        _ => return Err(Failure::CopySides),
    };
    let id = host.resolve(vm)?;
    let interrupt = Interrupt::on_signals().map_err(Failure::Signals)?;
    let copied = copy::copy(host, id, copy, Duration::from_secs(args.wait), &interrupt)?;
    if args.format.is_json() {
        return output::json(&json!({
            "entries": copied.entries, "bytes": copied.bytes, "skipped": copied.skipped,
        }));
    }
    output::note(format_args!(
        "Copied {} (files, folders and links: {})",
        ByteSize::from_bytes(copied.bytes),
        copied.entries
    ));
    if copied.skipped > 0 {
        output::note(format_args!(
            "Left out: sockets, pipes and devices, {} of them",
            copied.skipped
        ));
    }
    Ok(())
}

/// VM and path of an argument that names a path in a guest. `./a:b` and `/a:b` are paths here.
fn in_guest(argument: &str) -> Option<(&str, &str)> {
    let (vm, path) = argument.split_once(':')?;
    (!vm.is_empty() && !vm.contains('/')).then_some((vm, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_after_a_slash_names_no_guest() {
        for (argument, expected) in [
            ("web:/etc/hosts", Some(("web", "/etc/hosts"))),
            ("web:etc", Some(("web", "etc"))),
            ("web:", Some(("web", ""))),
            ("web:/a:b", Some(("web", "/a:b"))),
            ("./web:/etc", None),
            ("/tmp/a:b", None),
            (":/etc", None),
            ("file", None),
        ] {
            assert_eq!(in_guest(argument), expected, "{argument}");
        }
    }
}
