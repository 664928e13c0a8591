//! (in work)

pub mod conflist;
pub mod plan;
pub mod result;
