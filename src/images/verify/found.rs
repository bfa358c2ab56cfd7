//! Results of a verification. Plain data.

use crate::images::error::ImageError;
use std::fmt;

/// The checked item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A layer, by the hex part of its diffID or by the key of a directories layer.
    Layer(String),
    /// The config blob of the image with this id.
    Config(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer(key) => write!(f, "layer {key}"),
            Self::Config(id) => write!(f, "config {id}"),
        }
    }
}

/// How much was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Every byte and every file's metadata.
    Whole,
    /// Only the number of inodes: an older podwright wrote no recipe.
    InodesOnly,
}

/// Progress and results.
#[derive(Debug, Clone)]
pub enum VerifyEvent {
    /// It is being looked at.
    Begun {
        /// The item.
        subject: Subject,
        /// Its bytes on disk.
        bytes: u64,
    },
    /// Nothing is wrong.
    Good {
        /// The item.
        subject: Subject,
        /// Its bytes on disk.
        bytes: u64,
        /// How much was looked at.
        depth: Depth,
    },
    /// Something is wrong.
    Damaged {
        /// The item.
        subject: Subject,
        /// At least one; the first few of many.
        findings: Vec<Finding>,
    },
    /// It could not be found out.
    Unknown {
        /// The item.
        subject: Subject,
        /// Why.
        error: ImageError,
    },
    /// It was damaged and is whole again.
    Repaired {
        /// The item.
        subject: Subject,
    },
    /// It is damaged still.
    RepairFailed {
        /// The item.
        subject: Subject,
        /// Why.
        error: ImageError,
    },
}

/// Totals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VerifySummary {
    /// Layers and configs without damage.
    pub good: u64,
    /// Layers among them whose inodes could only be counted.
    pub weak: u64,
    /// Damaged ones, repaired or not.
    pub damaged: u64,
    /// Damaged ones that were repaired.
    pub repaired: u64,
    /// Those that could not be checked.
    pub unknown: u64,
    /// Bytes on disk of all checked layers.
    pub bytes: u64,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Path in the layer, cut to a printable length; empty: the whole.
    pub path: String,
    /// The fault.
    pub damage: Damage,
}

/// Possible faults.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// The layer's directory is gone.
    Lost,
    /// The recipe cannot be followed, so the files cannot be judged.
    Recipe {
        /// The fault.
        reason: String,
    },
    /// A file's data differs.
    Content {
        /// How.
        reason: &'static str,
    },
    /// It is not there.
    Missing,
    /// The layer has no such file.
    Extra,
    /// It is something else, such as a file in place of a directory or a whiteout.
    Kind {
        /// The expected value.
        expected: &'static str,
        /// The found value.
        found: &'static str,
    },
    /// Permission bits.
    Mode {
        /// Should be.
        expected: u32,
        /// Is.
        found: u32,
    },
    /// Owner.
    Owner {
        /// Should be, user and group.
        expected: (u32, u32),
        /// Is.
        found: (u32, u32),
    },
    /// Size of a file.
    Size {
        /// Should be, bytes.
        expected: u64,
        /// Is.
        found: u64,
    },
    /// Modification time.
    Time,
    /// Target of a symbolic link.
    Target,
    /// Device number.
    Device,
    /// Hard links: to other files than in the layer.
    Links,
    /// An extended attribute is missing, added or different.
    Attribute {
        /// Its name.
        name: String,
    },
    /// Number of inodes, where only that is known.
    Inodes {
        /// Should be.
        expected: u64,
        /// Is.
        found: u64,
    },
    /// The directories of a directories layer are not those that its key names.
    Directories,
    /// A config blob does not match the image's id.
    Digest,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            write!(f, "{}", self.damage)
        } else {
            write!(f, "{}: {}", self.path, self.damage)
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost => write!(f, "the directory is gone"),
            Self::Recipe { reason } => write!(f, "the recipe cannot be followed: {reason}"),
            Self::Content { reason } => write!(f, "{reason}"),
            Self::Missing => write!(f, "missing"),
            Self::Extra => write!(f, "not of the layer"),
            Self::Kind { expected, found } => write!(f, "{found} in place of {expected}"),
            Self::Mode { expected, found } => write!(f, "mode {found:04o}, should be {expected:04o}"),
            Self::Owner { expected, found } => {
                write!(f, "owner {}:{}, should be {}:{}", found.0, found.1, expected.0, expected.1)
            }
            Self::Size { expected, found } => write!(f, "{found} bytes, should be {expected}"),
            Self::Time => write!(f, "modification time differs"),
            Self::Target => write!(f, "target of the symbolic link differs"),
            Self::Device => write!(f, "device number differs"),
            Self::Links => write!(f, "hard links differ"),
            Self::Attribute { name } => write!(f, "extended attribute {name} differs"),
            Self::Inodes { expected, found } => write!(f, "{found} inodes, should be {expected}"),
            Self::Directories => write!(f, "its directories are not those that its key names"),
            Self::Digest => write!(f, "does not match its digest"),
        }
    }
}
