//! `network-config`: the NICs in cloud-init's version 2, which is netplan's.
//!
//! Each is found by its MAC. The default route is written `0.0.0.0/0`, never `default`: that word is
//! netplan's, and Debian 12's cloud-init (22.4) dies of it where it writes for anything else (networkd,
//! ifupdown, NetworkManager).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Serialize;

use super::nic::{Gateway, Ip, Settings};
use super::{CidataError, json};
use crate::units::Mac;

/// Of cloud-init's format.
const VERSION: u8 = 2;

#[derive(Serialize)]
struct NetworkConfig<'a> {
    version: u8,
    ethernets: BTreeMap<String, Ethernet<'a>>,
}

#[derive(Serialize)]
struct Ethernet<'a> {
    #[serde(rename = "match")]
    matched: Match,
    /// Whether a boot goes on without it.
    #[serde(skip_serializing_if = "is_false")]
    optional: bool,
    #[serde(flatten)]
    ip: Addressing,
    #[serde(skip_serializing_if = "Option::is_none")]
    nameservers: Option<Nameservers<'a>>,
}

#[derive(Serialize)]
struct Match {
    macaddress: Mac,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Addressing {
    Dhcp {
        dhcp4: bool,
        #[serde(rename = "dhcp4-overrides")]
        overrides: Overrides,
    },
    Static {
        addresses: [Ipv4Net; 1],
        #[serde(skip_serializing_if = "Option::is_none")]
        routes: Option<[Route; 1]>,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Overrides {
    route_metric: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Route {
    to: Ipv4Net,
    via: Ipv4Addr,
    metric: usize,
    #[serde(skip_serializing_if = "is_false")]
    on_link: bool,
}

#[derive(Serialize)]
struct Nameservers<'a> {
    addresses: &'a [Ipv4Addr],
}

/// The text of the file.
pub(super) fn text(nics: &[Settings<'_>]) -> Result<String, CidataError> {
    let content = NetworkConfig {
        version: VERSION,
        ethernets: nics
            .iter()
            .map(|nic| (id(nic.index), ethernet(nic)))
            .collect(),
    };
    json("network-config", &content)
}

/// What netplan calls a NIC, and after it a file of systemd-networkd's (`10-netplan-<id>.network`), of which the
/// first by name counts: Debian's own images have an `all-en` there, by which every NIC asks by DHCP.
fn id(index: usize) -> String {
    format!("00-id{index}")
}

fn ethernet<'a>(nic: &Settings<'a>) -> Ethernet<'a> {
    let addresses = nic.dns;
    Ethernet {
        matched: Match {
            macaddress: nic.mac,
        },
        optional: !nic.is_required,
        ip: addressing(nic),
        nameservers: (!addresses.is_empty()).then_some(Nameservers { addresses }),
    }
}

fn addressing(nic: &Settings<'_>) -> Addressing {
    match nic.ip {
        Ip::Dhcp => Addressing::Dhcp {
            dhcp4: true,
            overrides: Overrides {
                route_metric: nic.metric,
            },
        },
        Ip::Static { address, gateway } => Addressing::Static {
            addresses: [address],
            routes: gateway.map(|gateway| [default_route(gateway, nic.metric)]),
        },
    }
}

fn default_route(gateway: Gateway, metric: usize) -> Route {
    Route {
        // 0.0.0.0/0
        to: Ipv4Net::default(),
        via: gateway.ip,
        metric,
        on_link: gateway.is_outside,
    }
}

/// Shape of serde's `skip_serializing_if`.
fn is_false(value: &bool) -> bool {
    !value
}
