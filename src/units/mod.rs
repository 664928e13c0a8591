//! Values that cannot be wrong: parsed once at the edge, trusted everywhere after.
//!
//! Invariant: a value of any type here satisfies its own grammar; there is no other way to make one.

pub mod byte_size;
pub mod digest;
pub mod engine_name;
pub mod id;
pub mod mac;
pub mod name;

pub use byte_size::ByteSize;
pub use digest::Digest;
pub use engine_name::EngineName;
pub use id::{RunId, SnapshotId, VmId};
pub use mac::Mac;
pub use name::{SnapshotName, VmName};

/// Implements serde for a type through its `Display` and `FromStr`.
macro_rules! serde_as_string {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use serde_as_string;
