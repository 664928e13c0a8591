//! What users type, and what they read.

mod completion;
mod crowd;
mod damaged;
mod debug;
mod disk_images;
mod doctor;
mod full_disk;
mod import;
#[cfg(feature = "failpoints")]
mod killed;
mod log;
mod mistakes;
mod newcomers;
mod output;
mod proxy;
mod seed;
mod snapshot;
mod status;
