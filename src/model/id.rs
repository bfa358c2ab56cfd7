//! Ids of distinct types. A sandbox or container id is 64 lower-case hex digits from the kernel's random source, as in
//! containerd and CRI-O; an image id is the digest of its config blob.

use super::random;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes of randomness in a sandbox or container id (64 hex digits, as containerd and CRI-O).
const ID_BYTES: usize = 32;

/// Why a string is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The string has the wrong length or characters.
    #[error("{kind} id {value:?} is not 64 lower-case hexadecimal digits")]
    Malformed {
        /// The id's object.
        kind: &'static str,
        /// The rejected text.
        value: String,
    },
    /// The kernel's random source could not be read.
    #[error("make a new id at random: {0}")]
    Random(String),
}

fn is_hex64(s: &str) -> bool {
    s.len() == ID_BYTES * 2 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn random_hex() -> Result<String, IdError> {
    let mut bytes = [0u8; ID_BYTES];
    random::fill(&mut bytes).map_err(|e| IdError::Random(e.to_string()))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Makes a fresh random id.
            ///
            /// # Errors
            /// When the kernel's random source cannot be read.
            pub fn random() -> Result<Self, IdError> {
                Ok(Self(random_hex()?.into()))
            }

            /// Checks that `s` is a full id.
            ///
            /// # Errors
            /// If it is not 64 lower-case hex digits.
            pub fn parse(s: &str) -> Result<Self, IdError> {
                if is_hex64(s) {
                    Ok(Self(s.into()))
                } else {
                    Err(IdError::Malformed { kind: $kind, value: s.chars().take(80).collect() })
                }
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first 13 digits, as crictl shows them.
            #[must_use]
            pub fn short(&self) -> &str {
                &self.0[..13]
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(s: String) -> Result<Self, IdError> {
                Self::parse(&s)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

hex_id!(
    /// A pod sandbox's id.
    SandboxId,
    "sandbox"
);
hex_id!(
    /// A container's id.
    ContainerId,
    "container"
);

/// An image's id: the digest of its config blob, `sha256:<64 hex>`. Equal in every RPC.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(std::sync::Arc<str>);

impl ImageId {
    /// Takes a config digest in its text form.
    #[must_use]
    pub fn from_digest(digest: &str) -> Self {
        Self(digest.into())
    }

    /// The id with its algorithm prefix.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hex part behind `sha256:`.
    #[must_use]
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or(&self.0, |(_, hex)| hex)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_full_and_differ() {
        let (a, b) = (SandboxId::random().unwrap(), SandboxId::random().unwrap());
        assert_ne!(a, b);
        assert_eq!(SandboxId::parse(a.as_str()).unwrap(), a);
        assert_eq!(a.short().len(), 13);
    }

    #[test]
    fn malformed_ids_are_refused() {
        for bad in ["", "abc", &"g".repeat(64), &"A".repeat(64), &"a".repeat(63), "../../../etc"] {
            assert!(ContainerId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn image_id_hex_drops_the_algorithm() {
        let id = ImageId::from_digest("sha256:abcd");
        assert_eq!((id.hex(), id.as_str()), ("abcd", "sha256:abcd"));
    }
}
