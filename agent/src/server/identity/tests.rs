//! A new identity, for real, in namespaces of its own.

use std::collections::BTreeMap;

use super::*;
use crate::protocol::Route;

/// Runs `test` in a thread with its own network, host name and mounts, with an empty `/etc`.
fn in_private_host(test: impl FnOnce() + Send) {
    use nix::sched::{CloneFlags, unshare};
    let become_private = || -> std::io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)?;
        let private = rustix::mount::MountPropagationFlags::PRIVATE
            | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private)?;
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", "/etc", "tmpfs", flags, None)?;
        // Where services of this machine would say that they run.
        rustix::mount::mount("tmpfs", "/run", "tmpfs", flags, None)?;
        rustix::mount::mount("sysfs", "/sys", "sysfs", flags, None)?;
        Ok(())
    };
    std::thread::scope(|scope| {
        let outcome = scope.spawn(|| match become_private() {
            Ok(()) => test(),
            Err(error) => println!("SKIPPED: no private namespaces: {error}"),
        });
        if let Err(panic) = outcome.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// What `ip` says of this thread's network, as values.
fn ip(arguments: &[&str]) -> Vec<serde_json::Value> {
    let output = std::process::Command::new("ip")
        .arg("-j")
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(if output.stdout.is_empty() {
        b"[]"
    } else {
        &output.stdout
    })
    .unwrap()
}

fn addresses(interface: &str) -> Vec<String> {
    let links = ip(&["address", "show", "dev", interface]);
    let infos = links[0]["addr_info"].as_array().unwrap().iter();
    let mut all: Vec<_> = infos
        .filter(|info| info["scope"] == "global")
        .map(|info| format!("{}/{}", info["local"].as_str().unwrap(), info["prefixlen"]))
        .collect();
    all.sort();
    all
}

fn routes(family: &str, interface: &str) -> BTreeMap<String, String> {
    let routes = ip(&[family, "route", "show", "dev", interface, "proto", "static"]);
    routes
        .iter()
        .map(|route| {
            (
                route["dst"].as_str().unwrap().into(),
                format!(
                    "{} {}",
                    route["gateway"].as_str().unwrap_or("-"),
                    route["metric"]
                ),
            )
        })
        .collect()
}

fn mac(last: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, last])
}

fn network(text: &str) -> Network {
    let (ip, prefix) = text.split_once('/').unwrap();
    Network {
        ip: ip.parse().unwrap(),
        prefix: prefix.parse().unwrap(),
    }
}

fn route(to: Option<&str>, gateway: Option<&str>, metric: Option<u32>) -> Route {
    Route {
        to: to.map(network),
        gateway: gateway.map(|ip| ip.parse().unwrap()),
        metric,
    }
}

fn nic(old: u8, new: u8, addresses: &[&str], routes: Vec<Route>) -> NicIdentity {
    NicIdentity {
        nic: WhichNic::Mac(mac(old)),
        mac: Some(mac(new)),
        addresses: addresses.iter().map(|text| network(text)).collect(),
        routes,
    }
}

/// eth0 and eth1, with addresses and a default route, and somebody at the other ends.
fn make_interfaces() {
    for (name, last, address) in [("eth0", 1, "10.0.0.2/24"), ("eth1", 2, "10.1.0.2/24")] {
        let (own, peer) = (mac(last).to_string(), format!("p{name}"));
        ip(&[
            "link", "add", name, "address", &own, "type", "veth", "peer", "name", &peer,
        ]);
        for end in [name, &peer] {
            ip(&["link", "set", end, "up"]);
        }
        for address in [address, "fd00::2/64"] {
            ip(&["address", "add", address, "dev", name]);
        }
    }
    ip(&["route", "add", "default", "via", "10.0.0.1", "dev", "eth0"]);
}

/// The new Ethernet address of each interface is the old one of the other.
fn new_identity() -> Identity {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let of_first = vec![
        route(None, Some("10.9.0.1"), Some(100)),
        route(None, Some("fd09::1"), Some(100)),
        route(Some("172.16.0.0/12"), Some("192.0.2.1"), None),
    ];
    let of_second = vec![route(Some("198.51.100.0/24"), None, Some(7))];
    Identity {
        seed: vec![42; 64],
        clock_ns: Some(now.as_nanos().try_into().unwrap()),
        hostname: Some("clone".into()),
        machine_id: Some("0123456789abcdef0123456789abcdef".into()),
        nics: vec![
            nic(1, 2, &["10.9.0.7/16", "fd09::7/64"], of_first),
            nic(2, 1, &["10.1.0.2/24"], of_second),
        ],
        dns: vec!["9.9.9.9".parse().unwrap()],
        ssh_host_keys: true,
    }
}

