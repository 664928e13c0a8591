//! The files that hold a guest's identity, so that it keeps the new one over a reboot.
//!
//! ```text
//!   /etc/hostname  /etc/hosts  /etc/machine-id  /etc/resolv.conf
//!   /etc/systemd/network/10-<mac without colons>.network       as the initramfs writes them
//!   /etc/ssh/ssh_host_*_key                                    made anew, each of its kind, by ssh-keygen
//! ```
//! Units are those of `os-image/initramfs/scripts/cocoon-functions`, with its mark in their first line;
//! only units with that mark are ever removed.

use std::fmt::Write;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use crate::protocol::{MacAddress, NicIdentity};

/// First line of the units that are cocoon's.
const MARK: &str = "# Written by cocoon at every boot; edits are lost.";

/// How long a program of systemd's waits for it, in seconds: many clones that wake at once on one host were seen to
/// take longer than its own 25 s. Whoever waits for the agent decides how long is too long.
const BUS_SECONDS: &str = "600";

/// Metric of the first interface's default route; those of the others follow.
const FIRST_METRIC: u32 = 100;

/// Puts a text in the place of a file, at once: who reads it meanwhile sees the old or the new one.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default();
    let mut staged = std::ffi::OsString::from(".cocoon-");
    staged.push(name);
    let staged = folder.join(staged);
    let written = fs::write(&staged, text).and_then(|()| fs::rename(&staged, path));
    if written.is_err() {
        let _ = fs::remove_file(&staged);
        // It may be a mount of its own, which cannot be replaced.
        return fs::write(path, text);
    }
    written
}

