//! Whether this process may handle page faults itself, as an engine does that restores memory lazily
//! (userfaultfd(2), Linux `Documentation/admin-guide/mm/userfaultfd.rst`).
#![expect(unsafe_code, reason = "the crate has the system call as an unsafe one")]

use std::io;

use rustix::mm::{UserfaultfdFlags, userfaultfd};

/// Opens a userfaultfd and closes it again.
///
/// # Errors
/// The kernel was built without it (`ENOSYS`), or this user may not have one (`EPERM`).
pub fn probe() -> io::Result<()> {
    // SAFETY: the descriptor is closed at once, before any range of memory is registered with it.
    let opened = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC) };
    drop(opened?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_the_probe_agrees_with_the_kernel() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: it needs root");
            return;
        }
        let offered = std::path::Path::new("/proc/sys/vm/unprivileged_userfaultfd").exists();
        assert_eq!(probe().is_ok(), offered);
    }
}
