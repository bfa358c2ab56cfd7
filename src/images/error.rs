//! Every error of the image domain. Owns the wording; never maps to gRPC codes (`cri` does).
//!
//! Errors are `Clone`, because all callers of one shared download get the same one.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Why an image operation failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// The name is not an image reference.
    #[error("malformed image reference {reference:?}: {reason}")]
    Malformed {
        /// As given, cut to a printable length.
        reference: String,
        /// The fault.
        reason: &'static str,
    },
    /// No such image in the local store.
    #[error("image {name:?} is not in the local store")]
    NotFound {
        /// As requested.
        name: String,
    },
    /// An id prefix fits more than one image.
    #[error("image id prefix {name:?} fits {count} images")]
    Ambiguous {
        /// As requested.
        name: String,
        /// Number of images.
        count: usize,
    },
    /// The registry denies having this manifest or blob.
    #[error("{what} not found at {host}{}", told(.registry))]
    NotAtRegistry {
        /// Reference or digest.
        what: String,
        /// The last host tried.
        host: String,
        /// The registry's own words.
        registry: Option<RegistryMessage>,
    },
    /// 401 or 403 after the credentials, if any, were used.
    #[error(
        "pull access denied for {what} at {host} (HTTP {status}): repository does not exist or may require authorization{}",
        told(.registry)
    )]
    Unauthorized {
        /// Reference or digest.
        what: String,
        /// Host.
        host: String,
        /// HTTP status.
        status: u16,
        /// The registry's own words.
        registry: Option<RegistryMessage>,
    },
    /// The token service failed or answered nonsense.
    #[error("get a token for {host} from {realm}: {reason}")]
    Token {
        /// Registry host.
        host: String,
        /// Token service, without its query.
        realm: String,
        /// Cause.
        reason: String,
    },
    /// 429 after the retries.
    #[error("{host} limits the rate of requests for {what}{}{}", after(.retry_after), told(.registry))]
    RateLimited {
        /// Reference or digest.
        what: String,
        /// Host.
        host: String,
        /// The wait that the registry requested.
        retry_after: Option<Duration>,
        /// The registry's own words.
        registry: Option<RegistryMessage>,
    },
    /// No connection, no name, broken connection or 5xx after the retries.
    #[error("registry {host} is unavailable for {what}: {reason}")]
    Unavailable {
        /// Reference or digest.
        what: String,
        /// Host.
        host: String,
        /// Cause.
        reason: String,
        /// The wait that the registry requested.
        retry_after: Option<Duration>,
    },
    /// Bytes came, but fewer than the configured least.
    #[error("{host} is too slow for {what}: {bytes} bytes in {} s", .window.as_secs())]
    TooSlow {
        /// Reference or digest.
        what: String,
        /// Host.
        host: String,
        /// Bytes that came.
        bytes: u64,
        /// In this time.
        window: Duration,
    },
    /// No byte came for the configured time.
    #[error("no byte of {what} from {host} for {} s", .after.as_secs())]
    Stalled {
        /// Reference or digest.
        what: String,
        /// Host.
        host: String,
        /// The limit that was reached.
        after: Duration,
    },
    /// A status or header that the protocol does not allow here.
    #[error("unexpected answer of {host} for {what}: {reason}{}", told(.registry))]
    Protocol {
        /// Reference or digest.
        what: String,
        /// Host.
        host: String,
        /// The fault.
        reason: String,
        /// The registry's own words.
        registry: Option<RegistryMessage>,
    },
    /// A redirect that must not be followed.
    #[error("redirect of {what} by {host} refused: {reason}")]
    Redirect {
        /// Reference or digest.
        what: String,
        /// Host that redirected.
        host: String,
        /// Why.
        reason: String,
    },
    /// The name of the image's registry leads to where only the configuration may.
    #[error("registry {host} is not asked for {what}: {reason}")]
    NotAsked {
        /// Reference or digest.
        what: String,
        /// Host.
        host: String,
        /// Why.
        reason: String,
    },
    /// Bytes do not hash to the digest that names them.
    #[error("{what} does not match its digest: expected {expected}, got {actual}")]
    DigestMismatch {
        /// The hashed thing.
        what: String,
        /// Named.
        expected: String,
        /// Computed.
        actual: String,
    },
    /// More or fewer bytes than the descriptor says.
    #[error("{what} has the wrong size: expected {expected} bytes, got {actual}{}", if *.more { " or more" } else { "" })]
    SizeMismatch {
        /// The counted thing.
        what: String,
        /// Declared bytes.
        expected: u64,
        /// Counted bytes.
        actual: u64,
        /// Counting stopped at `actual`.
        more: bool,
    },
    /// A manifest, index or config that cannot be used.
    #[error("{what} is not usable: {reason}")]
    BadManifest {
        /// Which document.
        what: String,
        /// Why.
        reason: String,
    },
    /// Valid, but outside what this runtime does.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// Which thing.
        what: String,
        /// Why.
        reason: String,
    },
    /// A corrupt compressed stream or tar.
    #[error("layer {layer} is corrupt: {reason}")]
    CorruptLayer {
        /// Layer.
        layer: String,
        /// Cause.
        reason: String,
    },
    /// An entry that no honest layer has.
    #[error("layer {layer}: entry {entry:?} refused: {reason}")]
    HostileEntry {
        /// Layer.
        layer: String,
        /// Entry name, cut to a printable length.
        entry: String,
        /// Why.
        reason: &'static str,
    },
    /// The tar of a layer cannot be reproduced.
    #[error("layer {layer} has no recipe, an older podwright unpacked it")]
    NoRecipe {
        /// Layer.
        layer: String,
    },
    /// A layer's directory is gone.
    #[error("layer {layer} of image {image} is lost from this node's disk; the image has to be pulled again")]
    LayerLost {
        /// The image's id.
        image: String,
        /// Layer.
        layer: String,
    },
    /// Files of a layer on disk are not what was unpacked.
    #[error("layer {layer} is damaged on disk: {path}: {reason}")]
    DamagedLayer {
        /// Layer.
        layer: String,
        /// File of the layer or its recipe, cut to a printable length.
        path: String,
        /// The fault.
        reason: String,
    },
    /// A configured or built-in cap was reached.
    #[error("{what} exceeds the limit of {limit} {unit}")]
    Limit {
        /// The growing thing.
        what: String,
        /// The cap.
        limit: u64,
        /// Its unit.
        unit: &'static str,
    },
    /// ENOSPC or EDQUOT.
    #[error("no space left on the file system of {path}: {operation}")]
    NoSpace {
        /// The operation.
        operation: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{operation} {path}: {source}")]
    Io {
        /// The operation.
        operation: &'static str,
        /// Its object.
        path: PathBuf,
        /// Cause.
        source: Arc<io::Error>,
    },
    /// The index database failed.
    #[error("image index: {operation}: {reason}")]
    Index {
        /// The operation.
        operation: &'static str,
        /// Cause.
        reason: String,
    },
    /// A hosts.toml, registries.conf or auth file that cannot be used. Never skipped silently: it would send pulls past the mirrors.
    #[error("registry configuration {path}: {reason}")]
    Hosts {
        /// File.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
    /// A signature policy, or a key that it names, that cannot be used. It fails every pull: what it would forbid is unknown.
    #[error("signature policy {path}: {reason}")]
    Policy {
        /// The policy file.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
    /// The signature policy refuses the image.
    #[error("image {image} at {digest} refused: {reason}")]
    Signature {
        /// Reference.
        image: String,
        /// The address it resolved to.
        digest: String,
        /// The rule, and what is wrong with each signature.
        reason: String,
    },
    /// The node's registries.conf forbids it.
    #[error("{what} is blocked by {path}")]
    Blocked {
        /// Reference.
        what: String,
        /// File.
        path: PathBuf,
    },
    /// A file cannot be loaded.
    #[error("archive {archive}: {}{reason}", of_entry(.entry))]
    BadArchive {
        /// File or directory.
        archive: String,
        /// Entry, empty: the archive as a whole.
        entry: String,
        /// The fault.
        reason: String,
    },
    /// Another runtime's store is not as it should be.
    #[error("{store}: {reason}")]
    PeerStore {
        /// Store, or file of it.
        store: String,
        /// The fault.
        reason: String,
    },
    /// Content that an image needs is missing from its source.
    #[error("{what} is not in {place}")]
    NotInSource {
        /// Digest or entry.
        what: String,
        /// Archive or store.
        place: String,
    },
    /// Work on that many archives is under way.
    #[error("{archive}: {at_once} archives are being read or written already, try again when one is done")]
    Busy {
        /// The path.
        archive: String,
        /// How many there may be.
        at_once: usize,
    },
    /// The shared work ended without a result (daemon shutdown or a bug in a worker).
    #[error("{what} was interrupted")]
    Interrupted {
        /// The name.
        what: String,
    },
}

/// A registry's own error, from `{"errors":[{"code","message"}]}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryMessage {
    /// `MANIFEST_UNKNOWN` and the like.
    pub code: String,
    /// Text, cut to a printable length.
    pub message: String,
}

impl fmt::Display for RegistryMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

fn told(message: &Option<RegistryMessage>) -> String {
    message.as_ref().map_or_else(String::new, |m| format!(": {m}"))
}

fn of_entry(entry: &str) -> String {
    if entry.is_empty() { String::new() } else { format!("entry {entry:?}: ") }
}

fn after(wait: &Option<Duration>) -> String {
    wait.map_or_else(String::new, |d| format!(" (retry after {} s)", d.as_secs()))
}

impl ImageError {
    /// An I/O error with its operation and path; a full disk becomes `NoSpace`.
    pub(crate) fn io(operation: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { operation, path: path.to_owned() }
            }
            _ => Self::Io { operation, path: path.to_owned(), source: Arc::new(source) },
        }
    }

    /// How informative the error is; of several hosts' errors the most informative is returned.
    pub(crate) fn weight(&self) -> u8 {
        match self {
            Self::NotAtRegistry { .. } => 1,
            Self::Unavailable { .. } | Self::Stalled { .. } | Self::TooSlow { .. } => 2,
            Self::Protocol { .. } | Self::Token { .. } | Self::Redirect { .. } | Self::NotAsked { .. } => 3,
            Self::Unauthorized { .. } => 4,
            Self::RateLimited { .. } => 5,
            _ => 6,
        }
    }
}

/// `text` cut for an error message: hostile input must not fill the log.
pub(crate) fn cut(text: &str) -> String {
    /// Enough for any honest reference (255) or path shown.
    const SHOWN: usize = 256;
    if text.chars().count() <= SHOWN {
        text.to_owned()
    } else {
        text.chars().take(SHOWN).chain(['…']).collect()
    }
}
