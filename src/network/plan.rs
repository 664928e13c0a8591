//! What a VM's network is called and what is known of it: pure values.
//!
//! ```text
//! NetworkRecord            written before anything is made ...
//! ├── netns, conflist, nic_count, queue_pairs        what there is to undo
//! └── nics[i]              ... and again after each NIC: what the guest is told
//! ```
//!
//! Invariant: a record always suffices to take down whatever was made of it so far.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::conflist::Conflist;
use crate::sys::netns;
use crate::units::{Mac, VmId};

/// How the names of cocoon's network namespaces begin; the VM's id follows.
pub const NETNS_PREFIX: &str = "cocoon-";

/// The network of one VM: planned, half made or whole.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct NetworkRecord {
    /// The VM, which is also the CNI container id.
    pub vm: VmId,
    /// Path of the VM's network namespace.
    pub netns: PathBuf,
    /// Name of the CNI network.
    pub network: String,
    /// The configuration list by which it was added, to the byte: DEL uses no other.
    pub conflist: String,
    /// NICs that the VM has or will have.
    pub nic_count: u16,
    /// Pairs of receive and transmit queues of each NIC.
    pub queue_pairs: u16,
    /// The NICs that CNI has added, in the order of their indexes; `nic_count` of them once set up.
    pub nics: Vec<NicRecord>,
}

/// One NIC of a VM.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct NicRecord {
    /// Its place in the VM, from 0.
    pub index: u16,
    /// Name of the CNI interface in the VM's namespace, and of the NIC in the guest.
    pub ifname: String,
    /// Name of the TAP device in the VM's namespace.
    pub tap: String,
    /// Address of the CNI interface and of the guest's NIC.
    pub mac: Mac,
    /// Largest packet, in bytes.
    pub mtu: u16,
    /// Pairs of receive and transmit queues.
    pub queue_pairs: u16,
    /// What the guest is told to use; none where the guest must ask for one by DHCP.
    pub address: Option<Address>,
    /// The result of ADD, as JSON, which DEL wants back (CNI 0.4.0 and later, "prevResult").
    pub cni_result: String,
}

/// An IPv4 address with its network.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// The address.
    pub ip: Ipv4Addr,
    /// Length of the network's prefix, in bits, 1 to 32.
    pub prefix: u8,
    /// Where packets for other networks go.
    pub gateway: Option<Ipv4Addr>,
}

/// The network that `vm` will have. Nothing is made.
pub fn plan(vm: VmId, conflist: &Conflist, nic_count: u16, queue_pairs: u16) -> NetworkRecord {
    NetworkRecord {
        vm,
        netns: netns_path(vm),
        network: conflist.name().to_owned(),
        conflist: conflist.json().to_owned(),
        nic_count,
        queue_pairs,
        nics: Vec::new(),
    }
}

/// Path of the network namespace of `vm`.
pub fn netns_path(vm: VmId) -> PathBuf {
    Path::new(netns::DIR).join(format!("{NETNS_PREFIX}{vm}"))
}

/// Name of the CNI interface of NIC `index`.
pub fn ifname(index: u16) -> String {
    format!("eth{index}")
}

/// Name of the TAP device of NIC `index`.
pub fn tap_name(index: u16) -> String {
    format!("tap{index}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_the_namespace_after_the_vm_and_keeps_the_exact_conflist() {
        let json = r#"{ "cniVersion":"1.0.0", "name":"n",  "plugins":[{"type":"bridge"}] }"#;
        let conflist = Conflist::parse(json, Path::new("x.conflist")).unwrap();
        let vm = "00000000000000ab".parse().unwrap();
        let plan = plan(vm, &conflist, 2, 4);
        assert_eq!(
            plan.netns,
            Path::new("/var/run/netns/cocoon-00000000000000ab")
        );
        assert_eq!(plan.conflist, json);
        assert_eq!((plan.network.as_str(), plan.nic_count), ("n", 2));
        assert!(plan.nics.is_empty());
    }

    #[test]
    fn names_of_nics_fit_an_interface_name_for_every_index() {
        for index in [0, 9, u16::MAX] {
            assert!(ifname(index).len() < 16 && tap_name(index).len() < 16);
        }
        assert_eq!((ifname(3), tap_name(3)), ("eth3".into(), "tap3".into()));
    }
}
