//! The operating system, one concern a file. The only unsafe code outside the engines stands here.

pub mod cpu;
pub mod failpoint;
#[cfg(test)]
pub(crate) mod fixture;
pub mod flock;
pub mod hugepages;
pub mod inotify;
pub mod interrupt;
pub mod kvm;
pub mod malloc;
pub mod netns;
pub mod parent;
pub mod pidfd;
pub mod ram;
pub mod random;
pub mod reflink;
pub mod seccomp;
pub mod sigpipe;
pub mod sparse;
pub mod thread;
pub mod tty;
pub mod tun;
pub mod userfaultfd;
