//! `meta-data`: who the guest is, by which cloud-init tells a first boot from all others.

use serde::Serialize;

use super::{CidataError, json};
use crate::units::VmName;

/// The longest instance id, in bytes; a VM's id has 16.
const MAX_INSTANCE_ID: usize = 64;

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct MetaData<'a> {
    instance_id: &'a str,
    local_hostname: &'a VmName,
}

/// The text of the file.
pub(super) fn text(instance_id: &str, local_hostname: &VmName) -> Result<String, CidataError> {
    if !is_valid(instance_id) {
        return Err(CidataError::InstanceId(instance_id.to_owned()));
    }
    let content = MetaData {
        instance_id,
        local_hostname,
    };
    json("meta-data", &content)
}

/// The guest's root makes `/var/lib/cloud/instances/<instance id>`, so it is no path.
fn is_valid(instance_id: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=MAX_INSTANCE_ID).contains(&instance_id.len()) && instance_id.bytes().all(is_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_id_that_is_a_path_or_nothing_is_refused() {
        let name = "web".parse().unwrap();
        for bad in ["", "..", "a/b", "a\n", "a b", "é", "a\"", &"x".repeat(65)] {
            let error = text(bad, &name).unwrap_err();
            assert!(
                matches!(error, CidataError::InstanceId(ref id) if id == bad),
                "{bad:?}"
            );
        }
        for good in ["0", "00000000000000ab", "i-2", &"x".repeat(64)] {
            assert!(text(good, &name).is_ok(), "{good}");
        }
    }
}
