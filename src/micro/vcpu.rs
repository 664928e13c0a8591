//! The threads of the virtual processors.
//!
//! ```text
//!           Run                 KVM_RUN ─ exit ─▶ bus ─▶ KVM_RUN …
//!  waiting ─────▶ running ──────────────────────────────────┐
//!     ▲                 ▲ SIGRTMIN ─▶ immediate_exit ─▶ EINTR: look for commands
//!     └──── Pause ──────┴── reset, power off, failure: tells the notices, waits for commands
//! ```
//! Invariants: commands are looked at only after KVM_RUN returned EINTR, when the last exit is complete
//! and the registers are whole. A command is sent before its signal, so none is missed. A vCPU is
//! touched by its own thread alone.
#![expect(
    unsafe_code,
    reason = "a signal handler tells KVM_RUN to return, through memory shared with the kernel"
)]

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::bus::Bus;
use super::lane::Prologue;
use super::notice::{Notice, Notices};
use crate::sys::thread::STACK_BYTES;

/// Work for a vCPU's thread, on its vCPU.
type Work = Box<dyn FnOnce(&VcpuFd) + Send>;

enum Command {
    Run,
    Pause(Sender<()>),
    Work(Work),
    End,
}

/// A failure of a vCPU's thread.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VcpuError {
    /// No thread.
    #[error("cannot start the thread of vCPU {vcpu}")]
    Start {
        /// Its number.
        vcpu: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread is gone.
    #[error("vCPU {vcpu} does not answer")]
    Gone {
        /// Its number.
        vcpu: u32,
    },
    /// The signal by which threads are woken cannot be taken.
    #[error("cannot listen to the signal that wakes vCPUs")]
    Signal(#[source] io::Error),
}

/// The vCPUs of a VM, paused at first. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Vcpus(Vec<Vcpu>);

#[derive(Debug)]
struct Vcpu {
    number: u32,
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
}

/// What all vCPUs of a VM share.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    /// Guest-physical addresses that are no RAM.
    pub(crate) mmio: Bus,
    /// I/O ports.
    pub(crate) ports: Bus,
    /// Who looks after the VM.
    pub(crate) notices: Notices,
}

impl Vcpus {
    /// Starts a thread for each of `fds`, numbered in order.
    ///
    /// # Errors
    /// The process has no thread left.
    pub(crate) fn start(
        fds: Vec<VcpuFd>,
        surroundings: &Surroundings,
        prologue: &Prologue,
    ) -> Result<Self, VcpuError> {
        register_signal_handler(SIGRTMIN(), leave_guest)
            .map_err(|error| VcpuError::Signal(error.into()))?;
        // Those that began are ended, should one of the others not.
        let mut vcpus = Self(Vec::new());
        for (number, fd) in (0..).zip(fds) {
            let vcpu = Vcpu::start(number, fd, surroundings.clone(), prologue.clone())?;
            vcpus.0.push(vcpu);
        }
        Ok(vcpus)
    }

    /// Lets all vCPUs run.
    ///
    /// # Errors
    /// A thread is gone.
    pub(crate) fn run(&self) -> Result<(), VcpuError> {
        self.0.iter().try_for_each(|vcpu| vcpu.send(Command::Run))
    }

    /// Returns when all vCPUs have left the guest.
    ///
    /// # Errors
    /// A thread is gone.
    pub(crate) fn pause(&self) -> Result<(), VcpuError> {
        let ask = |vcpu: &Vcpu| {
            let (stands, stood) = channel();
            vcpu.send(Command::Pause(stands)).map(|()| stood)
        };
        let asked: Vec<_> = self.0.iter().map(ask).collect::<Result<_, _>>()?;
        for (vcpu, stood) in self.0.iter().zip(asked) {
            stood.recv().map_err(|_| vcpu.gone())?;
        }
        Ok(())
    }

    /// Lets `f` work on each paused vCPU, at the same time; the results are in order of number.
    ///
    /// # Errors
    /// A thread is gone.
    pub(crate) fn each<T: Send + 'static>(
        &self,
        f: impl Fn(u32, &VcpuFd) -> T + Clone + Send + 'static,
    ) -> Result<Vec<T>, VcpuError> {
        let ask = |vcpu: &Vcpu| {
            let (answer, answered) = channel();
            let (f, number) = (f.clone(), vcpu.number);
            let work: Work = Box::new(move |fd| {
                // The caller waits for it.
                let _ = answer.send(f(number, fd));
            });
            vcpu.send(Command::Work(work)).map(|()| answered)
        };
        let asked: Vec<_> = self.0.iter().map(ask).collect::<Result<_, _>>()?;
        let answers = self.0.iter().zip(asked);
        answers
            .map(|(vcpu, answered)| answered.recv().map_err(|_| vcpu.gone()))
            .collect()
    }
}

