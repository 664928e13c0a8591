//! Users and groups, from `/etc/passwd` and `/etc/group` alone: the program is static, and NSS is not.

use std::collections::BTreeSet;
use std::fs;

use rustix::process::{Gid, Uid};

use crate::protocol::{Failure, FailureKind};

/// A user, as a login finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    /// All groups, the own one included.
    pub(super) groups: Vec<Gid>,
    pub(super) home: String,
}

/// The user that `wanted` means: `name`, `uid`, either followed by `:group` or `:gid`.
pub(super) fn find(wanted: &str) -> Result<User, Failure> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    among(wanted, &read("/etc/passwd"), &read("/etc/group"))
}

fn among(wanted: &str, passwd: &str, group: &str) -> Result<User, Failure> {
    let unknown = |what, name| {
        let message = format!("the guest has no {what} {name:?}");
        Failure::new(FailureKind::CannotRun, message)
    };
    let (user, own_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let fields = |line: &'_ str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let id = |text: &str| text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
    let entry = passwd.lines().map(fields).find(|entry| {
        let is_named = entry.first().is_some_and(|name| name == user);
        entry.len() >= 6 && (is_named || id(user).is_some() && id(&entry[2]) == id(user))
    });
    let (name, uid, mut gid, home) = match &entry {
        Some(entry) => (
            entry[0].clone(),
            id(&entry[2]).ok_or_else(|| unknown("user", user))?,
            id(&entry[3]).ok_or_else(|| unknown("user", user))?,
            entry[5].clone(),
        ),
        // A number needs no entry.
        None => (
            user.to_owned(),
            id(user).ok_or_else(|| unknown("user", user))?,
            0,
            "/".into(),
        ),
    };
    let groups: Vec<_> = group
        .lines()
        .map(fields)
        .filter(|entry| entry.len() >= 4)
        .collect();
    if let Some(wanted) = own_group {
        let entry = groups.iter().find(|entry| entry[0] == wanted);
        let found = entry.map_or_else(|| id(wanted), |entry| id(&entry[2]));
        gid = found.ok_or_else(|| unknown("group", wanted))?;
    }
    let mut all = BTreeSet::from([gid]);
    if own_group.is_none() {
        let is_member = |entry: &&Vec<String>| entry[3].split(',').any(|member| member == name);
        all.extend(
            groups
                .iter()
                .filter(is_member)
                .filter_map(|entry| id(&entry[2])),
        );
    }
    Ok(User {
        name,
        uid: Uid::from_raw(uid),
        gid: Gid::from_raw(gid),
        groups: all.into_iter().map(Gid::from_raw).collect(),
        home,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:1000::/home/ann:/bin/sh\n";
    const GROUP: &str = "root:x:0:\naudio:x:29:bob,ann\nann:x:1000:\nkvm:x:108:ann\n";

    #[test]
    fn users_are_found_by_name_and_number_with_their_groups() {
        for (wanted, uid, gid, groups, home) in [
            ("root", 0, 0, &[0][..], "/root"),
            ("ann", 1000, 1000, &[29, 108, 1000], "/home/ann"),
            ("1000", 1000, 1000, &[29, 108, 1000], "/home/ann"),
            ("ann:audio", 1000, 29, &[29], "/home/ann"),
            ("4711", 4711, 0, &[0], "/"),
            ("4711:12", 4711, 12, &[12], "/"),
        ] {
            let user = among(wanted, PASSWD, GROUP).unwrap();
            let got: Vec<_> = user.groups.iter().map(|group| group.as_raw()).collect();
            assert_eq!(
                (user.uid.as_raw(), user.gid.as_raw()),
                (uid, gid),
                "{wanted}"
            );
            assert_eq!(
                (got.as_slice(), user.home.as_str()),
                (groups, home),
                "{wanted}"
            );
        }
        for wanted in ["bob", "broken", "", "-1", "4294967295", "ann:nobody"] {
            assert!(among(wanted, PASSWD, GROUP).is_err(), "{wanted}");
        }
    }
}
