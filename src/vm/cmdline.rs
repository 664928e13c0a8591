//! The kernel command line of an OCI VM image. Published images read it, so it is kept to the letter.
//!
//! ```text
//! console=… loglevel=3 boot=cocoon-overlay cocoon.layers=<top,…,bottom> cocoon.cow=cocoon-cow
//! clocksource=kvm-clock rw [net.ifnames=0] cocoon.hostname=<name>
//! [ip=<ip>::<gateway>:<netmask>:<name>:eth<i>:off[:<dns0>[:<dns1>]]]…
//! ```

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::spec::CONSOLE_TOKEN;
use crate::units::VmName;

/// virtio serial of the writable disk.
pub const COW_SERIAL: &str = "cocoon-cow";

/// virtio serial of what cloud-init reads.
pub const CIDATA_SERIAL: &str = "cocoon-cidata";

/// virtio serial of layer `index`, counted from the bottom.
pub fn layer_serial(index: usize) -> String {
    format!("cocoon-layer{index}")
}

/// What one interface is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The guest calls it `eth<index>`.
    pub index: u16,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Length of the network's prefix, in bits.
    pub prefix: u8,
    /// Where packets for elsewhere go.
    pub gateway: Option<Ipv4Addr>,
}

/// The command line of a VM with `layers` layers and `nics` interfaces, of which `addresses` have
/// static addresses.
pub fn command_line(
    name: &VmName,
    layers: usize,
    nics: usize,
    addresses: &[InterfaceAddress],
    dns: &[Ipv4Addr],
) -> String {
    let serials: Vec<_> = (0..layers).rev().map(layer_serial).collect();
    let mut line = format!(
        "{CONSOLE_TOKEN} loglevel=3 boot=cocoon-overlay cocoon.layers={} cocoon.cow={COW_SERIAL} \
         clocksource=kvm-clock rw",
        serials.join(",")
    );
    if nics > 0 {
        line.push_str(" net.ifnames=0");
    }
    // Writing into a String cannot fail.
    let _ = write!(line, " cocoon.hostname={name}");
    for address in addresses {
        let _ = write!(line, " {}", ip_argument(name, address, dns));
    }
    line
}

fn ip_argument(name: &VmName, address: &InterfaceAddress, dns: &[Ipv4Addr]) -> String {
    let gateway = address.gateway.map(|ip| ip.to_string()).unwrap_or_default();
    let netmask = Ipv4Addr::from(
        u32::MAX
            .checked_shl(32 - u32::from(address.prefix))
            .unwrap_or(0),
    );
    // The kernel's format has room for two name servers.
    let servers: String = dns.iter().take(2).map(|ip| format!(":{ip}")).collect();
    format!(
        "ip={}::{gateway}:{netmask}:{name}:eth{}:off{servers}",
        address.ip, address.index
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> VmName {
        "web-1".parse().unwrap()
    }

    #[test]
    fn the_command_line_is_the_contract_of_published_images() {
        let dns = [
            Ipv4Addr::new(8, 8, 8, 8),
            Ipv4Addr::new(1, 1, 1, 1),
            Ipv4Addr::new(9, 9, 9, 9),
        ];
        let nics = [
            InterfaceAddress {
                index: 0,
                ip: Ipv4Addr::new(10, 22, 0, 5),
                prefix: 16,
                gateway: Some(Ipv4Addr::new(10, 22, 0, 1)),
            },
            InterfaceAddress {
                index: 1,
                ip: Ipv4Addr::new(10, 23, 0, 5),
                prefix: 25,
                gateway: None,
            },
        ];
        assert_eq!(
            command_line(&name(), 3, 2, &nics, &dns),
            "{console} loglevel=3 boot=cocoon-overlay cocoon.layers=cocoon-layer2,cocoon-layer1,cocoon-layer0 \
             cocoon.cow=cocoon-cow clocksource=kvm-clock rw net.ifnames=0 cocoon.hostname=web-1 \
             ip=10.22.0.5::10.22.0.1:255.255.0.0:web-1:eth0:off:8.8.8.8:1.1.1.1 \
             ip=10.23.0.5:::255.255.255.128:web-1:eth1:off:8.8.8.8:1.1.1.1"
        );
    }

    #[test]
    fn without_interfaces_nothing_is_said_of_networks() {
        assert_eq!(
            command_line(&name(), 1, 0, &[], &[Ipv4Addr::LOCALHOST]),
            "{console} loglevel=3 boot=cocoon-overlay cocoon.layers=cocoon-layer0 cocoon.cow=cocoon-cow \
             clocksource=kvm-clock rw cocoon.hostname=web-1"
        );
    }

    #[test]
    fn netmasks_cover_every_prefix() {
        for (prefix, mask) in [
            (0, "0.0.0.0"),
            (1, "128.0.0.0"),
            (24, "255.255.255.0"),
            (32, "255.255.255.255"),
        ] {
            let address = InterfaceAddress {
                index: 0,
                ip: Ipv4Addr::LOCALHOST,
                prefix,
                gateway: None,
            };
            assert_eq!(
                ip_argument(&name(), &address, &[]),
                format!("ip=127.0.0.1:::{mask}:web-1:eth0:off")
            );
        }
    }
}
