//! `user-data`: what cloud-init is to do besides: a copy's machine id, root's password, and files for networkd.
//!
//! ```text
//! /etc/systemd/network/10-netplan-id<i>.network    what netplan makes of network-config
//! /etc/systemd/network/15-cocoon-id<i>.network     the same from here, for a NIC that the first one misses
//! ```
//! netplan finds a NIC by its permanent MAC, networkd by the one that it has: a NIC that got another
//! address, as in a clone, is found by the second file alone.

use std::fmt::Write as _;

use serde::Serialize;

use super::nic::{Ip, Settings};
use super::{Cidata, CidataError, json};
use crate::units::VmName;

/// How cloud-init knows what the file is.
const HEADER: &str = "#cloud-config\n";

/// cloud-init gives an instance a name and keys of sshd by itself, but no machine id (machine-id(5)). What it runs so
/// early it would run at each boot, but for its own `cloud-init-per`.
const NEW_MACHINE_ID: &[&[&str]] = &[&[
    "cloud-init-per",
    "instance",
    "cocoon-machine-id",
    "sh",
    "-c",
    "rm -f /etc/machine-id /var/lib/dbus/machine-id; systemd-machine-id-setup",
]];

#[derive(Serialize)]
struct UserData<'a> {
    warnings: Warnings,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefer_fqdn_over_hostname: Option<bool>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    bootcmd: &'static [&'static [&'static str]],
    #[serde(flatten)]
    root: Option<RootLogin<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    write_files: Vec<File>,
}

#[derive(Serialize)]
struct Warnings {
    /// cloud-init warns, at each login, of a data source that its own search has not found.
    dsid_missing_source: bool,
}

/// Lets root log in by its password: on the console, and by ssh where the image's sshd lets root in.
#[derive(Serialize)]
struct RootLogin<'a> {
    chpasswd: Chpasswd<'a>,
    ssh_pwauth: bool,
    disable_root: bool,
}

#[derive(Serialize)]
struct Chpasswd<'a> {
    /// Whether a new one must be chosen at the first login.
    expire: bool,
    /// Of cloud-init 22.3 and later. Its older `list` is deprecated, and `cloud-init status` calls a guest
    /// degraded that was given one.
    users: [UserPassword<'a>; 1],
}

#[derive(Serialize)]
struct UserPassword<'a> {
    name: &'static str,
    password: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
}

#[derive(Serialize)]
struct File {
    path: String,
    owner: &'static str,
    permissions: &'static str,
    content: String,
}

/// The text of the file.
pub(super) fn text(cidata: &Cidata<'_>, nics: &[Settings<'_>]) -> Result<String, CidataError> {
    let content = UserData {
        warnings: Warnings {
            dsid_missing_source: false,
        },
        prefer_fqdn_over_hostname: is_cut_at_a_dot(cidata.hostname).then_some(true),
        bootcmd: if cidata.is_copy { NEW_MACHINE_ID } else { &[] },
        root: cidata.root_password.map(|hash| root_login(hash.as_str())),
        write_files: nics.iter().map(networkd_file).collect(),
    };
    Ok(format!("{HEADER}{}", json("user-data", &content)?))
}

/// Of `web.1`, cloud-init makes the host `web` in the domain `1`, unless it is told to prefer the whole.
fn is_cut_at_a_dot(name: &VmName) -> bool {
    name.as_str().contains('.')
}

fn root_login(hash: &str) -> RootLogin<'_> {
    let root = UserPassword {
        name: "root",
        password: hash,
        kind: "hash",
    };
    RootLogin {
        chpasswd: Chpasswd {
            expire: false,
            users: [root],
        },
        ssh_pwauth: true,
        disable_root: false,
    }
}

fn networkd_file(nic: &Settings<'_>) -> File {
    File {
        path: format!("/etc/systemd/network/15-cocoon-id{}.network", nic.index),
        owner: "root:root",
        // A text: as a number, YAML would have it in octal or not, depending on its version.
        permissions: "0644",
        content: networkd_text(nic),
    }
}

/// systemd.network(5).
fn networkd_text(nic: &Settings<'_>) -> String {
    let required = if nic.is_required { "yes" } else { "no" };
    let mut text = format!(
        "[Match]\nMACAddress={}\n\n[Link]\nRequiredForOnline={required}\n\n[Network]\n",
        nic.mac
    );
    // Writing into a String cannot fail, here and below.
    let _ = match nic.ip {
        Ip::Dhcp => writeln!(text, "DHCP=ipv4"),
        Ip::Static { address, .. } => writeln!(text, "Address={address}"),
    };
    for server in nic.dns {
        let _ = writeln!(text, "DNS={server}");
    }
    match nic.ip {
        Ip::Dhcp => {
            let _ = write!(text, "\n[DHCPv4]\nRouteMetric={}\n", nic.metric);
        }
        Ip::Static { gateway: None, .. } => {}
        Ip::Static {
            gateway: Some(gateway),
            ..
        } => {
            let _ = write!(
                text,
                "\n[Route]\nGateway={}\nMetric={}\n",
                gateway.ip, nic.metric
            );
            if gateway.is_outside {
                text.push_str("GatewayOnLink=yes\n");
            }
        }
    }
    text
}
