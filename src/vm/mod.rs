//! The domain: what a virtual machine is, apart from how it is stored, run or shown.

pub mod cmdline;
pub mod config;
pub mod records;
pub mod spec;
pub mod state;

pub use config::VmConfig;
pub use records::VmRecord;
pub use spec::VmSpec;
pub use state::VmState;
