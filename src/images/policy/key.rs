//! Public keys that verify signatures. Owns the accepted algorithms; ring does the arithmetic.

use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519,
    RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;
use spki::{ObjectIdentifier, SubjectPublicKeyInfoRef};
use std::fmt;

/// RFC 5480, 2.1.1: id-ecPublicKey and its named curves.
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
/// RFC 8410, 3.
const ID_ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
/// RFC 8017, A.1.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// Bytes of an uncompressed point (SEC 1, 2.3.3) on P-256 and P-384: all that ring reads, and all that cosign and
/// openssl write.
const P256_POINT: usize = 65;
const P384_POINT: usize = 97;
/// Bytes of an Ed25519 key.
const ED25519_KEY: usize = 32;
/// The modulus of a 2048-bit RSA key has this many bytes, with some overhead. Shorter keys are broken, and ring would
/// only say of each signature that it does not verify.
const RSA_MODULUS: usize = 256;

type Algorithms = &'static [&'static dyn VerificationAlgorithm];

// cosign always hashes with SHA-256; its bundles and other signers use a hash as long as the curve.
const WITH_P256: Algorithms = &[&ECDSA_P256_SHA256_ASN1, &ECDSA_P256_SHA384_ASN1];
const WITH_P384: Algorithms = &[&ECDSA_P384_SHA256_ASN1, &ECDSA_P384_SHA384_ASN1];
const WITH_ED25519: Algorithms = &[&ED25519];
const WITH_RSA: Algorithms = &[&RSA_PKCS1_2048_8192_SHA256, &RSA_PSS_2048_8192_SHA256];

/// Why a file or string is not a usable key.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyError {
    #[error("no PEM block \"PUBLIC KEY\" in it")]
    NotPem,
    #[error("more than one PEM block \"PUBLIC KEY\"; give each key a file of its own")]
    Several,
    #[error("not a SubjectPublicKeyInfo: {0}")]
    Malformed(String),
    #[error(
        "algorithm {0} is not supported; ECDSA on P-256 and P-384, Ed25519 and RSA of 2048 to 8192 bits are"
    )]
    Algorithm(ObjectIdentifier),
    #[error("an {0} key of {1} bytes is not supported")]
    Length(&'static str, usize),
}

/// One key with the algorithms that its signatures may have.
pub(super) struct PublicKey {
    /// Its origin, for messages.
    name: String,
    bytes: Vec<u8>,
    algorithms: Algorithms,
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicKey").field("name", &self.name).finish_non_exhaustive()
    }
}

impl PublicKey {
    /// The only public key in `pem`.
    pub(super) fn parse(name: String, pem: &[u8]) -> Result<Self, KeyError> {
        let mut blocks = SubjectPublicKeyInfoDer::pem_slice_iter(pem);
        let first = blocks.next().ok_or(KeyError::NotPem)?.map_err(|e| KeyError::Malformed(e.to_string()))?;
        if blocks.next().is_some() {
            return Err(KeyError::Several);
        }
        let malformed = |e: spki::Error| KeyError::Malformed(e.to_string());
        let info = SubjectPublicKeyInfoRef::try_from(first.as_ref()).map_err(malformed)?;
        let curve = info.algorithm.parameters.and_then(|p| ObjectIdentifier::try_from(p).ok());
        let bytes = info.subject_public_key.raw_bytes().to_vec();
        let algorithms = match (info.algorithm.oid, curve) {
            (EC, Some(P256)) if bytes.len() == P256_POINT => WITH_P256,
            (EC, Some(P384)) if bytes.len() == P384_POINT => WITH_P384,
            (EC, Some(P256 | P384)) => return Err(KeyError::Length("ECDSA", bytes.len())),
            (EC, Some(curve)) => return Err(KeyError::Algorithm(curve)),
            (ID_ED25519, _) if bytes.len() == ED25519_KEY => WITH_ED25519,
            (ID_ED25519, _) => return Err(KeyError::Length("Ed25519", bytes.len())),
            (RSA, _) if bytes.len() > RSA_MODULUS => WITH_RSA,
            (RSA, _) => return Err(KeyError::Length("RSA", bytes.len())),
            (other, _) => return Err(KeyError::Algorithm(other)),
        };
        Ok(Self { name, bytes, algorithms })
    }

    /// Where it came from.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether `signature` is this key's over `message`.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.algorithms.iter().any(|algorithm| {
            UnparsedPublicKey::new(*algorithm, &self.bytes).verify(message, signature).is_ok()
        })
    }
}
