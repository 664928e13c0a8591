//! `shutdown`: the guest ends, in order where it has an init that knows how.
//!
//! | init | how |
//! |---|---|
//! | systemd (`/run/systemd/system` is there) | `systemctl --no-block poweroff` or `reboot` |
//! | busybox's | SIGUSR2 or SIGTERM to process 1 |
//! | none of them | sync(2), reboot(2) |

use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal};
use rustix::system::RebootCommand;

use crate::protocol::{Failure, FailureKind, Shutdown};

/// Where systemd says that it is the init (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

/// How the guest will end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prepared {
    init: Init,
    reboot: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Init {
    Systemd,
    Busybox,
    Other,
}

/// Finds out how to end; nothing happens yet.
pub(super) fn prepare(wanted: Shutdown) -> Result<Prepared, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new(FailureKind::Invalid, "the agent is not root"));
    }
    let own = std::fs::read_link("/proc/1/exe").unwrap_or_default();
    let init = match own.file_name().and_then(|name| name.to_str()) {
        _ if Path::new(SYSTEMD).is_dir() => Init::Systemd,
        Some("busybox") => Init::Busybox,
        _ => Init::Other,
    };
    Ok(Prepared {
        init,
        reboot: wanted.reboot,
    })
}

impl Prepared {
    /// Ends the guest. What cannot be asked of its init is asked of its kernel.
    pub(super) fn run(self) {
        let asked = match self.init {
            Init::Systemd => {
                let verb = if self.reboot { "reboot" } else { "poweroff" };
                let mut command = Command::new("systemctl");
                command.args(["--no-block", verb]).stdin(Stdio::null());
                command.status().is_ok_and(|status| status.success())
            }
            Init::Busybox => {
                // As its own `reboot` and `poweroff` do.
                let signal = if self.reboot {
                    Signal::TERM
                } else {
                    Signal::USR2
                };
                rustix::process::kill_process(Pid::INIT, signal).is_ok()
            }
            Init::Other => false,
        };
        if !asked {
            rustix::fs::sync();
            let command = match self.reboot {
                true => RebootCommand::Restart,
                false => RebootCommand::PowerOff,
            };
            let _ = rustix::system::reboot(command);
        }
    }
}
