//! SIGPIPE. Rust ignores it, so that `cocoon vm list | head` would end in an error message.
#![expect(unsafe_code, reason = "signal(2) changes the whole process")]

/// Lets a closed pipe end this process silently, as every Unix tool does. For commands only, never
/// for a process that runs a VM.
pub fn restore_default() {
    // SAFETY: SIG_DFL runs no code of this program.
    let _ = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}
