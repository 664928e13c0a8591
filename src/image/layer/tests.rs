//! A tar goes in, and three judges read what comes out: `fsck.erofs` (every image), the `erofs-rs`
//! crate, and the kernel (`root_` tests).

mod attacks;
mod hostile;
mod judges;
mod property;
mod semantics;
mod support;
