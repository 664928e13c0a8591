//! Names of VMs and snapshots. A VM's name goes into the guest's kernel command line and becomes its
//! hostname, so its grammar leaves no room for a second parameter.

use std::fmt;
use std::str::FromStr;

use super::serde_as_string;

/// The longest name, in bytes: a hostname label of RFC 1123.
pub const MAX_LEN: usize = 63;

/// A name of the form `^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmName(String);

/// The name of a snapshot: of the same form, and among snapshots alone unique.
pub type SnapshotName = VmName;

/// Why a text is not a name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is not a name: use 1 to 63 letters, digits, dots, dashes and underscores, the first a letter or digit"
)]
pub struct InvalidName(String);

impl VmName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name made from free text (such as an image reference): what the grammar does not allow
    /// becomes a dash, and the end is cut to leave `room` bytes for a suffix.
    pub fn from_text(text: &str, room: usize) -> Self {
        let start = text.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        let mut name: String = start
            .chars()
            .map(|c| if is_inner(c) { c } else { '-' })
            .collect();
        name.truncate(MAX_LEN - room.min(MAX_LEN - 1));
        if name.is_empty() {
            name.push('x');
        }
        Self(name)
    }
}

fn is_inner(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

impl FromStr for VmName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let first = text
            .chars()
            .next()
            .is_some_and(|c| c.is_ascii_alphanumeric());
        if first && text.len() <= MAX_LEN && text.chars().all(is_inner) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName(text.to_owned()))
        }
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

serde_as_string!(VmName);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_follow_the_grammar() {
        for good in ["a", "web-1", "A.b_c", &"x".repeat(63)] {
            assert!(good.parse::<VmName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "a b", "a\n", "a=b", "é", &"x".repeat(64)] {
            assert!(bad.parse::<VmName>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_name_made_from_any_text_is_valid_and_leaves_room(text in "\\PC{0,80}", room in 0usize..20) {
            let name = VmName::from_text(&text, room);
            prop_assert_eq!(name.as_str().parse::<VmName>(), Ok(name.clone()));
            prop_assert!(name.as_str().len() + room <= MAX_LEN);
        }
    }
}
