//! (in work)

pub mod layer;
pub mod reference;
