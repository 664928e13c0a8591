//! Whether the kernel has what a VM's network is made of: each kind of device is made once, in a network
//! namespace without a name, which takes them with it.
//!
//! ```text
//!   bridge    veth pair    TAP device ── ingress: redirect ──▶ veth
//! ```
//! Trying is surer than reading lists of modules: it loads what is loaded on demand, and knows what is
//! built in.

use std::io;

use super::netlink::Netlink;
use crate::sys::netns::{self, NetnsError};
use crate::sys::tun;

/// What the kernel does not have.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No namespace to try it in.
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    /// The kernel refused a step.
    #[error("this kernel makes no {what}")]
    Lacks {
        /// What was tried.
        what: &'static str,
        /// The module that has it.
        module: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Tries everything, in a namespace of its own.
///
/// # Errors
/// The first that the kernel refuses.
pub fn probe() -> Result<(), ProbeError> {
    netns::run_in_new(|| {
        let step = |what, module| {
            move |source| ProbeError::Lacks {
                what,
                module,
                source,
            }
        };
        let netlink = Netlink::open().map_err(step("netlink sockets", "rtnetlink"))?;
        netlink
            .add_bridge("bridge")
            .map_err(step("bridges", "bridge"))?;
        netlink
            .add_pair("veth", "peer")
            .map_err(step("pairs of devices", "veth"))?;
        // Two queue pairs, as guests with two processors have them.
        tun::create("tap", 2).map_err(step("TAP devices", "tun"))?;
        let index = |name: &str| {
            let found = netlink.link(name)?.map(|link| link.index);
            found.ok_or_else(|| io::ErrorKind::NotFound.into())
        };
        let lost = || step("network devices that are found again", "rtnetlink");
        let tap = index("tap").map_err(lost())?;
        let veth = index("veth").map_err(lost())?;
        netlink
            .add_ingress(tap)
            .map_err(step("ingress queues", "sch_ingress"))?;
        netlink
            .redirect(tap, veth)
            .map_err(step("redirects", "act_mirred"))
    })?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::testing::in_private_host;

    #[test]
    fn root_what_is_tried_is_not_left() {
        in_private_host(|| {
            if let Err(error) = probe() {
                println!("SKIPPED: {error}");
                return;
            }
            let devices = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            assert!(
                !devices.contains("tap:") && !devices.contains("veth:"),
                "{devices}"
            );
        });
    }
}