fn assert_routes(family: &str, interface: &str, expected: &[(&str, &str)]) {
    let owned = expected
        .iter()
        .map(|(to, through)| ((*to).to_owned(), (*through).to_owned()));
    assert_eq!(routes(family, interface), owned.collect(), "{interface}");
}

#[test]
fn root_an_identity_changes_interfaces_name_and_files() {
    if std::process::Command::new("ip").arg("-V").output().is_err() {
        println!("SKIPPED: there is no ip");
        return;
    }
    in_private_host(|| {
        make_interfaces();
        let wanted = new_identity();
        let renewed = match renew(&wanted) {
            Ok(renewed) => renewed,
            Err(failure)
                if ["clock", "seed"]
                    .iter()
                    .any(|word| failure.message.contains(word)) =>
            {
                println!(
                    "SKIPPED: not root of the whole machine: {}",
                    failure.message
                );
                return;
            }
            Err(failure) => panic!("{failure:?}"),
        };
        assert_eq!(renewed.warnings, [""; 0]);
        for (name, last) in [("eth0", 2), ("eth1", 1)] {
            assert_eq!(
                ip(&["link", "show", name])[0]["address"],
                mac(last).to_string()
            );
        }
        assert_eq!(addresses("eth0"), ["10.9.0.7/16", "fd09::7/64"]);
        assert_eq!(addresses("eth1"), ["10.1.0.2/24"]);
        assert_routes(
            "-4",
            "eth0",
            &[
                ("default", "10.9.0.1 100"),
                ("172.16.0.0/12", "192.0.2.1 null"),
            ],
        );
        assert_routes("-6", "eth0", &[("default", "fd09::1 100")]);
        assert_routes("-4", "eth1", &[("198.51.100.0/24", "- 7")]);
        assert_eq!(rustix::system::uname().nodename().to_bytes(), b"clone");
        let read = |path| std::fs::read_to_string(path).unwrap();
        assert_eq!(read("/etc/hostname"), "clone\n");
        assert_eq!(
            read("/etc/machine-id"),
            "0123456789abcdef0123456789abcdef\n"
        );
        assert_eq!(read("/etc/resolv.conf"), "nameserver 9.9.9.9\n");
        let first = read("/etc/systemd/network/10-020000000002.network");
        assert!(first.contains("Address=10.9.0.7/16\n"), "{first}");
        assert!(Path::new("/etc/systemd/network/10-020000000001.network").exists());
        // Once more: nothing is in its own way.
        let mut again = wanted.clone();
        again.nics = vec![nic(2, 2, &["10.9.0.7/16"], vec![])];
        renew(&again).unwrap();
        assert_eq!(addresses("eth0"), ["10.9.0.7/16"]);
        assert_routes("-4", "eth0", &[]);
        again.nics = vec![nic(9, 9, &[], vec![])];
        assert_eq!(renew(&again).unwrap_err().kind, FailureKind::NotFound);
    });
}

/// As networkd does, which takes its addresses away when an interface goes down.
#[test]
fn root_an_identity_comes_to_be_while_somebody_else_configures_the_interface() {
    if std::process::Command::new("ip").arg("-V").output().is_err() {
        println!("SKIPPED: there is no ip");
        return;
    }
    in_private_host(|| {
        make_interfaces();
        let index = std::fs::read_to_string("/sys/class/net/eth0/ifindex").unwrap();
        let index = index.trim().parse().unwrap();
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut kernel = Rtnetlink::open().unwrap();
                while is_done.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                    for addresses in [vec![network("10.0.0.99/24")], vec![]] {
                        kernel.set_addresses(index, &addresses).unwrap();
                    }
                }
            });
            for last in 10..210 {
                let old = if last == 10 { 1 } else { last - 1 };
                let identity = Identity {
                    nics: vec![nic(old, last, &["10.9.0.7/16"], vec![])],
                    ..Identity::default()
                };
                renew(&identity).unwrap();
            }
            drop(done);
        });
    });
}
