//! (in work)

pub mod layer;
