//! `hello`: who is there.

use crate::protocol::{Failure, Hello, VERSION};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

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
    })
}