pub(super) fn hostname(root: &Path, name: &str) -> io::Result<()> {
    let hosts = root.join("etc/hosts");
    let old = fs::read_to_string(&hosts).unwrap_or_else(|_| "127.0.0.1\tlocalhost\n".into());
    let is_ours = |line: &&str| line.split_whitespace().next() == Some("127.0.1.1");
    let mut text: String = old
        .lines()
        .filter(|line| !is_ours(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let _ = writeln!(text, "127.0.1.1\t{name}");
    write(&hosts, &text)?;
    write(&root.join("etc/hostname"), &format!("{name}\n"))
}

pub(super) fn machine_id(root: &Path, id: &str) -> io::Result<()> {
    write(&root.join("etc/machine-id"), &format!("{id}\n"))?;
    // On some systems a copy, on most a link to the other.
    let dbus = root.join("var/lib/dbus/machine-id");
    match fs::symlink_metadata(&dbus) {
        Ok(meta) if meta.is_file() => write(&dbus, &format!("{id}\n")),
        _ => Ok(()),
    }
}

pub(super) fn resolvers(root: &Path, servers: &[IpAddr]) -> io::Result<()> {
    let text: String = servers
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    // Often a link into /run; `write` puts a file in its place.
    write(&root.join("etc/resolv.conf"), &text)
}

/// Removes cocoon's units of interfaces that had these addresses.
pub(super) fn forget_units(root: &Path, old: &[MacAddress]) -> io::Result<()> {
    let matches: Vec<_> = old.iter().map(|mac| format!("MACAddress={mac}")).collect();
    let folder = root.join("etc/systemd/network");
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let is_of_one = text
            .lines()
            .any(|line| matches.iter().any(|wanted| wanted == line));
        if text.starts_with(MARK) && is_of_one {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Writes the unit of the interface that has the address `mac`, and `place` among its fellows.
pub(super) fn unit(
    root: &Path,
    mac: MacAddress,
    place: u32,
    nic: &NicIdentity,
    dns: &[IpAddr],
) -> io::Result<()> {
    let folder = root.join("etc/systemd/network");
    fs::create_dir_all(&folder)?;
    let digits: String = mac.to_string().split(':').collect();
    write(
        &folder.join(format!("10-{digits}.network")),
        &unit_text(mac, place, nic, dns),
    )
}

fn unit_text(mac: MacAddress, place: u32, nic: &NicIdentity, dns: &[IpAddr]) -> String {
    let mut text = format!(
        "{MARK}\n[Match]\nMACAddress={mac}\n\n[Link]\nRequiredForOnline=yes\n\n[Network]\n"
    );
    for address in &nic.addresses {
        let _ = writeln!(text, "Address={address}");
    }
    text.push_str("LinkLocalAddressing=ipv6\n");
    for server in dns {
        let _ = writeln!(text, "DNS={server}");
    }
    for route in &nic.routes {
        text.push_str("\n[Route]\n");
        if let Some(to) = &route.to {
            let _ = writeln!(text, "Destination={to}");
        }
        if let Some(gateway) = &route.gateway {
            let _ = writeln!(text, "Gateway={gateway}\nGatewayOnLink=yes");
        }
        let _ = writeln!(
            text,
            "Metric={}",
            route.metric.unwrap_or(FIRST_METRIC + place)
        );
    }
    text
}

/// Makes a new host key in the place of each one that there is; sshd reads them when it starts again. A key
/// that cannot be made anew stays.
pub(super) fn ssh_host_keys(root: &Path) -> io::Result<()> {
    let folder = root.join("etc/ssh");
    let kinds = kinds_of_host_keys(&folder);
    if kinds.is_empty() {
        return Ok(());
    }
    for kind in kinds {
        replace_host_key(&folder, &kind)?;
    }
    if Path::new("/run/systemd/system").is_dir() {
        for unit in ["ssh.service", "sshd.service"] {
            try_restart(unit)?;
        }
    }
    Ok(())
}

/// Restarts a unit of systemd's that runs. None of that name is no failure: distributions differ in it, and
/// Debian has the second name only while the unit is enabled.
fn try_restart(unit: &str) -> io::Result<()> {
    const NO_SUCH_UNIT: i32 = 5;
    let status = status_of("systemctl", &["--no-block", "try-restart", unit])?;
    match status.code() {
        Some(NO_SUCH_UNIT) => Ok(()),
        _ => success("systemctl", status),
    }
}

/// Kinds of the host keys in a folder, such as `ed25519`, as ssh-keygen(1) calls them.
fn kinds_of_host_keys(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut kinds: Vec<String> = names
        .filter_map(|name| {
            let kind = name.strip_prefix("ssh_host_")?.strip_suffix("_key")?;
            Some(kind.to_owned())
        })
        .collect();
    kinds.sort();
    kinds
}

fn replace_host_key(folder: &Path, kind: &str) -> io::Result<()> {
    let staged = folder.join(format!(".cocoon-ssh_host_{kind}_key"));
    let public = |key: &Path| key.with_added_extension("pub");
    // Of an agent that was killed: ssh-keygen would ask whether to overwrite it.
    for left in [&staged, &public(&staged)] {
        let _ = fs::remove_file(left);
    }
    run(
        "ssh-keygen",
        &["-q", "-N", "", "-t", kind, "-f", &staged.to_string_lossy()],
    )?;
    let key = folder.join(format!("ssh_host_{kind}_key"));
    fs::rename(public(&staged), public(&key))?;
    fs::rename(&staged, &key)
}

/// Lets networkd, where it runs, see the units: else it would put the old addresses back one day.
pub(super) fn reload_networkd() -> io::Result<()> {
    match Path::new("/run/systemd/netif").is_dir() {
        true => run("networkctl", &["reload"]),
        false => Ok(()),
    }
}

fn run(program: &str, arguments: &[&str]) -> io::Result<()> {
    success(program, status_of(program, arguments)?)
}

fn status_of(program: &str, arguments: &[&str]) -> io::Result<ExitStatus> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("SYSTEMD_BUS_TIMEOUT", BUS_SECONDS)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status()
}

fn success(program: &str, status: ExitStatus) -> io::Result<()> {
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("{program} ended with {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Network, Route, WhichNic};

    const OLD: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const NEW: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        root
    }

    fn read(root: &tempfile::TempDir, name: &str) -> String {
        fs::read_to_string(root.path().join(name)).unwrap()
    }

    #[test]
    fn each_host_key_is_made_anew_and_no_other() {
        if Command::new("ssh-keygen").arg("-?").output().is_err() {
            println!("SKIPPED: there is no ssh-keygen");
            return;
        }
        let root = root();
        ssh_host_keys(root.path()).unwrap();
        let folder = root.path().join("etc/ssh");
        fs::create_dir(&folder).unwrap();
        for name in [
            "ssh_host_ed25519_key",
            "ssh_host_ed25519_key.pub",
            "sshd_config",
        ] {
            fs::write(folder.join(name), "old").unwrap();
        }
        ssh_host_keys(root.path()).unwrap();
        let mut names: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "ssh_host_ed25519_key",
                "ssh_host_ed25519_key.pub",
                "sshd_config"
            ]
        );
        let public = read(&root, "etc/ssh/ssh_host_ed25519_key.pub");
        assert!(public.starts_with("ssh-ed25519 "), "{public}");
        assert!(read(&root, "etc/ssh/ssh_host_ed25519_key").contains("PRIVATE KEY"));

        fs::write(folder.join("ssh_host_none_key"), "old").unwrap();
        assert!(ssh_host_keys(root.path()).is_err());
        assert_eq!(read(&root, "etc/ssh/ssh_host_none_key"), "old");
    }

    #[test]
    fn the_name_is_written_where_programs_look_and_other_lines_stay() {
        let root = root();
        fs::write(
            root.path().join("etc/hosts"),
            "127.0.0.1\tlocalhost\n127.0.1.1 old\n10.0.0.9 db\n",
        )
        .unwrap();
        hostname(root.path(), "new").unwrap();
        assert_eq!(
            read(&root, "etc/hosts"),
            "127.0.0.1\tlocalhost\n10.0.0.9 db\n127.0.1.1\tnew\n"
        );
        assert_eq!(read(&root, "etc/hostname"), "new\n");
    }

    #[test]
    fn a_unit_replaces_that_of_the_old_address_and_leaves_foreign_ones() {
        let root = root();
        let folder = root.path().join("etc/systemd/network");
        fs::create_dir_all(&folder).unwrap();
        let old = format!("{MARK}\n[Match]\nMACAddress={OLD}\n");
        fs::write(folder.join("10-020000000001.network"), &old).unwrap();
        fs::write(
            folder.join("20-mine.network"),
            format!("[Match]\nMACAddress={OLD}\n"),
        )
        .unwrap();
        let nic = NicIdentity {
            nic: WhichNic::Mac(OLD),
            mac: Some(NEW),
            addresses: vec![Network {
                ip: [10, 0, 0, 2].into(),
                prefix: 16,
            }],
            routes: vec![Route {
                to: None,
                gateway: Some([10, 0, 0, 1].into()),
                metric: None,
            }],
        };
        forget_units(root.path(), &[OLD]).unwrap();
        unit(root.path(), NEW, 1, &nic, &[[9, 9, 9, 9].into()]).unwrap();
        // The same words as the initramfs has for such a NIC.
        let expected = "# Written by cocoon at every boot; edits are lost.\n[Match]\nMACAddress=02:00:00:00:00:02\n\n\
            [Link]\nRequiredForOnline=yes\n\n[Network]\nAddress=10.0.0.2/16\nLinkLocalAddressing=ipv6\nDNS=9.9.9.9\n\n\
            [Route]\nGateway=10.0.0.1\nGatewayOnLink=yes\nMetric=101\n";
        assert_eq!(
            read(&root, "etc/systemd/network/10-020000000002.network"),
            expected
        );
        assert!(!folder.join("10-020000000001.network").exists());
        assert!(folder.join("20-mine.network").exists());
    }

    #[test]
    fn a_link_is_replaced_by_a_file_and_nothing_is_left_beside_it() {
        let root = root();
        std::os::unix::fs::symlink("/nowhere/resolv.conf", root.path().join("etc/resolv.conf"))
            .unwrap();
        resolvers(
            root.path(),
            &[[1, 1, 1, 1].into(), "2606::1".parse().unwrap()],
        )
        .unwrap();
        assert_eq!(
            read(&root, "etc/resolv.conf"),
            "nameserver 1.1.1.1\nnameserver 2606::1\n"
        );
        machine_id(root.path(), "0123456789abcdef0123456789abcdef").unwrap();
        assert_eq!(fs::read_dir(root.path().join("etc")).unwrap().count(), 2);
    }

    #[test]
    fn host_keys_are_made_anew_only_where_there_were_some() {
        let root = root();
        ssh_host_keys(root.path()).unwrap();
        assert!(!root.path().join("etc/ssh").exists());
        if Command::new("ssh-keygen")
            .arg("-?")
            .stderr(Stdio::null())
            .status()
            .is_err()
        {
            println!("SKIPPED: there is no ssh-keygen");
            return;
        }
        fs::create_dir(root.path().join("etc/ssh")).unwrap();
        fs::write(root.path().join("etc/ssh/ssh_host_ed25519_key"), "old").unwrap();
        ssh_host_keys(root.path()).unwrap();
        assert!(read(&root, "etc/ssh/ssh_host_ed25519_key").contains("PRIVATE KEY"));
    }
}
