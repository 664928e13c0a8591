//! What a VM's NICs need: devices of the kernel, CNI, and a way out of the host.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::firewall::{self, Firewall, Needs};
use super::{Finding, line};
use crate::config::Config;
use crate::network::conflist::ConflistError;
use crate::network::probe::{self, ProbeError};
use crate::network::{Conflist, Plugins};

/// Whether the kernel passes on packets that are not its own, in this network namespace.
pub(super) const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// The configuration that `--fix` writes; what is checked of plugins where there is none yet.
pub(super) const OWN_NAME: &str = "10-cocoon.conflist";

/// The TUN/TAP driver.
pub(super) const TUN: &str = "/dev/net/tun";

/// Every check of this file.
pub(super) fn check(config: &Config) -> Vec<Finding> {
    let is_root = rustix::process::geteuid().is_root();
    let found = Conflist::find(&config.cni_conf_dir);
    let list = found.as_ref().ok().cloned().or_else(own_list);
    let missing = list
        .as_ref()
        .map(|list| Plugins::new(&config.cni_bin_dir).missing(list));
    let forward = fs::read_to_string(IP_FORWARD);
    let needs = needs(list.as_ref());
    vec![
        tun(&fs::OpenOptions::new().read(true).write(true).open(TUN)),
        devices(is_root.then(probe::probe)),
        plugins(&missing.unwrap_or_default(), &config.cni_bin_dir),
        configuration(&found),
        forwarding(forward.ok().as_deref().map(str::trim)),
        firewall::judge(&Firewall::read(), &needs),
    ]
}

/// What of a list the firewall must know.
pub(super) fn needs(list: Option<&Conflist>) -> Needs {
    Needs {
        bridge: list.and_then(Conflist::bridge).map(str::to_owned),
        masquerade: list.is_some_and(Conflist::masquerades),
        opened_by_plugin: list.is_some_and(Conflist::opens_firewall),
    }
}

fn own_list() -> Option<Conflist> {
    let subnet = super::repair::DEFAULT_SUBNET;
    Conflist::parse(&own_json(subnet), &PathBuf::from(OWN_NAME)).ok()
}

/// A network of one bridge: guests have addresses of `subnet`, whose first is the host's own, and share
/// the host's address towards the world.
pub(super) fn own_json(subnet: ipnet::Ipv4Net) -> String {
    let gateway = subnet.hosts().next().unwrap_or(subnet.network());
    let list = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "cocoon",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipMasq": true,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": subnet.trunc(), "gateway": gateway}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    });
    format!("{list:#}\n")
}

fn tun(opened: &io::Result<fs::File>) -> Finding {
    let name = "tun";
    let Err(error) = opened else {
        return Finding::pass(name, format!("{TUN} opens"));
    };
    let fix = match error.kind() {
        io::ErrorKind::PermissionDenied => "run cocoon as root",
        _ => "load the module: cocoon doctor --fix, or: modprobe tun",
    };
    Finding::fail(name, format!("{TUN} does not open: {error}"), fix)
}

fn devices(probed: Option<Result<(), ProbeError>>) -> Finding {
    let name = "kernel-modules";
    match probed {
        None => Finding::warn(
            name,
            "not tried: it needs root",
            "run cocoon doctor as root, for example by sudo",
        ),
        Some(Ok(())) => Finding::pass(
            name,
            "bridges, pairs, TAP devices and redirects can be made",
        ),
        Some(Err(error)) => {
            let fix = match &error {
                ProbeError::Lacks { module, .. } => {
                    format!(
                        "have a kernel with it; as a module it is called {module}: modprobe {module}"
                    )
                }
                ProbeError::Namespace(_) => "have a kernel with CONFIG_NET_NS".to_owned(),
            };
            Finding::fail(name, line(&error), fix)
        }
    }
}

