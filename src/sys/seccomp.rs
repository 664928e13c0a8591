//! Threads that may make only certain system calls, and what is said of one that makes another.
//!
//! ```text
//! confine(filter) ─▶ the thread makes a forbidden call ─▶ SIGSYS ─▶ a line on standard error
//!                                                                  └▶ the process ends by SIGSYS
//! ```
//! Invariant: a forbidden call is never made, and never goes unsaid: [`name_forbidden_calls`] comes
//! before the first [`confine`].
#![expect(unsafe_code, reason = "siginfo of SIGSYS has no safe interface")]

use std::cell::Cell;
use std::io::{self, Cursor, Write};

use seccompiler::BpfProgramRef;
use signal_hook::consts::SIGSYS;
use vmm_sys_util::signal::register_signal_handler;

/// Room for the longest line, in bytes; what is longer is cut.
const LINE: usize = 96;

thread_local! {
    /// What people call this thread; empty where nobody said.
    static KIND: Cell<&'static str> = const { Cell::new("") };
}

/// Has each forbidden system call of this process named on standard error before it ends the process.
///
/// # Errors
/// The kernel refused, which it does not.
pub fn name_forbidden_calls() -> io::Result<()> {
    register_signal_handler(SIGSYS, report_forbidden_call).map_err(io::Error::from)
}

/// Confines the calling thread, which people call `kind` (`an I/O thread`), to what `filter` allows.
///
/// # Errors
/// The kernel has no seccomp, or refuses the filter.
pub fn confine(filter: BpfProgramRef<'_>, kind: &'static str) -> io::Result<()> {
    KIND.set(kind);
    seccompiler::apply_filter(filter).map_err(|error| match error {
        seccompiler::Error::Prctl(source) | seccompiler::Error::Seccomp(source) => source,
        error => io::Error::other(error),
    })
}

/// The head of `siginfo_t` for SIGSYS (signal(7); `struct siginfo`, `_sigsys`, on 64-bit Linux).
#[repr(C)]
struct SigsysInfo {
    signo: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    _padding: libc::c_int,
    call_address: *const libc::c_void,
    syscall: libc::c_int,
    arch: libc::c_uint,
}

/// Runs as a signal handler on the thread that made the call, all other signals held back; never
/// returns to it. Takes no lock and no memory.
extern "C" fn report_forbidden_call(
    _: libc::c_int,
    info: *mut libc::siginfo_t,
    _: *mut libc::c_void,
) {
    // SAFETY: the kernel fills 128 bytes, of which these are the first 32 when the signal is SIGSYS.
    let info = unsafe { &*info.cast::<SigsysInfo>() };
    let mut line = [0_u8; LINE];
    let mut cursor = Cursor::new(line.as_mut_slice());
    // The filter still holds: of all calls, only write(2) is sure to pass it. Should the line get
    // lost, there is no one to tell.
    let _ = write!(cursor, "seccomp: forbidden system call {}", info.syscall);
    let _ = match KIND.get() {
        "" => writeln!(cursor),
        kind => writeln!(cursor, " on {kind}"),
    };
    let length = usize::try_from(cursor.position()).unwrap_or(0);
    let _ = rustix::io::write(rustix::stdio::stderr(), &line[..length]);
    // Ends the process by SIGSYS, so whoever waits for it sees why; so does the kernel, if this
    // makes another forbidden call.
    let _ = signal_hook::low_level::emulate_default_handler(SIGSYS);
}

#[cfg(test)]
mod tests {
    use super::*;
    use seccompiler::{SeccompAction, SeccompFilter};
    use std::os::unix::process::ExitStatusExt;

    /// In a process of its own, which it ends.
    #[test]
    fn a_forbidden_call_is_named_and_ends_the_process() {
        const CHILD: &str = "COCOON_TEST_MAKES_A_FORBIDDEN_CALL";
        if std::env::var_os(CHILD).is_some() {
            name_forbidden_calls().unwrap();
            let rules = [(libc::SYS_getppid, vec![])].into_iter().collect();
            let filter = SeccompFilter::new(
                rules,
                SeccompAction::Allow,
                SeccompAction::Trap,
                std::env::consts::ARCH.try_into().unwrap(),
            );
            let filter = seccompiler::BpfProgram::try_from(filter.unwrap()).unwrap();
            confine(&filter, "a test's thread").unwrap();
            let _ = rustix::process::getppid();
            unreachable!("the call was made");
        }
        let name = "sys::seccomp::tests::a_forbidden_call_is_named_and_ends_the_process";
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let line = format!(
            "seccomp: forbidden system call {} on a test's thread\n",
            libc::SYS_getppid
        );
        assert!(said.contains(&line), "{said}");
        assert_eq!(output.status.signal(), Some(SIGSYS));
    }
}
