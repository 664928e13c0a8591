//! What a guest is told of one NIC, decided once for both forms in which it is written.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::CidataError;
use crate::units::Mac;

/// Metric of the first NIC's default route; the others' follow, so that no two are equal and the first
/// one leads everywhere. The initramfs of OCI images and the agent count from the same number.
const FIRST_METRIC: usize = 100;

/// A NIC of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nic {
    /// By which the guest knows it.
    pub mac: Mac,
    /// What it is to use; none where it is to ask by DHCP.
    pub address: Option<Address>,
}

/// An IPv4 address with its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: Ipv4Addr,
    /// Length of the network's prefix, in bits, 1 to 32.
    pub prefix: u8,
    /// Where packets for other networks go.
    pub gateway: Option<Ipv4Addr>,
}

/// All that is said of one NIC.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings<'a> {
    /// Its place, from 0; cloud-init calls it `id<index>`.
    pub(super) index: usize,
    pub(super) mac: Mac,
    pub(super) ip: Ip,
    /// Of the default route, whoever tells the guest of it.
    pub(super) metric: usize,
    /// Whether a boot waits for it.
    pub(super) is_required: bool,
    pub(super) dns: &'a [Ipv4Addr],
}

/// Where an address comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ip {
    Dhcp,
    Static {
        /// The address and its prefix.
        address: Ipv4Net,
        gateway: Option<Gateway>,
    },
}

/// Where packets for other networks go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gateway {
    pub(super) ip: Ipv4Addr,
    /// It is reached although the NIC's own network does not have it, as with point-to-point plugins. Said
    /// only then: netplan knows of it, but newer versions of cloud-init without netplan warn of `on-link`.
    pub(super) is_outside: bool,
}

/// What is said of `nics`: cloud-init by itself would bring up the first alone.
pub(super) fn settings<'a>(
    nics: &[Nic],
    dns: &'a [Ipv4Addr],
) -> Result<Vec<Settings<'a>>, CidataError> {
    let of_each = nics.iter().enumerate().map(|(index, nic)| {
        Ok(Settings {
            index,
            mac: nic.mac,
            ip: ip(index, nic.address)?,
            metric: FIRST_METRIC + index,
            is_required: index == 0,
            dns,
        })
    });
    of_each.collect()
}

fn ip(nic: usize, address: Option<Address>) -> Result<Ip, CidataError> {
    let Some(Address {
        ip,
        prefix,
        gateway,
    }) = address
    else {
        return Ok(Ip::Dhcp);
    };
    let address = Ipv4Net::new(ip, prefix)
        .ok()
        .filter(|network| network.prefix_len() > 0)
        .ok_or(CidataError::Prefix { nic, ip, prefix })?;
    let gateway = gateway.map(|ip| Gateway {
        ip,
        is_outside: !address.contains(&ip),
    });
    Ok(Ip::Static { address, gateway })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(prefix: u8) -> Nic {
        Nic {
            mac: Mac::new([2, 0, 0, 0, 0, 1]),
            address: Some(Address {
                ip: [10, 22, 0, 5].into(),
                prefix,
                gateway: Some([10, 22, 0, 1].into()),
            }),
        }
    }

    #[test]
    fn a_prefix_of_no_network_is_refused_by_the_nics_number() {
        for prefix in [0, 33, 255] {
            let error = settings(&[nic(16), nic(prefix)], &[]).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "the address of NIC 1 cannot be 10.22.0.5/{prefix}: a prefix has 1 to 32 bits"
                )
            );
        }
        assert!(settings(&[nic(1), nic(32)], &[]).is_ok());
    }

    #[test]
    fn a_gateway_is_outside_where_the_prefix_does_not_reach_it() {
        for (prefix, outside) in [(16, false), (29, false), (30, true), (32, true)] {
            let Ip::Static { gateway, .. } = settings(&[nic(prefix)], &[]).unwrap()[0].ip else {
                panic!("it has an address");
            };
            assert_eq!(gateway.unwrap().is_outside, outside, "/{prefix}");
        }
    }
}
