//! `vm cp`: files and folders into a running VM and out of it, by its agent.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cocoon_agent::protocol::Copied;

use super::exec::{agent, failed};
use super::{Error, Host, first_boot};
use crate::sys::interrupt::Interrupt;
use crate::units::VmId;

/// Which way a copy goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copy {
    /// From the host into the guest.
    Into {
        /// The path here.
        from: PathBuf,
        /// The path in the guest.
        to: String,
    },
    /// Out of the guest to the host.
    OutOf {
        /// The path in the guest.
        from: String,
        /// The path here.
        to: PathBuf,
    },
}

/// Copies a file, or a folder with all that is in it. A source that ends in `/.` is the content of its
/// folder.
///
/// # Errors
/// The VM does not run, no agent answers in it, or something cannot be read or written.
pub fn copy(
    host: &Host,
    id: VmId,
    copy: Copy,
    patience: Duration,
    interrupt: &Interrupt,
) -> Result<Copied, Error> {
    let (vm, agent) = agent(host, id, interrupt.as_fd())?;
    let copied = match copy {
        Copy::Into { from, to } => {
            let own = own_name(&from.to_string_lossy());
            agent.put(&from, absolute(&to), own, patience)
        }
        Copy::OutOf { from, to } => {
            let own = own_name(&from);
            agent.get(absolute(&from), &to, own.as_deref(), patience)
        }
    };
    let copied = copied.map_err(|source| failed(vm.name.clone(), source))?;
    first_boot::ask(host, &vm, &agent);
    Ok(copied)
}

/// In the guest paths begin at its root, as `docker cp` has it.
fn absolute(path: &str) -> String {
    match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("/{path}"),
    }
}

/// The name that a copy gets in a folder that is there; none, if the content is meant.
fn own_name(path: &str) -> Option<String> {
    if path == "." || path.ends_with("/.") {
        return None;
    }
    let name = Path::new(path).file_name()?;
    Some(name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_a_dot_is_its_content() {
        for (path, name) in [
            ("a/b", Some("b")),
            ("a/b/", Some("b")),
            ("b", Some("b")),
            ("a/b/.", None),
            (".", None),
            ("/", None),
            ("a/..", None),
        ] {
            assert_eq!(own_name(path).as_deref(), name, "{path}");
        }
        assert_eq!(absolute("etc/hosts"), "/etc/hosts");
        assert_eq!(absolute("/etc"), "/etc");
        assert_eq!(absolute(""), "/");
    }
}