fn plugins(missing: &[String], dir: &Path) -> Finding {
    let name = "cni-plugins";
    if missing.is_empty() {
        return Finding::pass(
            name,
            format!("all that are needed are in {}", dir.display()),
        );
    }
    Finding::fail(
        name,
        format!("{} has no {}", dir.display(), missing.join(", ")),
        "cocoon doctor --upgrade; or apt-get install containernetworking-plugins, and --cni-bin-dir /usr/lib/cni",
    )
}

fn configuration(found: &Result<Conflist, ConflistError>) -> Finding {
    let name = "cni-conflist";
    match found {
        Ok(list) => Finding::pass(name, format!("NICs join the network {}", list.name())),
        Err(error) => {
            let fix = match error {
                ConflistError::NoFolder(_) | ConflistError::NoneFound(_) => {
                    "cocoon doctor --fix writes one; or run VMs without a network: --nics 0"
                }
                _ => "correct it, or name another folder by --cni-conf-dir",
            };
            Finding::fail(name, line(error), fix)
        }
    }
}

fn forwarding(value: Option<&str>) -> Finding {
    let name = "ip-forward";
    let fix = "cocoon doctor --fix, or: sysctl -w net.ipv4.ip_forward=1";
    match value {
        Some("1") => Finding::pass(name, "net.ipv4.ip_forward is 1"),
        Some(value) => Finding::fail(
            name,
            format!("net.ipv4.ip_forward is {value}: guests reach no further than this host"),
            fix,
        ),
        None => Finding::fail(name, format!("{IP_FORWARD} cannot be read"), fix),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fail, Pass, Warn};
    use super::*;

    #[test]
    fn the_own_list_is_one_that_cocoon_reads_and_needs_two_plugins() {
        let list = own_list().unwrap();
        assert_eq!(list.name(), "cocoon");
        let needs = needs(Some(&list));
        assert_eq!(needs.bridge.as_deref(), Some("cni0"));
        assert!(needs.masquerade && !needs.opened_by_plugin);
        let missing = Plugins::new(Path::new("/nowhere")).missing(&list);
        assert_eq!(missing, ["bridge", "host-local"]);
        let json = own_json("10.1.2.9/24".parse().unwrap());
        assert!(
            json.contains("\"10.1.2.0/24\"") && json.contains("\"10.1.2.1\""),
            "{json}"
        );
    }

    #[test]
    fn a_plugin_that_cannot_be_run_is_missing() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        for (plugin, mode) in [("bridge", 0o755), ("host-local", 0o644)] {
            let path = dir.path().join(plugin);
            fs::write(&path, "x").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let missing = Plugins::new(dir.path()).missing(&own_list().unwrap());
        assert_eq!(missing, ["host-local"]);
        assert_eq!(plugins(&missing, dir.path()).verdict, Fail);
        assert_eq!(plugins(&[], dir.path()).verdict, Pass);
    }

    #[test]
    fn each_thing_that_the_network_needs_has_its_verdict() {
        let lacks = ProbeError::Lacks {
            what: "redirects",
            module: "act_mirred",
            source: io::ErrorKind::NotFound.into(),
        };
        let broken = Conflist::parse("{", Path::new("x"));
        let none = Err(ConflistError::NoneFound("/etc/cni/net.d".into()));
        let missing = io::Error::from(io::ErrorKind::NotFound);
        for (found, expected, fix) in [
            (devices(None), Warn, "root"),
            (devices(Some(Ok(()))), Pass, ""),
            (devices(Some(Err(lacks))), Fail, "modprobe act_mirred"),
            (configuration(&Ok(own_list().unwrap())), Pass, ""),
            (configuration(&none), Fail, "--fix"),
            (configuration(&broken), Fail, "correct it"),
            (forwarding(Some("1")), Pass, ""),
            (forwarding(Some("0")), Fail, "ip_forward=1"),
            (forwarding(None), Fail, "ip_forward=1"),
            (tun(&Err(missing)), Fail, "modprobe tun"),
        ] {
            assert_eq!(found.verdict, expected, "{found:?}");
            assert!(
                found.fix.as_deref().unwrap_or_default().contains(fix),
                "{found:?}"
            );
        }
    }
}
