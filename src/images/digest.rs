//! Content digests: `sha256:<hex>` and `sha512:<hex>`, parsed once and computed on streams.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};
use std::fmt;

/// A checked digest in its text form.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// Why a string is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("digest {0:?} is not sha256:<64 hex> or sha512:<128 hex>")]
pub struct DigestError(String);

impl Digest {
    /// Parses `algorithm:hex`.
    ///
    /// # Errors
    /// When the algorithm is unknown or the hex part has the wrong length or characters.
    pub fn parse(text: &str) -> Result<Self, DigestError> {
        let wrong = || DigestError(super::error::cut(text));
        let (algorithm, hex) = text.split_once(':').ok_or_else(wrong)?;
        let length = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return Err(wrong()),
        };
        if hex.len() == length && is_hex(hex) { Ok(Self(text.to_owned())) } else { Err(wrong()) }
    }

    /// The sha256 digest of `bytes`.
    #[must_use]
    pub fn sha256(bytes: &[u8]) -> Self {
        Self(format!("sha256:{}", hex(&Sha256::digest(bytes))))
    }

    /// The digest of `bytes` by the algorithm of `self`.
    #[must_use]
    pub fn of_same_kind(&self, bytes: &[u8]) -> Self {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish()
    }

    /// `algorithm:hex`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part behind the colon.
    #[must_use]
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// Whether the algorithm is sha256.
    #[must_use]
    pub fn is_sha256(&self) -> bool {
        self.0.starts_with("sha256:")
    }

    /// A hasher of the same algorithm.
    #[must_use]
    pub fn hasher(&self) -> Hasher {
        if self.is_sha256() { Hasher::Sha256(Sha256::new()) } else { Hasher::Sha512(Sha512::new()) }
    }
}

/// Whether `text` is lower-case hex.
pub(crate) fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A digest under way.
#[derive(Debug, Clone)]
pub enum Hasher {
    /// sha256
    Sha256(Sha256),
    /// sha512
    Sha512(Sha512),
}

impl Hasher {
    /// A sha256 hasher.
    #[must_use]
    pub fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(h) => h.update(bytes),
            Self::Sha512(h) => h.update(bytes),
        }
    }

    /// The digest of what was added.
    #[must_use]
    pub fn finish(self) -> Digest {
        Digest(match self {
            Self::Sha256(h) => format!("sha256:{}", hex(&h.finalize())),
            Self::Sha512(h) => format!("sha512:{}", hex(&h.finalize())),
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, DigestError> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digests() {
        assert_eq!(
            Digest::sha256(b"abc").as_str(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let long = Digest::parse(&format!("sha512:{}", "0".repeat(128))).unwrap().of_same_kind(b"abc");
        assert!(long.as_str().starts_with("sha512:ddaf35a193617abacc417349ae204131"));
    }

    #[test]
    fn malformed_digests_are_refused() {
        let good = "a".repeat(64);
        assert!(Digest::parse(&format!("sha256:{good}")).is_ok());
        for bad in [
            good.clone(),
            format!("md5:{good}"),
            format!("sha256:{}", "A".repeat(64)),
            format!("sha256:{}", "a".repeat(63)),
            format!("sha512:{good}"),
            "sha256:../../../../../../../../../../../../../../../../../../etc/passwd".into(),
        ] {
            assert!(Digest::parse(&bad).is_err(), "{bad}");
        }
    }
}
