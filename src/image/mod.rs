//! (in work)

pub mod boot_files;
pub mod erofs;
pub mod layer;
