//! The domain: what a virtual machine is, apart from how it is stored, run or shown.

pub mod spec;

pub use spec::VmSpec;
