//! The operating system, one concern a file. The only unsafe code outside the engines stands here.

pub mod flock;
pub mod netns;
pub mod tun;
