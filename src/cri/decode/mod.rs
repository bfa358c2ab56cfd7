//! Requests into domain types. All validation of client input happens here: the domain can act on whatever decodes.
//! Never touches the host.

mod container;
mod mounts;
mod resources;
mod sandbox;
mod security;

pub use container::container;
pub use resources::{pod_limits, resources, update};
pub use sandbox::sandbox;

use crate::host::network::PodRanges;
use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

/// A field that cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// Dotted path of the field in the request.
    pub field: &'static str,
    /// The fault and the allowed values.
    pub problem: String,
}

type Checked<T> = Result<T, Invalid>;

fn invalid<T>(field: &'static str, problem: impl Into<String>) -> Checked<T> {
    Err(Invalid { field, problem: problem.into() })
}

/// Longest name that becomes part of a reserved name or a CNI argument. Kubernetes' own limit is 253.
const MAX_NAME: usize = 512;

fn name(field: &'static str, value: &str) -> Checked<String> {
    if value.is_empty() {
        return invalid(field, "is empty");
    }
    if value.len() > MAX_NAME {
        return invalid(field, format!("is longer than {MAX_NAME} bytes"));
    }
    if value.contains(|c: char| c == '/' || c.is_ascii_control()) || value == "." || value == ".." {
        return invalid(field, format!("{value:?} has a slash or a control character or is a dot name"));
    }
    Ok(value.to_owned())
}

/// An absolute path.
///
/// # Errors
/// When it is none.
pub fn path(field: &'static str, path: &str) -> Result<PathBuf, Invalid> {
    absolute(field, path)
}

/// The node's pod CIDR; None: not sent.
///
/// # Errors
/// If it is not a list of address ranges.
pub fn pod_ranges(pod_cidr: &str) -> Result<Option<PodRanges>, Invalid> {
    let field = "runtime_config.network_config.pod_cidr";
    PodRanges::parse(pod_cidr).map_err(|problem| Invalid { field, problem })
}

/// A pod's name, namespace or uid. CNI plugins receive it in arguments, where `;` and `=` are separators.
fn pod_name(field: &'static str, value: &str) -> Checked<String> {
    let value = name(field, value)?;
    match value.contains([';', '=']) {
        true => invalid(field, format!("{value:?} has a ';' or a '=', which CNI arguments cannot hold")),
        false => Ok(value),
    }
}

/// Labels, or annotations, of one pod or container: keys and values. Kubernetes allows 256 KiB of annotations per
/// object (`TotalAnnotationSizeLimitB`), to which the kubelet adds hooks and ports; list answers must have room for
/// them.
const MAX_METADATA_BYTES: usize = 1 << 20;

fn metadata(field: &'static str, map: HashMap<String, String>) -> Checked<BTreeMap<String, String>> {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_METADATA_BYTES {
        return invalid(field, format!("have {bytes} bytes, more than {MAX_METADATA_BYTES}"));
    }
    Ok(sorted(map))
}

/// The start of what a client sent, for a message: it may be megabytes.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

fn sorted(map: HashMap<String, String>) -> BTreeMap<String, String> {
    map.into_iter().collect()
}

fn absolute(field: &'static str, path: &str) -> Checked<PathBuf> {
    if !path.starts_with('/') || path.contains('\0') {
        return invalid(field, format!("{:?} is not an absolute path", shown(path)));
    }
    if path.len() > MAX_PATH {
        return invalid(field, format!("{:?}… is longer than {MAX_PATH} bytes", shown(path)));
    }
    Ok(PathBuf::from(path))
}

/// Linux's PATH_MAX: a longer path would fail later.
const MAX_PATH: usize = 4096;

/// A path in the container: absolute, without `..`, which would mean something else once the image's links are known.
fn container_path(field: &'static str, path: &str) -> Checked<PathBuf> {
    let found = absolute(field, path)?;
    if found.components().any(|c| c == Component::ParentDir) {
        return invalid(field, format!("{:?} has \"..\"", shown(path)));
    }
    Ok(found)
}

fn relative_path(field: &'static str, path: &str) -> Checked<PathBuf> {
    let relative = Path::new(path);
    if !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
        || path.contains('\0')
    {
        return invalid(field, format!("{path:?} leaves the log directory"));
    }
    if relative.file_name().is_none() || path.ends_with('/') {
        return invalid(field, format!("{path:?} names no file"));
    }
    Ok(relative.to_owned())
}

#[cfg(test)]
mod tests;