impl Vcpu {
    fn start(
        number: u32,
        fd: VcpuFd,
        surroundings: Surroundings,
        prologue: Prologue,
    ) -> Result<Self, VcpuError> {
        let failed = |source| VcpuError::Start {
            vcpu: number,
            source,
        };
        let (commands, incoming) = channel();
        let (ready, started) = channel();
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{number}"))
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let runner = Runner {
                    number,
                    fd,
                    surroundings,
                    incoming,
                };
                runner.live(&prologue, &ready);
            })
            .map_err(failed)?;
        let begun = started
            .recv()
            .map_err(|_| VcpuError::Gone { vcpu: number })
            .and_then(|begun| begun.map_err(failed));
        if let Err(error) = begun {
            // It is ending; if by a panic, the error says so.
            let _ = thread.join();
            return Err(error);
        }
        Ok(Self {
            number,
            commands,
            thread: Some(thread),
        })
    }

    fn gone(&self) -> VcpuError {
        VcpuError::Gone { vcpu: self.number }
    }

    fn send(&self, command: Command) -> Result<(), VcpuError> {
        self.commands.send(command).map_err(|_| self.gone())?;
        // A thread that waits gets a signal that it does not need.
        if let Some(thread) = &self.thread {
            thread.kill(SIGRTMIN()).map_err(|_| self.gone())?;
        }
        Ok(())
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        for vcpu in &self.0 {
            // A thread that is gone needs no word.
            let _ = vcpu.send(Command::End);
        }
        for vcpu in &mut self.0 {
            if let Some(thread) = vcpu.thread.take()
                && thread.join().is_err()
            {
                tracing::error!(vcpu = vcpu.number, "the thread of a vCPU panicked");
            }
        }
    }
}

/// A vCPU on its thread.
struct Runner {
    number: u32,
    fd: VcpuFd,
    surroundings: Surroundings,
    incoming: Receiver<Command>,
}

/// What a vCPU's thread does next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Run,
    Wait,
    End,
}

impl Runner {
    fn live(mut self, prologue: &Prologue, ready: &Sender<io::Result<()>>) {
        let run = ptr::from_mut(&mut self.fd.get_kvm_run().immediate_exit);
        IMMEDIATE_EXIT.set(run);
        let prepared = prologue();
        let mut next = match prepared {
            Ok(()) => Next::Wait,
            Err(_) => Next::End,
        };
        // The starter waits for it. Only now, when no signal can be missed, may it send commands.
        let _ = ready.send(prepared);
        loop {
            next = match next {
                Next::Run => self.run(),
                Next::Wait => match self.incoming.recv() {
                    Ok(command) => self.obey(command, Next::Wait),
                    Err(_) => Next::End,
                },
                Next::End => break,
            };
        }
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }

    fn obey(&self, command: Command, now: Next) -> Next {
        match command {
            Command::Run => Next::Run,
            Command::Pause(stands) => {
                // Whoever pauses waits for it.
                let _ = stands.send(());
                Next::Wait
            }
            Command::Work(work) => {
                work(&self.fd);
                now
            }
            Command::End => Next::End,
        }
    }

    /// Enters the guest until it exits, and serves the exit.
    fn run(&mut self) -> Next {
        let Surroundings {
            mmio,
            ports,
            notices,
        } = &self.surroundings;
        let failed = |why: String| {
            notices.tell(Notice::VcpuFailed {
                vcpu: self.number,
                why,
            });
            Next::Wait
        };
        match self.fd.run() {
            Ok(VcpuExit::MmioRead(address, data)) => mmio.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => mmio.write(address, data),
            Ok(VcpuExit::IoIn(port, data)) => ports.read(port.into(), data),
            Ok(VcpuExit::IoOut(port, data)) => ports.write(port.into(), data),
            // A triple fault: how a PC resets itself when all else fails.
            Ok(VcpuExit::Shutdown) => {
                notices.tell(Notice::Reset);
                return Next::Wait;
            }
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => {}
            Ok(exit) => return failed(format!("{exit:?}")),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => {
                    self.fd.set_kvm_immediate_exit(0);
                    return self.commands();
                }
                _ => return failed(error.to_string()),
            },
        }
        Next::Run
    }

    /// What the commands that have come say.
    fn commands(&self) -> Next {
        let mut next = Next::Run;
        loop {
            match self.incoming.try_recv() {
                Ok(command) => next = self.obey(command, next),
                Err(TryRecvError::Empty) => return next,
                Err(TryRecvError::Disconnected) => return Next::End,
            }
            if next == Next::End {
                return next;
            }
        }
    }
}

thread_local! {
    /// `immediate_exit` in this thread's `kvm_run`, or null where there is no vCPU.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The handler of SIGRTMIN: KVM_RUN returns now, or at once when it is called next.
extern "C" fn leave_guest(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: it points into the mapping that this thread's `VcpuFd` owns, and is set to null by
        // this thread before that is dropped.
        unsafe { flag.write_volatile(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_ioctls::Kvm;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn vcpus_of_which_one_does_not_start_are_gone_at_once() {
        let Ok(kvm) = Kvm::new() else {
            println!("SKIPPED: /dev/kvm does not open");
            return;
        };
        // A thread that is left alone ends before one looks, more often than not.
        for _ in 0..20 {
            let fd = kvm.create_vm().unwrap();
            fd.create_irq_chip().unwrap();
            let (sender, told) = channel();
            let surroundings = Surroundings {
                mmio: Bus::default(),
                ports: Bus::default(),
                notices: Notices::new(sender),
            };
            let second = AtomicBool::new(false);
            let prologue: Prologue = Arc::new(move || match second.swap(true, Ordering::SeqCst) {
                false => Ok(()),
                true => Err(io::ErrorKind::Unsupported.into()),
            });
            let fds = (0..2).map(|number| fd.create_vcpu(number).unwrap());
            let error = Vcpus::start(fds.collect(), &surroundings, &prologue).unwrap_err();
            assert!(matches!(error, VcpuError::Start { vcpu: 1, .. }), "{error}");
            drop(surroundings);
            // Whoever could still tell something holds a sender.
            assert_eq!(
                told.try_recv().unwrap_err(),
                std::sync::mpsc::TryRecvError::Disconnected
            );
        }
    }
}
