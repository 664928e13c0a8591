//! `hello`: who is there.

use std::path::Path;

use crate::protocol::{Failure, Hello, VERSION};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// cloud-init writes it when its last stage is over.
const CLOUD_INIT_RESULT: &str = "/run/cloud-init/result.json";

pub(super) fn hello() -> Result<Hello, Failure> {
    let boot_id = std::fs::read_to_string(BOOT_ID)
        .map_err(|error| super::refused(format_args!("read {BOOT_ID}"), error))?;
    Ok(Hello {
        version: VERSION,
        boot_id: boot_id.trim().to_owned(),
        hostname: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        cloud_init_done: Path::new(CLOUD_INIT_RESULT).exists(),
    })
}
